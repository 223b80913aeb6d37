"""Towers of OpenCLIP and timm. Both libraries are optional, and imported when they are used."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _library(module: str, package: str, name: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"vision tower {name} needs {module}, which is not installed: pip install {package}"
        ) from error


def _refuse_offline(spec: dict[str, Any], library: str) -> None:
    """Raises ValueError for local_files_only: neither library has such an option for one call."""
    from huggingface_hub import constants

    pretrained = spec["pretrained"]
    local = Path(spec["name"]).is_dir() or (pretrained is not None and Path(pretrained).is_file())
    if not local and not constants.HF_HUB_OFFLINE:
        raise ValueError(
            f"vision tower {spec['name']}: {library} does not support local_files_only; set HF_HUB_OFFLINE=1 to use "
            "only its cache, or give a file of weights as pretrained"
        )


# --- OpenCLIP


def openclip_load(
    spec: dict[str, Any], cache_dir: str | None = None, local_files_only: bool = False
) -> tuple[nn.Module, dict[str, Any]]:
    """(visual part, config) of an OpenCLIP model: name and tag, name and file of weights, or directory."""
    open_clip = _library("open_clip", "open_clip_torch", spec["name"])
    if local_files_only:
        _refuse_offline(spec, "open_clip")
    name, pretrained = _openclip_name(spec["name"]), spec["pretrained"]
    if not name.startswith(("local-dir:", "hf-hub:")):
        _check_side(spec, _openclip_model(open_clip, name)["vision_cfg"])
        tags = open_clip.list_pretrained_tags_by_model(name)
        if pretrained not in tags and not (pretrained and Path(pretrained).is_file()):
            raise ValueError(
                f"vision tower {name}: pretrained={pretrained!r} is neither a file of weights nor one of its OpenCLIP "
                f"tags; expected one of {', '.join(tags) or '(it has none)'}"
            )
    quick_gelu, side = _quick_gelu(open_clip, spec), spec.get("image_size")
    model = open_clip.create_model(
        name,
        pretrained=pretrained,
        cache_dir=cache_dir,
        force_quick_gelu=quick_gelu,
        force_image_size=side,  # it interpolates the positions
        require_pretrained=True,
    )
    preprocess = model.visual.preprocess_cfg | ({} if side is None else {"size": side})
    return model.visual, {"quick_gelu": quick_gelu} | _openclip_preprocessing(preprocess)


def _check_side(spec: dict[str, Any], vision: dict[str, Any]) -> None:
    """Raises ValueError for a chosen image size that OpenCLIP has no positions for; `vision`: its own config."""
    side, patch = spec.get("image_size"), vision.get("patch_size", 16)
    if side is None or "timm_model_name" in vision:
        return
    if isinstance(vision.get("layers"), list):  # a ResNet, whose attention pooling has positions of its own
        raise ValueError(f"vision tower {spec['name']}: image_size={side}, but a ResNet of OpenCLIP has one size")
    if side < patch or side % patch:
        raise ValueError(
            f"vision tower {spec['name']}: image_size={side}; expected a multiple of {patch}, the side of a patch"
        )


def openclip_build(spec: dict[str, Any]) -> nn.Module:
    """The visual part of an OpenCLIP model without weights."""
    open_clip = _library("open_clip", "open_clip_torch", spec["name"])
    model = open_clip.create_model(
        _openclip_name(spec["name"]),
        load_weights=False,
        force_quick_gelu=spec["config"]["quick_gelu"],
        force_image_size=spec.get("image_size"),
        pretrained_text=False,
        device=torch.get_default_device(),
    )
    return model.visual


def openclip_config(spec: dict[str, Any]) -> dict[str, Any]:
    """The config that `openclip_load` returns, from OpenCLIP's tables."""
    open_clip = _library("open_clip", "open_clip_torch", spec["name"])
    name = _openclip_name(spec["name"])
    model = _openclip_model(open_clip, name)
    tag = open_clip.get_pretrained_cfg(name, spec["pretrained"]) if spec["pretrained"] else {}
    preprocess = {"size": model["vision_cfg"].get("image_size", 224)} | {
        k: v for k, v in (tag or {}).items() if k in ("mean", "std", "resize_mode")
    }
    return {"quick_gelu": _quick_gelu(open_clip, spec)} | _openclip_preprocessing(preprocess)


def openclip_geometry(visual: Any) -> tuple[int, int, int | None]:
    """(width, image side, patches): as `vision_transformers.geometry`."""
    if hasattr(visual, "trunk"):
        return timm_geometry(visual.trunk, {})
    side = _side(visual.image_size)
    if hasattr(visual, "conv1") and hasattr(visual, "transformer"):
        rows, columns = visual.grid_size
        return visual.conv1.out_channels, side, rows * columns
    return visual.layer4[-1].bn3.num_features, side, None  # a ResNet


def openclip_features(visual: Any, pixels: Tensor) -> Tensor:
    if hasattr(visual, "trunk"):
        return timm_features(visual.trunk, pixels)
    if not hasattr(visual, "transformer"):
        grid = visual.forward_intermediates(pixels, indices=[4], intermediates_only=True)
        return grid["image_intermediates"][-1].flatten(2).transpose(1, 2)
    out = visual.forward_intermediates(
        pixels, indices=1, normalize_intermediates=False, intermediates_only=True, output_fmt="NLC"
    )
    return out["image_intermediates"][-1]


