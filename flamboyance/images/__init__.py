"""Images: anything that is a picture -> PIL RGB -> the float tensor (C, H, W) that a vision tower takes."""

from flamboyance.images.loading import MAX_PIXELS, ImageError, ImageTooLargeError, load_frames, load_image
from flamboyance.images.preprocessor_config import OPENAI_MEAN, OPENAI_STD
from flamboyance.images.processor import ImageProcessor
from flamboyance.images.suffixes import SUFFIXES

__all__ = [
    "MAX_PIXELS",
    "OPENAI_MEAN",
    "OPENAI_STD",
    "SUFFIXES",
    "ImageError",
    "ImageProcessor",
    "ImageTooLargeError",
    "load_frames",
    "load_image",
]
