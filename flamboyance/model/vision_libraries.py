"""Towers of OpenCLIP and timm. Both libraries are optional, and imported when they are used."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
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
        _openclip_model(open_clip, name)
        tags = open_clip.list_pretrained_tags_by_model(name)
        if pretrained not in tags and not (pretrained and Path(pretrained).is_file()):
            raise ValueError(
                f"vision tower {name}: pretrained={pretrained!r} is neither a file of weights nor one of its OpenCLIP "
                f"tags; expected one of {', '.join(tags) or '(it has none)'}"
            )
    quick_gelu = _quick_gelu(open_clip, spec)
    model = open_clip.create_model(
        name, pretrained=pretrained, cache_dir=cache_dir, force_quick_gelu=quick_gelu, require_pretrained=True
    )
    return model.visual, {"quick_gelu": quick_gelu} | _openclip_preprocessing(model.visual.preprocess_cfg)


def openclip_build(spec: dict[str, Any]) -> nn.Module:
    """The visual part of an OpenCLIP model without weights."""
    open_clip = _library("open_clip", "open_clip_torch", spec["name"])
    model = open_clip.create_model(
        _openclip_name(spec["name"]),
        load_weights=False,
        force_quick_gelu=spec["config"]["quick_gelu"],
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
        return timm_geometry(visual.trunk)
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


def timm_load(
    spec: dict[str, Any], cache_dir: str | None = None, local_files_only: bool = False
) -> tuple[nn.Module, dict[str, Any]]:
    """(model, its config) of a timm name; `pretrained` may name a tag or a file of weights."""
    timm = _library("timm", "timm", spec["name"])
    if local_files_only:
        _refuse_offline(spec, "timm")
    timm_config(spec)  # raises ValueError for an unknown name
    name, tag = _timm_name(spec["name"]), spec["pretrained"]
    options: dict[str, Any] = {}
    if tag is not None and Path(tag).is_file():
        options["pretrained_cfg_overlay"] = {"file": tag}
    elif tag is not None:
        name = f"{name.split('.')[0]}.{tag}"
    model = timm.create_model(name, pretrained=True, num_classes=0, cache_dir=cache_dir, **options)
    return model, _timm_preprocessing(model.pretrained_cfg)


def timm_build(spec: dict[str, Any]) -> nn.Module:
    """A timm model without weights."""
    timm = _library("timm", "timm", spec["name"])
    return timm.create_model(_timm_name(spec["name"]), pretrained=False, num_classes=0)


def timm_config(spec: dict[str, Any]) -> dict[str, Any]:
    timm = _library("timm", "timm", spec["name"])
    name = _timm_name(spec["name"])
    if name.startswith("local-dir:"):
        return _timm_preprocessing(timm.create_model(name, pretrained=False).pretrained_cfg)
    cfg = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if cfg is None:
        raise ValueError(f"vision tower {spec['name']}: not a model of timm; timm.list_models() names them")
    return _timm_preprocessing(cfg.to_dict())


def timm_geometry(model: Any) -> tuple[int, int, int | None]:
    """(width, image side, patches): as `vision_transformers.geometry`."""
    embed = getattr(model, "patch_embed", None)
    if _is_vit(model) and embed is not None:
        return model.num_features, _side(embed.img_size), embed.num_patches
    return model.num_features, _side(model.pretrained_cfg["input_size"][-2:]), None


def timm_features(model: Any, pixels: Tensor) -> Tensor:
    """Pixels (n, C, H, W) -> (n, P, D): a ViT's patches before its final norm, a CNN's last grid by rows."""
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
