"""Towers of the transformers library: CLIP, SigLIP, SigLIP 2, DINOv2 (with registers or without), ViT.

Each is an embedding, for some a norm, a list of blocks, and a final norm that a Flamingo leaves out. The blocks are
called one by one, so that no output has to be captured inside the library's forward.

Shapes: n images, C H W pixels, P patches, D width.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from inspect import signature
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig
from transformers.utils import logging

from flamboyance.model.quantization import QuantizationConfig

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)


class Family(NamedTuple):
    """Facts about a model type.

    Attributes:
        resize: "shortest" side and crop, or to the "exact" square.
        positions: how the library interpolates them to another grid.
    """

    model_class: str
    has_class_token: bool
    any_size: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: str
    positions: dict[str, Any]


BICUBIC = {"mode": "bicubic"}
SMOOTH = {"antialias": True}

FAMILIES = {
    "clip_vision_model": Family("CLIPVisionModel", True, False, CLIP_MEAN, CLIP_STD, "shortest", BICUBIC),
    "siglip_vision_model": Family("SiglipVisionModel", False, False, HALF, HALF, "exact", BICUBIC),
    "siglip2_vision_model": Family(
        "Siglip2VisionModel", False, True, HALF, HALF, "exact", {"mode": "bilinear"} | SMOOTH
    ),
    "dinov2": Family("Dinov2Model", True, True, IMAGENET_MEAN, IMAGENET_STD, "shortest", BICUBIC),
    "dinov2_with_registers": Family(
        "Dinov2WithRegistersModel", True, True, IMAGENET_MEAN, IMAGENET_STD, "shortest", BICUBIC | SMOOTH
    ),
    "vit": Family("ViTModel", True, False, HALF, HALF, "exact", BICUBIC),
}

# OpenAI's towers under OpenCLIP's names: the hub's repository, width, layers, heads, patch, image side.
OPENAI_TOWERS = {
    "vit-b-32": ("openai/clip-vit-base-patch32", 768, 12, 12, 32, 224),
    "vit-b-16": ("openai/clip-vit-base-patch16", 768, 12, 12, 16, 224),
    "vit-l-14": ("openai/clip-vit-large-patch14", 1024, 24, 16, 14, 224),
    "vit-l-14-336": ("openai/clip-vit-large-patch14-336", 1024, 24, 16, 14, 336),
}


def openai_tower(name: str) -> tuple[str, dict[str, Any]] | None:
    """(hub name, vision config) of an OpenAI tower, by its name in OpenCLIP, OpenAI's code or the hub; None for others.

    Accepts "ViT-L-14", "vit-l/14", "ViT-L-14-quickgelu" and "ViT-L/14@336px". Does not use the network.
    """
    key = name.lower().replace("/", "-").replace("@", "-").removesuffix("px").removesuffix("-quickgelu")
    for short, (hub_name, width, layers, heads, patch, side) in OPENAI_TOWERS.items():
        if key == short or name == hub_name:
            return hub_name, {
                "model_type": "clip_vision_model",
                "hidden_size": width,
                "intermediate_size": 4 * width,
                "num_hidden_layers": layers,
                "num_attention_heads": heads,
                "patch_size": patch,
                "image_size": side,
                "hidden_act": "quick_gelu",
            }
    return None


def family_of(config: dict[str, Any] | PreTrainedConfig, name: str | None = None) -> Family:
    """The family of a vision config.

    Raises:
        ValueError: an unknown model type.
    """
    model_type = config.get("model_type") if isinstance(config, dict) else config.model_type
    if model_type not in FAMILIES:
        raise ValueError(
            f"vision tower {name or ''}: model type {model_type!r} is not supported; expected one of "
            f"{', '.join(sorted(FAMILIES))} (or a timm tower: library='timm')"
        )
    return FAMILIES[model_type]


def read_config(name: str, cache_dir: str | None = None, local_files_only: bool = False) -> dict[str, Any]:
    """Vision config of a hub name or directory, of a tower or of a whole CLIP or SigLIP."""
    config = AutoConfig.from_pretrained(name, cache_dir=cache_dir, local_files_only=local_files_only)
    config = getattr(config, "vision_config", config)
    family_of(config, name)
    return _portable(config)


def build(config: dict[str, Any]) -> nn.Module:
    """A tower with random weights (none on the meta device)."""
    family = family_of(config)
    hf_config = AutoConfig.for_model(**config)
    return getattr(transformers, family.model_class)._from_config(hf_config, attn_implementation="sdpa")


def load(
    name: str,
    config: dict[str, Any],
    cache_dir: str | None = None,
    local_files_only: bool = False,
    dtype: torch.dtype | str | None = None,
    projection: bool = False,
    quantize: str | None = None,
) -> tuple[nn.Module, nn.Linear | None]:
    """A tower with the weights of a hub name or directory, and CLIP's projection if there is one.

    Args:
        projection: load the projection of CLIP's pooled feature, into the space that it shares with text.
        quantize: "int8" or "int4": the scheme of its linear layers.

    Raises:
        ValueError: weights are missing in the files.
    """
    family = family_of(config, name)
    hub: dict[str, Any] = {"cache_dir": cache_dir, "local_files_only": local_files_only}
    if quantize and "quantization_config" not in config:
        hub["quantization_config"] = QuantizationConfig(quantize)
    linear = None
    if projection and config["model_type"] == "clip_vision_model":
        # A whole CLIP's width may differ from its tower's.
        width = AutoConfig.from_pretrained(name, cache_dir=cache_dir, local_files_only=local_files_only).projection_dim
        hf_config = AutoConfig.for_model(**config | {"projection_dim": width})
        with _no_report():
            module, missing = _load("CLIPVisionModelWithProjection", name, hf_config, dtype, **hub)
        if "visual_projection.weight" not in missing:
            linear, module = module.visual_projection, module.vision_model
    if linear is None:  # a tower that was saved alone, whose weights older transformers do not find in the class above
        module, missing = _load(family.model_class, name, AutoConfig.for_model(**config), dtype, **hub)
    # Patch features need no pooling head, which the files may lack.
    headless = any(k.startswith("head.") for k in missing)
    missing = [k for k in missing if not k.startswith(("pooler.", "head."))]
    if missing:
        raise ValueError(
            f"vision tower {name}: {len(missing)} weights are not in its files, among them {missing[0]}; "
            f"expected those of a {family.model_class}"
        )
    if headless:
        module.head = None  # else `pooled` would use its random weights
    return module, linear


@contextmanager
def _no_report() -> Generator[None]:
    """Without the library's report of missing weights: the projection may be missing."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def _load(
    model_class: str, name: str, config: PreTrainedConfig, dtype: torch.dtype | str | None, **hub: Any
) -> tuple[Any, list[str]]:
    """(model of a hub name or directory, names of weights that are missing in its files)."""
    module, info = _quiet(getattr(transformers, model_class)).from_pretrained(
        name, config=config, dtype=dtype or "auto", attn_implementation="sdpa", output_loading_info=True, **hub
    )
    module.__class__ = getattr(transformers, model_class)
    return module, sorted(info["missing_keys"])