def openclip_pooled(visual: Any, pixels: Tensor) -> Tensor:
    """Pixels (n, C, H, W) -> pooled and projected features (n, D), as OpenCLIP's `encode_image`, not normalised."""
    out = visual(pixels)
    return out[0] if isinstance(out, tuple) else out  # CoCa returns the tokens too


def _openclip_name(name: str) -> str:
    if Path(name).is_dir():
        return f"local-dir:{name}"
    return name if name.startswith(("hf-hub:", "local-dir:")) else name.replace("/", "-")


def _openclip_model(open_clip: Any, name: str) -> dict[str, Any]:
    model = open_clip.get_model_config(name)
    if model is None:
        raise ValueError(f"vision tower {name}: not a model of OpenCLIP; open_clip.list_models() names them")
    return model


def _quick_gelu(open_clip: Any, spec: dict[str, Any]) -> bool:
    """Whether a tower has QuickGELU. (OpenCLIP only warns if the tag was trained with it, unlike the model's name.)"""
    if (spec["config"] or {}).get("quick_gelu") is not None:
        return spec["config"]["quick_gelu"]
    if spec["pretrained"] is None or Path(spec["pretrained"]).is_file():
        return False  # by its name: "ViT-L-14-quickgelu" has it anyway
    tag = open_clip.get_pretrained_cfg(_openclip_name(spec["name"]), spec["pretrained"]) or {}
    return bool(tag.get("quick_gelu", spec["pretrained"] == "openai"))


def _openclip_preprocessing(preprocess: dict[str, Any]) -> dict[str, Any]:
    from flamboyance.model.vision_transformers import CLIP_MEAN, CLIP_STD

    return {
        "image_size": _side(preprocess["size"]),
        "mean": list(preprocess.get("mean") or CLIP_MEAN),
        "std": list(preprocess.get("std") or CLIP_STD),
        "resize": "exact" if preprocess.get("resize_mode") == "squash" else "shortest",
    }


# --- timm

TIMM_WEIGHTS = "model.safetensors"  # of a directory
UNDERSCORED = re.compile(r"^(\w+)_(\d+)\.")  # FeatureListNet's name of `stages.0`


def timm_load(
    spec: dict[str, Any], cache_dir: str | None = None, local_files_only: bool = False
) -> tuple[nn.Module, dict[str, Any]]:
    """(model, its config) of a timm name; `pretrained` may name a tag or a file of weights."""
    timm = _library("timm", "timm", spec["name"])
    if local_files_only:
        _refuse_offline(spec, "timm")
    cfg = _timm_cfg(spec)  # raises ValueError for an unknown name
    name, tag = _timm_name(spec["name"]), spec["pretrained"]
    chosen = spec["config"] or {}  # image_size and feature_levels
    options = _timm_options(cfg, chosen)
    weights = Path(tag) if tag is not None and Path(tag).is_file() else Path(spec["name"]) / TIMM_WEIGHTS
    if "feature_levels" in chosen and weights.is_file():
        # timm loads what a file has for a part of its model, and leaves the rest random.
        model = _timm_create(timm, spec["name"], name, False, **options)
        _load_all(timm, model, weights)
        return model, _timm_preprocessing(cfg) | chosen
    if tag is not None and Path(tag).is_file():
        options["pretrained_cfg_overlay"] = {"file": tag}
    elif tag is not None:
        name = f"{name.split('.')[0]}.{tag}"
    model = _timm_create(timm, spec["name"], name, True, cache_dir=cache_dir, **options)
    return model, _timm_preprocessing(model.pretrained_cfg) | chosen


def timm_build(spec: dict[str, Any]) -> nn.Module:
    """A timm model without weights."""
    timm = _library("timm", "timm", spec["name"])
    options = _timm_options(_timm_cfg(spec), spec["config"])
    return _timm_create(timm, spec["name"], _timm_name(spec["name"]), False, **options)


def _timm_options(cfg: dict[str, Any], chosen: dict[str, Any]) -> dict[str, Any]:
    """timm's options for another image size than that of the tower's `cfg`, and for feature levels."""
    options: dict[str, Any] = {}
    own = _side(cfg["input_size"][-2:])
    if cfg.get("fixed_input_size") and chosen.get("image_size", own) != own:
        options["img_size"] = chosen["image_size"]  # of a ViT, whose positions timm resamples
    if "feature_levels" in chosen:
        return options | {"features_only": True, "out_indices": tuple(chosen["feature_levels"])}
    return options | {"num_classes": 0}


def _timm_create(timm: Any, given: str, name: str, pretrained: bool, **options: Any) -> Any:
    levels = options.get("out_indices")
    try:
        return timm.create_model(name, pretrained=pretrained, **options)
    except (AssertionError, IndexError, AttributeError) as error:
        if levels is None:
            raise
        raise ValueError(
            f"vision tower {given}: no feature levels {', '.join(map(str, levels))}; expected numbers from 0 up, in "
            "rising order, of timm's features_only models, such as 3,4 for the last two grids of an EfficientNet"
        ) from error


