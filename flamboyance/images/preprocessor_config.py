"""Hugging Face's `preprocessor_config.json` in its many forms <-> the arguments of `ImageProcessor`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from PIL.Image import Resampling

from flamboyance.files import write_json

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)

FILE_NAME = "preprocessor_config.json"

# Kinds that resize, crop and normalize and do nothing else: `ImageProcessor` gives what transformers gives. Others do
# something that their configs need not say, such as LeViT, which resizes to more than its size.
KINDS = (
    *("CLIP", "ChineseCLIP", "Siglip", "Bit", "ViT", "DeiT", "Beit", "ConvNext", "DINOv3ViT", "Blip", "Llava"),
    *("MobileNetV1", "MobileNetV2", "Pvt", "Segformer", "OwlViT", "Flava", "Gemma3"),
)
STEPS = ("do_pad", "do_flip_channel_order", "crop_pct", "keep_aspect_ratio", "size_divisor")
"""Keys of steps that `ImageProcessor` does not do."""


def find(name_or_dir: str | Path, **hub: Any) -> dict[str, Any]:
    """The preprocessor config of a directory or Hub repository; OSError where there is none."""
    from transformers.utils.hub import cached_file

    for filename in (FILE_NAME, "processor_config.json"):
        path = cached_file(str(name_or_dir), filename, _raise_exceptions_for_missing_entries=False, **hub)
        config = json.loads(Path(path).read_text(encoding="utf-8")) if path else {}
        # Processors saved by transformers 5 keep the image processor inside their own file.
        config = config if filename == FILE_NAME else config.get("image_processor", {})
        if config:
            return config
    raise OSError(f"'{name_or_dir}' holds no {FILE_NAME}; pass an ImageProcessor, such as ImageProcessor.clip(224)")


def save(config: dict[str, Any], directory: str | Path) -> None:
    Path(directory).mkdir(parents=True, exist_ok=True)
    write_json(Path(directory) / FILE_NAME, config, indent=2)


def read(config: dict[str, Any]) -> dict[str, Any]:
    """`size`, `crop`, `mean`, `std`, `resample` of a config of one of KINDS; DINOv2's is BiT.

    Raises:
        ValueError: a kind or a step that is not supported, or images of different shapes.
    """
    kind = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "CLIP")
    for key in ("do_resize", "do_rescale"):
        if not config.get(key, True):
            raise ValueError(f"the {kind} preprocessor config has {key}=false; expected true")
    if abs(config.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-3:
        raise ValueError(
            f"the {kind} preprocessor config has rescale_factor={config['rescale_factor']}; expected 1/255"
        )
    if "max_num_patches" in config:
        raise ValueError(f"{kind} takes images of varying shape; use a vision tower of fixed resolution")
    _check_steps(config, kind)
    size, crop = _sizes(config, kind)
    of_clip = kind.startswith(("CLIP", "Bit"))
    mean = config.get("image_mean") or (OPENAI_MEAN if of_clip else (0.5, 0.5, 0.5))
    std = config.get("image_std") or (OPENAI_STD if of_clip else (0.5, 0.5, 0.5))
    if not config.get("do_normalize", True):
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    resample = config.get("resample", Resampling.BILINEAR if kind.startswith("ViT") else Resampling.BICUBIC)
    return {"size": size, "crop": crop, "mean": tuple(mean), "std": tuple(std), "resample": resample}


def _check_steps(config: dict[str, Any], kind: str) -> None:
    advice = "pass an ImageProcessor of your own, or use another vision tower"
    for step in STEPS:
        if config.get(step) and not (step == "crop_pct" and kind.startswith("ConvNext")):
            raise ValueError(
                f"the {kind} preprocessor config has {step}={config[step]}, a step that is not done; {advice}"
            )
    if re.sub(r"(ImageProcessor|FeatureExtractor)\w*$", "", kind) not in KINDS:
        raise ValueError(f"the preprocessor config is of {kind}; expected one of {', '.join(KINDS)}; {advice}")


def write(
    size: int | tuple[int, int],
    crop: tuple[int, int] | None,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    resample: int,
) -> dict[str, Any]:
    """The config for these arguments, in the form of transformers' CLIPImageProcessor."""
    height, width = (size, size) if isinstance(size, int) else size
    crop_height, crop_width = crop or (height, width)
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": size} if isinstance(size, int) else {"height": height, "width": width},
        "resample": int(resample),
        "do_center_crop": crop is not None,
        "crop_size": {"height": crop_height, "width": crop_width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
    }


def _sizes(config: dict[str, Any], kind: str) -> tuple[int | tuple[int, int], tuple[int, int] | None]:
    size = config.get("size", 224)
    cropped = config.get("do_center_crop", "crop_size" in config or kind.startswith(("CLIP", "Bit")))
    crop = _pair(config.get("crop_size", size)) if cropped else None
    if isinstance(size, dict) and "height" in size:
        return (size["height"], size["width"]), crop
    edge = size.get("shortest_edge") if isinstance(size, dict) else size
    if not isinstance(edge, int) or (isinstance(size, dict) and "longest_edge" in size):
        raise ValueError(f"the {kind} preprocessor config has size={size}; expected height and width, or shortest_edge")
    if kind.startswith("ConvNext"):  # as in transformers: below 384, cropped from a larger image; else resized exactly
        return ((edge, edge), None) if edge >= 384 else (int(edge / config.get("crop_pct", 224 / 256)), (edge, edge))
    if isinstance(size, int) and not cropped:
        return (edge, edge), None  # ViT's old form
    if crop is None:
        raise ValueError(f"the {kind} preprocessor config has size={size} and no crop: images would differ in shape")
    return edge, crop


def _pair(size: Any) -> tuple[int, int]:
    if isinstance(size, dict):
        return (size["height"], size["width"]) if "height" in size else (size["shortest_edge"],) * 2
    return size, size
