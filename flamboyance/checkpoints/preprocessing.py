"""The preprocessing that a vision tower expects, and a check that a processor does it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError

from flamboyance import hub
from flamboyance.images import ImageProcessor
from flamboyance.model.vision import tower_preprocessing

CLOSE = 5e-3  # tolerance of a mean or deviation, which files often round


def image_processor_of(vision: dict[str, Any]) -> ImageProcessor:
    """The preprocessing in a tower's directory or repository, or else the one that its family was trained with.

    Args:
        vision: the tower's spec, as FlamingoConfig.vision.
    """
    stated = _stated(vision["name"]) if vision["library"] == "transformers" else None
    if stated is not None:
        return stated.of_size(vision["image_size"]) if "image_size" in vision else stated
    family = tower_preprocessing(vision)
    side, levels = family["image_size"], {"mean": family["mean"], "std": family["std"]}
    square = (side, side)
    if family["resize"] == "exact":
        return ImageProcessor(size=square, **levels)
    return ImageProcessor(size=side, crop=square, **levels)


def _stated(name: str | None) -> ImageProcessor | None:
    """The preprocessing in a directory or repository, if there is one."""
    if not name:
        return None
    if Path(name).is_dir():
        return ImageProcessor.from_pretrained(name) if (Path(name) / "preprocessor_config.json").is_file() else None
    try:
        return ImageProcessor.from_pretrained(name, **hub.options(name, {}))
    except (OSError, HFValidationError):  # out of reach, none is stated, or no name of a repository
        return None


def follow_tower(processor: Any, vision: dict[str, Any]) -> None:
    """Checks that a processor prepares images for this tower. A processor without an image processor gets the tower's.

    An image processor that is not ours cannot be checked, and is accepted.

    Args:
        processor: a FlamingoProcessor.
        vision: the tower's spec, as FlamingoConfig.vision.

    Raises:
        ValueError: mean, deviation, size or crop are another tower's.
    """
    given = processor.image_processor
    if given is not None and not isinstance(given, ImageProcessor):
        return
    expected = image_processor_of(vision)
    if given is None:
        processor.image_processor = expected
    elif not _alike(given, expected):
        raise ValueError(
            f"the processor prepares images for another vision tower: {_describe(given)}; {vision['name']} expects "
            f"{_describe(expected)}. Give FlamingoProcessor(None, tokenizer), which then follows the tower; or, for a "
            "tower that was trained otherwise, save its image processor into the tower's directory"
        )


def _alike(given: ImageProcessor, expected: ImageProcessor) -> bool:
    levels = zip((*given.mean, *given.std), (*expected.mean, *expected.std), strict=True)
    return (
        given.image_size == expected.image_size
        and given.size == expected.size
        and all(abs(a - b) < CLOSE for a, b in levels)
    )


def _describe(images: ImageProcessor) -> str:
    height, width = images.image_size
    how = "shortest edge and centre crop" if isinstance(images.size, int) else "resized exactly"
    mean, std = (", ".join(f"{value:.3g}" for value in values) for values in (images.mean, images.std))
    return f"{height}x{width} pixels ({how}), mean {mean}, deviation {std}"