def _load_all(timm: Any, model: Any, file: Path) -> None:
    """Loads a file of weights that may have more than the model, as those of a classifier.

    Raises:
        ValueError: it lacks some of the model's.
    """
    state = timm.models.load_state_dict(str(file), use_ema=False)
    inner = getattr(model, "model", model)  # of FeatureGetterNet
    names = {name: name if name in state else UNDERSCORED.sub(r"\1.\2.", name) for name in inner.state_dict()}
    lacking = [name for name in names.values() if name not in state and not name.endswith("num_batches_tracked")]
    if lacking:
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise ValueError(
            f"the weights {file} lack {min(lacking)}{more}, which would be random; is it this tower's file?"
        )
    inner.load_state_dict({name: state[given] for name, given in names.items() if given in state}, strict=False)


def is_timm_directory(directory: Path) -> bool:
    """Whether a directory's config.json is one of timm's."""
    try:
        values = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(values, dict) and "architecture" in values and "model_type" not in values


def timm_config(spec: dict[str, Any]) -> dict[str, Any]:
    return _timm_preprocessing(_timm_cfg(spec))


def _timm_cfg(spec: dict[str, Any]) -> dict[str, Any]:
    """timm's own description of a model, by its name or in its directory."""
    timm = _library("timm", "timm", spec["name"])
    name = _timm_name(spec["name"])
    if name.startswith("local-dir:"):
        with torch.device("meta"):
            return timm.create_model(name, pretrained=False).pretrained_cfg
    cfg = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if cfg is None:
        raise ValueError(f"vision tower {spec['name']}: not a model of timm; timm.list_models() names them")
    return cfg.to_dict()


def timm_geometry(model: Any, config: dict[str, Any]) -> tuple[int, int, int | None]:
    """(width, image side, patches): as `vision_transformers.geometry`."""
    if "feature_levels" in config:
        return sum(model.feature_info.channels()), config["image_size"], None
    embed = getattr(model, "patch_embed", None)
    if _is_vit(model) and embed is not None:
        return model.num_features, _side(embed.img_size), embed.num_patches
    return model.num_features, config.get("image_size") or _side(model.pretrained_cfg["input_size"][-2:]), None


def timm_features(model: Any, pixels: Tensor, levels: bool = False) -> Tensor:
    """Pixels (n, C, H, W) -> (n, P, D): a ViT's patches before its final norm, a CNN's last grid by rows, or the grids
    of several levels, joined."""
    if levels:
        return joined(model(pixels), channels_last=str(getattr(model, "output_fmt", "")).endswith("NHWC"))
    if _is_vit(model):
        return model.forward_intermediates(pixels, indices=1, norm=False, output_fmt="NLC", intermediates_only=True)[-1]
    grid = model.forward_features(pixels)
    if grid.ndim == 4:
        channels_last = getattr(model, "output_fmt", "") == "NHWC"
        return grid.flatten(1, 2) if channels_last else grid.flatten(2).transpose(1, 2)
    raise ValueError(
        f"vision tower: {type(model).__name__} of timm gives features {tuple(grid.shape)}; expected "
        "a grid (CNNs) or a ViT with forward_intermediates"
    )


def joined(grids: Sequence[Tensor], channels_last: bool = False) -> Tensor:
    """Feature maps (n, C, H, W), or (n, H, W, C), of several resolutions -> (n, P, sum of C): finer ones are averaged
    to the coarsest grid, whose P cells come by rows."""
    grids = [grid.permute(0, 3, 1, 2) for grid in grids] if channels_last else grids
    height, width = min(((grid.shape[2], grid.shape[3]) for grid in grids), key=lambda sides: sides[0] * sides[1])
    return torch.cat([F.adaptive_avg_pool2d(grid, (height, width)) for grid in grids], dim=1).flatten(2).transpose(1, 2)


def timm_pooled(model: Any, pixels: Tensor) -> Tensor:
    """Pixels (n, C, H, W) -> the classifier's input (n, D): pooled, after the final norm."""
    return model(pixels)


def _is_vit(model: Any) -> bool:
    return hasattr(model, "num_prefix_tokens") and hasattr(model, "forward_intermediates")


def _timm_name(name: str) -> str:
    if Path(name).is_dir():
        return f"local-dir:{name}"
    return name.removeprefix("hf_hub:").removeprefix("hf-hub:").removeprefix("timm/")


def _timm_preprocessing(cfg: dict[str, Any]) -> dict[str, Any]:
    return {
        "image_size": _side(cfg["input_size"][-2:]),
        "mean": list(cfg["mean"]),
        "std": list(cfg["std"]),
        "resize": "exact" if cfg.get("crop_mode") == "squash" else "shortest",
    }


def _side(size: Any) -> int:
    """An image side from 224 or (224, 224). Raises ValueError if it is not square."""
    if isinstance(size, int):
        return size
    height, width = size
    if height != width:
        raise ValueError(f"vision tower: images of {height}x{width} pixels; expected a square")
    return int(height)
