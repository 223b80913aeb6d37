"""How a vision tower's images are prepared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flamboyance.images import ImageProcessor
from flamboyance.model.vision import tower_preprocessing


def image_processor_of(vision: dict[str, Any]) -> ImageProcessor:
    """The preprocessing that a tower's directory states, or else the one that its kind was trained with.

    `vision`: the tower's spec, as FlamingoConfig.vision.
    """
    if vision["name"] and (Path(vision["name"]) / "preprocessor_config.json").is_file():
        return ImageProcessor.from_pretrained(vision["name"])
    told = tower_preprocessing(vision)
    side, means = told["image_size"], {"mean": told["mean"], "std": told["std"]}
    square = (side, side)
    if told["resize"] == "exact":
        return ImageProcessor(size=square, **means)
    return ImageProcessor(size=side, crop=square, **means)
