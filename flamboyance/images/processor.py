"""An image -> the float tensor (C, H, W) that a vision tower takes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from flamboyance.images import preprocessor_config
from flamboyance.images.loading import MAX_PIXELS, ImageTooLargeError, load_image
from flamboyance.images.preprocessor_config import OPENAI_MEAN, OPENAI_STD


@dataclass(frozen=True)
class ImageProcessor:
    """Resize, centre crop, scale to 0..1, normalise: an image -> float32 (3, H, W), as vision towers are evaluated.

    For the same RGB pixels the result equals torchvision's validation transform, and so OpenCLIP's, bit for bit.

    Args:
        size: an int, the shortest edge after resizing, in pixels (as for CLIP); or (height, width) (as for SigLIP).
        crop: (height, width) that is cut from the centre, black beyond the edges; required if `size` is an int.
        mean, std: per RGB channel, of values from 0 to 1.
        resample: Pillow's resampling filter.
    """

    size: int | tuple[int, int]
    crop: tuple[int, int] | None = None
    mean: tuple[float, float, float] = OPENAI_MEAN
    std: tuple[float, float, float] = OPENAI_STD
    resample: int = Image.Resampling.BICUBIC

    def __post_init__(self) -> None:
        if isinstance(self.size, int) and self.crop is None:
            raise ValueError(f"size={self.size} (shortest edge) gives images of different shapes; give crop=(H, W) too")
        size = self.size if isinstance(self.size, tuple) else (self.size, self.size)
        if any(len(edges) != 2 or min(edges) < 1 for edges in (size, self.crop or size)):
            raise ValueError(f"size={self.size}, crop={self.crop}: expected lengths in pixels, 1 or more")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(f"mean={self.mean}, std={self.std}: expected three values each, std above 0")
        Image.Resampling(self.resample)

    @classmethod
    def clip(cls, image_size: int = 224) -> ImageProcessor:
        """OpenAI CLIP's: shortest edge and centre crop of `image_size` pixels, bicubic."""
        return cls(size=image_size, crop=(image_size, image_size))

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the result, in pixels."""
        return self.crop or (self.size if isinstance(self.size, tuple) else (self.size, self.size))

    def of_size(self, side: int) -> ImageProcessor:
        """The same for images of `side` pixels; a crop keeps its share of the resized image."""
        if not isinstance(self.size, int):
            return replace(self, size=(side, side), crop=None)
        return replace(self, size=round(self.size * side / min(self.image_size)), crop=(side, side))

    def __call__(self, image: Any) -> torch.Tensor:
        """Anything `load_image` reads -> float32 (3, H, W)."""
        return self.normalized(self.levels(image))

    def levels(self, image: Any) -> torch.Tensor:
        """The first half: resized and cropped, uint8 (3, H, W). It takes a quarter of the memory."""
        image = load_image(image)
        height, width = self._resized(*image.size)
        if width * height > MAX_PIXELS:
            raise ImageTooLargeError(
                f"the image is too long and thin: {image.width} x {image.height} pixels would become "
                f"{width} x {height}, with its shortest edge at {self.size}; crop it first"
            )
        image = image.resize((width, height), Image.Resampling(self.resample))
        if self.crop and self.crop != (height, width):
            image = image.crop(_centre_box(height, width, *self.crop))
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()

    def normalized(self, levels: torch.Tensor) -> torch.Tensor:
        """The second half: uint8 (…, 3, H, W) -> float32 of the same shape, on the same device."""
        mean, std = (torch.tensor(value, device=levels.device).view(3, 1, 1) for value in (self.mean, self.std))
        return levels.float().div_(255).sub_(mean).div_(std)

    def seen(self, image: Any) -> Image.Image:
        """The part of an image that remains after the crop, with the image's own pixels."""
        image = load_image(image)
        height, width = self._resized(*image.size)
        if not self.crop:
            return image
        left, top, right, bottom = _centre_box(height, width, *self.crop)
        x, y = image.width / width, image.height / height
        return image.crop((round(left * x), round(top * y), round(right * x), round(bottom * y)))

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        if not isinstance(self.size, int):
            return self.size
        if width <= height:
            return int(self.size * height / width), self.size
        return self.size, int(self.size * width / height)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ImageProcessor:
        """From the content of a Hugging Face `preprocessor_config.json`; ValueError if it is not supported."""
        return cls(**preprocessor_config.read(config))

    @classmethod
    def from_pretrained(cls, name_or_dir: str | Path, **hub: Any) -> ImageProcessor:
        """Reads `preprocessor_config.json` of a directory or Hub repository.

        `hub`: local_files_only, cache_dir, revision, token. Raises OSError where there is no such file.
        """
        return cls.from_config(preprocessor_config.find(name_or_dir, **hub))

    def save_pretrained(self, directory: str | Path) -> None:
        """Writes `preprocessor_config.json`, which transformers reads too, into `directory`."""
        preprocessor_config.save(self.to_dict(), directory)

    def to_dict(self) -> dict[str, Any]:
        """The content of `preprocessor_config.json`."""
        return preprocessor_config.write(**vars(self))


def _centre_box(height: int, width: int, crop_height: int, crop_width: int) -> tuple[int, int, int, int]:
    """(left, top, right, bottom), rounded as in torchvision; beyond the edges of a smaller image."""

    def start(length: int, crop: int) -> int:
        return -((crop - length) // 2) if crop > length else round((length - crop) / 2)

    left, top = start(width, crop_width), start(height, crop_height)
    return left, top, left + crop_width, top + crop_height
