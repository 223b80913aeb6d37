"""Videos: files of PyAV (decoding.py) and animations of Pillow (animation.py) -> some of their frames (sampling.py).

The names are imported when they are first used: sampling.py needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flamboyance.videos.files import VideoFile, find_video, frames_of
    from flamboyance.videos.sampling import STILL, VideoSampling

_DEFINED_IN = {
    **dict.fromkeys(("VideoFile", "find_video", "frames_of"), "files"),
    **dict.fromkeys(("STILL", "VideoSampling"), "sampling"),
}

__all__ = ["STILL", "VideoFile", "VideoSampling", "find_video", "frames_of"]


def __getattr__(name: str) -> Any:
    if name not in _DEFINED_IN:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"flamboyance.videos.{_DEFINED_IN[name]}"), name)
