"""Whether something is a video, and its frames: video files, and GIF, WebP, PNG and AVIF files that move."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from flamboyance import images
from flamboyance.images.containers import HEAD, container
from flamboyance.images.loading import ImageError, local_path
from flamboyance.images.suffixes import VIDEO_SUFFIXES
from flamboyance.videos import animation
from flamboyance.videos.decoding import decoded
from flamboyance.videos.sampling import STILL, VideoSampling


@dataclass(frozen=True, eq=False)
class VideoFile:
    """A video, not decoded.

    Attributes:
        source: its path, its content, or an open animation of Pillow.
        name: in messages.
        container: FFmpeg's name of the container; "" for an animation.
    """

    source: Path | bytes | Image.Image
    name: str
    container: str

    def frames(
        self, sampling: VideoSampling, max_pixels: int | None = None, rng: np.random.Generator | None = None
    ) -> Iterator[Image.Image]:
        """The sampled frames in order, upright, RGB; one is decoded at a time.

        Args:
            max_pixels: videos with larger frames are refused; at most, and by default, `MAX_PIXELS`.
            rng: as of `VideoSampling.times`.

        Raises:
            ImageTooLargeError: too many pixels in a frame.
            ImageError: a damaged or truncated file, or one without pictures.
            ImportError: PyAV, which reads video files, is not installed.
        """
        if not self.container:
            return animation.frames(self.source, self.name, sampling, max_pixels, rng)
        assert not isinstance(self.source, Image.Image)
        return decoded(self.source, self.name, self.container, sampling, max_pixels, rng)

    def middle(self, max_pixels: int | None = None) -> Image.Image:
        """The frame in the middle; raises as `frames`."""
        return next(self.frames(STILL, max_pixels))


def find_video(medium: Any) -> VideoFile | None:
    """The video that a path, `file://` URL, content or open Pillow image holds; None for anything else, such as a
    picture or an array.

    Raises:
        ImageError: no such file, an empty one, or one with a video's suffix that is no video.
    """
    if isinstance(medium, Image.Image):
        return VideoFile(medium, "the PIL image", "") if animation.moves(medium) else None
    if isinstance(medium, (bytes, bytearray, memoryview)):
        content = bytes(medium)
        return _video(content, content[:HEAD], f"the video of {len(content)} bytes")
    if not isinstance(medium, (str, Path)):
        return None
    path = local_path(medium)
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError as error:
        raise ImageError(f"'{path}' cannot be opened: {error.strerror}") from error
    found = _video(path, head, f"'{path}'")
    if found is None and path.suffix.lower() in VIDEO_SUFFIXES:
        raise ImageError(
            f"'{path}' is not a video of a known format (it starts with {head[:8]!r}); use MP4, WebM, MKV, MOV or AVI"
        )
    return found


def _video(source: Path | bytes, head: bytes, name: str) -> VideoFile | None:
    if (found := container(head)) is not None:
        return VideoFile(source, name, found)
    return VideoFile(source, name, "") if animation.could_move(head) and animation.moves(source) else None


def frames_of(medium: Any, sampling: VideoSampling | None) -> Iterable[Any]:
    """The frames of one medium: those sampled of a video file, the entries of a list or a 4-D array, not decoded; or
    an image itself, not decoded.

    Args:
        sampling: of a video file; None for a model of still images, which is shown the middle frame, with a warning.

    Raises:
        ImageError: a video that cannot be read, or a list without frames.
    """
    video = find_video(medium)
    if video is None:
        return images.frames_of(medium)
    if sampling is None:
        warnings.warn(
            "videos are given to a model of still images: it is shown the middle frame of each, because it has no time "
            "embeddings for the order of frames",
            stacklevel=2,
        )
    return video.frames(sampling or STILL)
