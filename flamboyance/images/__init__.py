"""Images: anything that is an image -> PIL RGB (loading.py) -> the tensor that a vision tower takes (processor.py).

The names are imported when they are first used: suffixes.py and listing.py need no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from flamboyance.images.suffixes import SUFFIXES

if TYPE_CHECKING:
    from flamboyance.images.loading import (
        MAX_PIXELS,
        ImageError,
        ImageTooLargeError,
        frames_of,
        load_image,
    )
    from flamboyance.images.preprocessor_config import OPENAI_MEAN, OPENAI_STD
    from flamboyance.images.processor import ImageProcessor

_DEFINED_IN = {
    **dict.fromkeys(("MAX_PIXELS", "ImageError", "ImageTooLargeError", "frames_of", "load_image"), "loading"),
    **dict.fromkeys(("OPENAI_MEAN", "OPENAI_STD"), "preprocessor_config"),
    "ImageProcessor": "processor",
}

__all__ = [
    "MAX_PIXELS",
    "OPENAI_MEAN",
    "OPENAI_STD",
    "SUFFIXES",
    "ImageError",
    "ImageProcessor",
    "ImageTooLargeError",
    "frames_of",
    "load_image",
]


def __getattr__(name: str) -> Any:
    if name not in _DEFINED_IN:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"flamboyance.images.{_DEFINED_IN[name]}"), name)
