"""Animated GIF, WebP, PNG and AVIF files, read by Pillow."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from flamboyance.images.loading import DECODE_ERRORS, ImageError, is_animated, load_image, opened
from flamboyance.videos.sampling import VideoSampling
from flamboyance.videos.timeline import shown_at

KINDS = ("GIF", "WEBP", "PNG", "AVIF")
UNSTATED = 100  # milliseconds of a frame that states no duration, as browsers show it


def could_move(head: bytes) -> bool:
    """Whether a file that begins with `head` is of a format that may hold an animation."""
    return head.startswith((b"GIF8", b"\x89PNG")) or head[8:12] == b"WEBP" or head[4:12] == b"ftypavis"


def moves(source: Path | bytes | Image.Image) -> bool:
    """Whether it has several frames. False for what cannot be opened: `load_image` says why."""
    try:
        if isinstance(source, Image.Image):
            return source.format in KINDS and is_animated(source)
        with _open(source) as image:
            return image.format in KINDS and is_animated(image)
    except (*DECODE_ERRORS, Image.DecompressionBombError):
        return False


def frames(
    source: Path | bytes | Image.Image,
    name: str,
    sampling: VideoSampling,
    max_pixels: int | None,
    rng: np.random.Generator | None,
) -> Iterator[Image.Image]:
    """The sampled frames; see `VideoFile.frames`."""
    image = source if isinstance(source, Image.Image) else _open(source)
    try:
        starts, end = [], 0  # in milliseconds
        for frame in range(getattr(image, "n_frames", 1)):
            image.seek(frame)
            if image.format in ("WEBP", "AVIF"):  # whose duration is known when the frame is decoded
                image.load()
            starts.append(end)
            end += round(image.info.get("duration") or UNSTATED)
    except DECODE_ERRORS as error:
        raise ImageError(f"{name} is truncated or damaged ({error}); download or save it again") from error
    seconds = [start / 1000 for start in starts]
    for frame in shown_at(seconds, sampling.times(end / 1000, len(starts), rng)):
        try:
            shown = load_image(image, max_pixels, frame)
        except ImageError as error:
            raise type(error)(str(error).replace("the PIL image", name)) from error
        yield shown.copy() if shown is image else shown  # the next frame is drawn into the same picture


def _open(source: Path | bytes) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `load_image` has its own limit
        return opened(io.BytesIO(source) if isinstance(source, bytes) else source)