def _quiet(model_class: Any) -> Any:
    """The class, without its report of a text tower's weights when it reads the files of a whole CLIP."""
    others = [r"^(vision_model\.)?head\.", r"^text_", r"^visual_projection", r"^logit_", r"^(vit\.)?pooler\."]
    # Same name and module: transformers looks up its renamings of old files by them.
    members = {"__module__": model_class.__module__, "_keys_to_ignore_on_load_unexpected": others}
    return type(model_class.__name__, (model_class,), members)


def geometry(config: dict[str, Any]) -> tuple[int, int, int]:
    """(width, image side in pixels, patches of such an image)."""
    hf_config = AutoConfig.for_model(**config)
    patch = hf_config.patch_size
    if hf_config.model_type == "siglip2_vision_model":  # takes any size; it was trained for this number of patches
        grid = int(hf_config.num_patches**0.5)
        return hf_config.hidden_size, grid * patch, grid**2
    return hf_config.hidden_size, hf_config.image_size, (hf_config.image_size // patch) ** 2


def sized(config: dict[str, Any], side: int, name: str | None) -> dict[str, Any]:
    """The config of a tower for images of another side in pixels.

    Raises:
        ValueError: the side is not a multiple of the patch's.
    """
    patch = AutoConfig.for_model(**config).patch_size
    if side < patch or side % patch:
        raise ValueError(f"vision tower {name}: image_size={side}; expected a multiple of {patch}, the side of a patch")
    if config["model_type"] == "siglip2_vision_model":
        return config | {"num_patches": (side // patch) ** 2}
    return config | {"image_size": side}


@torch.no_grad()
def resize_positions(module: Any, config: dict[str, Any]) -> None:
    """Gives a tower the grid of another config, with its position embeddings interpolated as its library does at run
    time: once, so that every forward pass is an ordinary one."""
    family, old = family_of(config), module.embeddings
    for key in ("image_size", "num_patches"):
        if key in config:
            setattr(module.config, key, config[key])
    new = type(old)(module.config)
    state, shapes = old.state_dict(), {name: tensor.shape for name, tensor in new.state_dict().items()}
    name = next(name for name in state if name.removesuffix(".weight").endswith(("position_embedding", "_embeddings")))
    table = state[name].view(-1, state[name].shape[-1])
    special, rows = int(family.has_class_token), shapes[name].numel() // table.shape[1]
    first, grid = table[:special], table[special:].float().T
    before, after = round(grid.shape[1] ** 0.5), round((rows - special) ** 0.5)
    square, size = grid.view(1, -1, before, before), (after, after)
    cells = F.interpolate(square, size=size, align_corners=False, **family.positions)
    state[name] = torch.cat([first, cells[0].flatten(1).T.to(first)]).view(shapes[name])
    new.to(state[name]).load_state_dict({key: state[key] for key in shapes})
    module.embeddings = new.train(old.training)


def preprocessing(config: dict[str, Any]) -> dict[str, Any]:
    family = family_of(config)
    side = geometry(config)[1]
    return {"image_size": side, "mean": family.mean, "std": family.std, "resize": family.resize}


def features(module: Any, pixels: Tensor) -> Tensor:
    """Pixels (n, C, H, W) -> the last block's patches (n, P, D), before the final norm, no special tokens."""
    config = module.config
    special = int(FAMILIES[config.model_type].has_class_token) + getattr(config, "num_register_tokens", 0)
    return _tokens(module, pixels)[:, special:]


def pooled(module: Any, pixels: Tensor) -> Tensor:
    """Pixels (n, C, H, W) -> one feature per image (n, D), after the final norm.

    The class token; without one (SigLIP), the output of the attention head, or else the mean of the patches.
    """
    x = _tokens(module, pixels)
    x = module.post_layernorm(x) if hasattr(module, "post_layernorm") else module.layernorm(x)
    if FAMILIES[module.config.model_type].has_class_token:
        return x[:, 0]
    head = getattr(module, "head", None)
    return x.mean(1) if head is None else head(x)


def _tokens(module: Any, pixels: Tensor) -> Tensor:
    """Pixels (n, C, H, W) -> all tokens after the last block (n, T, D), before the final norm."""
    config = module.config
    if config.model_type == "siglip2_vision_model":
        x = _embed_naflex(module, pixels)
    else:
        x = module.embeddings(pixels)
    if config.model_type == "clip_vision_model":
        x = module.pre_layrnorm(x)  # the library's spelling
    blocks = module.layers if hasattr(module, "layers") else _blocks(module.encoder)
    # Most blocks take an attention mask, here None; older transformers' DINOv2 has no such argument.
    mask = (None,) if len(signature(blocks[0].forward).parameters) > 1 else ()
    for block in blocks:
        x = block(x, *mask)
        x = x[0] if isinstance(x, tuple) else x
    return x


def _blocks(encoder: Any) -> nn.ModuleList:
    return encoder.layers if hasattr(encoder, "layers") else encoder.layer


def _embed_naflex(module: Any, pixels: Tensor) -> Tensor:
    """SigLIP 2 takes patches of any aspect ratio, flattened row by row, channels last."""
    n, channels, height, width = pixels.shape
    patch = module.config.patch_size
    rows, columns = height // patch, width // patch
    x = pixels.reshape(n, channels, rows, patch, columns, patch).permute(0, 2, 4, 3, 5, 1)
    shapes = torch.tensor([[rows, columns]], device=pixels.device).expand(n, 2)
    return module.embeddings(x.reshape(n, rows * columns, patch * patch * channels), shapes)


def _portable(config: PreTrainedConfig) -> dict[str, Any]:
    """A config as a dict for config.json, without the keys about its source."""
    left_out = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "auto_map"}
    return {k: v for k, v in config.to_diff_dict().items() if k not in left_out} | {"model_type": config.model_type}
