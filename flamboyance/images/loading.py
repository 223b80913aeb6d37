"""Anything that is an image -> an upright 8-bit RGB PIL image, or an error that says what is wrong."""

from __future__ import annotations

import io
import struct
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np
from PIL import Image, UnidentifiedImageError

from flamboyance.files import local
from flamboyance.images.containers import HEAD, container

MAX_PIXELS = 178_956_970
"""The largest image that is decoded, in pixels: Pillow's own limit (twice its MAX_IMAGE_PIXELS)."""

PHOTOMETRIC, WHITE_IS_ZERO = 262, 0  # a tag of TIFF, and its value where level 0 is white, as in many scans

STRIP = 1 << 22
"""Number of pixels that are converted at a time."""

_EXIF_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Pillow reads more formats, but runs some as programs (EPS, by Ghostscript).
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "JPEG2000", "PPM", "TGA", "QOI", "HEIF")
_ANIMATED = ("GIF", "WEBP", "PNG", "AVIF", "TIFF")  # formats of several frames, each of which could be the image
# The errors of Pillow's decoders on damaged data. SyntaxError means "broken file" in its PNG and TIFF readers.
DECODE_ERRORS = (
    *(OSError, SyntaxError, ValueError, TypeError, LookupError, AttributeError, EOFError, RuntimeError),
    *(struct.error, zlib.error),
)


class ImageError(ValueError):
    """An image cannot be read. The message says which, what is wrong, and what to do."""


class ImageTooLargeError(ImageError):
    """An image has too many pixels."""


def load_image(source: Any, max_pixels: int | None = None, frame: int | None = None) -> Image.Image:
    """Decodes one image to an upright 8-bit RGB PIL image.

    EXIF orientation is applied, transparency is laid on white, and 16-bit levels are scaled to 8. An upright RGB PIL
    image is returned as it is, not copied.

    Args:
        source: a PIL image, a path or `file://` URL, the bytes of an image file, a binary file object, a numpy array
            (H, W) or (H, W, 1|3|4), or a torch tensor (1|3|4, H, W). Channels may be at either end if the shape is
            unambiguous. Arrays and tensors hold uint8, uint16, bool, or floats from 0 to 1.
        max_pixels: images with more pixels are refused before they are decoded; at most, and by default, `MAX_PIXELS`.
        frame: the frame of an animation (GIF, WebP, PNG, AVIF), or the page of a TIFF. Without it, files of several
            frames are refused: none of the frames is the image.

    Raises:
        ImageTooLargeError: too many pixels.
        ImageError: a missing, empty, truncated or damaged file, no image, an animation, or one without that frame.
    """
    if isinstance(source, Image.Image):
        _choose(source, "the PIL image", frame)
        return _decode(source, "the PIL image", max_pixels)
    if _is_tensor(source):
        source = source.detach().cpu()
        source = source.float() if source.is_floating_point() else source  # numpy has no bfloat16
        return _from_array(source.numpy(), "the tensor", channel_axes=(0, 2))
    if isinstance(source, np.ndarray):
        return _from_array(source, "the array")
    if isinstance(source, (str, Path)):
        path = local_path(source)
        return _open(path, f"'{path}'", max_pixels, frame)
    if hasattr(source, "read"):
        source = source.read()
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
        if not data:
            raise ImageError("the image's bytes are empty; pass the whole content of an image file")
        return _open(io.BytesIO(data), f"the image of {len(data)} bytes", max_pixels, frame)
    raise ImageError(
        f"a {type(source).__name__} is not an image; pass a PIL image, a path, bytes, an array or a tensor"
    )


def frames_of(medium: Any) -> Sequence[Any]:
    """The frames of one medium, not decoded: an image itself, or the entries of a list or a 4-D array (a video)."""
    if (isinstance(medium, np.ndarray) or _is_tensor(medium)) and medium.ndim == 4:
        medium = list(medium)
    if not isinstance(medium, (list, tuple)):
        return [medium]
    if not medium:
        raise ImageError("a video (list of frames) is empty; give at least one frame")
    return medium


def _is_tensor(value: Any) -> bool:
    """Whether a value is a torch tensor. There is none where torch was not imported, which takes seconds: a process
    that only decodes does without it."""
    return isinstance(value, getattr(sys.modules.get("torch"), "Tensor", ()))


def local_path(source: str | Path) -> Path:
    text = str(source)
    scheme = text.split(":", 1)[0].lower() if isinstance(source, str) else ""
    if scheme in ("http", "https", "ftp", "s3", "gs", "data"):
        raise ImageError(f"'{text[:100]}' is a URL, which is not fetched; pass a file or its bytes")
    path = Path(url2pathname(urlsplit(text).path)) if scheme == "file" else local(source)
    try:
        if path.is_dir():
            raise ImageError(f"'{path}' is a directory, not an image file; pass the files in it one by one")
        if not path.exists():
            raise ImageError(f"no such image file: '{text[:300]}' (looked in {Path.cwd()})")
        if not path.is_file():  # a FIFO would block, a device may never end
            raise ImageError(f"'{path}' is not a regular file; save the image as one, or pass its bytes")
        if path.stat().st_size == 0:
            raise ImageError(f"'{path}' is empty (0 bytes); download or save it again")
    except OSError as error:  # a name that is too long, a directory without permission
        raise ImageError(f"'{text[:300]}' cannot be opened: {error.strerror}") from error
    return path


def opened(file: Path | io.BytesIO) -> Image.Image:
    """A file of one of FORMATS, not decoded. Raises what Pillow raises."""
    Image.init()  # loads the plugins of this build of Pillow
    return Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])


def _open(file: Path | io.BytesIO, name: str, max_pixels: int | None, frame: int | None) -> Image.Image:
    try:
        image = opened(file)
    except UnidentifiedImageError as error:
        start = file.getvalue()[:HEAD] if isinstance(file, io.BytesIO) else file.open("rb").read(HEAD)
        if container(start) is not None:
            raise ImageError(f"{name} is a video, and an image is expected here; give one of its frames") from error
        raise ImageError(
            f"{name} is not an image of a known format (it starts with {start[:8]!r}); use JPEG, PNG or WebP"
        ) from error
    except Image.DecompressionBombError as error:
        raise ImageTooLargeError(f"{name} is too large: {error} Scale it down") from error
    except DECODE_ERRORS as error:
        raise ImageError(f"{name} cannot be read: {error}") from error
    with image:
        _choose(image, name, frame)
        return _decode(image, name, max_pixels)


def _choose(image: Image.Image, name: str, frame: int | None) -> None:
    """Moves to the given frame of a file with several. The preview in a phone's JPEG does not count as a frame."""
    if image.format not in _ANIMATED:
        return None
    if frame is None:
        if is_animated(image):
            raise ImageError(
                f"{name} is an animation or a document of several frames; choose one with load_image(path, frame=0), "
                "or pass the frames as a list, as a video, to a model that was trained on videos"
            )
        return None
    frames = 1
    try:
        frames = getattr(image, "n_frames", 1)
        if 0 <= frame < frames:
            image.seek(frame)
            if image.format == "PNG" and image.palette:
                image.palette.dirty = 1  # Pillow forgets to lay it on again when it goes back to an earlier frame
            return None
    except DECODE_ERRORS as error:
        if frame == 0:
            return None  # a damaged second frame does not matter; a damaged first frame is reported by its decode
        raise ImageError(f"frame {frame} of {name} cannot be read: {error}") from error
    raise ImageError(f"{name} has {frames} frame(s), counted from 0; it has no frame {frame}")


def is_animated(image: Image.Image) -> bool:
    """Whether an open file has several frames. They are not counted: that reads the whole file, which may hold a
    million frames of a few bytes."""
    try:
        return getattr(image, "is_animated", False)
    except DECODE_ERRORS:  # a damaged second frame does not matter
        return False


def _decode(image: Image.Image, name: str, max_pixels: int | None = None) -> Image.Image:
    width, height = image.size
    limit = MAX_PIXELS if max_pixels is None else min(max_pixels, MAX_PIXELS)
    if width * height > limit:  # known from the header: nothing is decoded yet
        raise ImageTooLargeError(f"{name} is too large: {width} x {height} pixels, limit {limit}; scale it down")
    if not width * height:
        raise ImageError(f"{name} has no pixels: it is {width} wide and {height} high")
    try:
        image.load()
        return _to_rgb(_upright(image), name)
    except ImageError:
        raise
    except DECODE_ERRORS as error:
        raise ImageError(f"{name} is truncated or damaged ({error}); download or save it again") from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        turn = _TURNS.get(image.getexif().get(_EXIF_ORIENTATION, 1))
    except DECODE_ERRORS:  # only the EXIF data is damaged
        turn = None
    if turn is None:
        return image
    upright = image.transpose(turn)
    # Without the EXIF data, which would turn it again.
    upright.info = {key: value for key, value in image.info.items() if key == "transparency"}
    return upright


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":  # Pillow would clip these to 255
        return _from_levels(image, f"{name} (mode {image.mode})")
    if image.mode in ("RGBa", "La"):
        image = image.convert(image.mode.upper())
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        return _on_white(image)
    return image.convert("RGB")


def _from_levels(image: Image.Image, name: str) -> Image.Image:
    """An image of more than 8 bits; a PNG may have one level that is transparent."""
    levels, clear = np.asarray(image), image.info.get("transparency")
    if image.format == "PPM" and levels.dtype == np.int32:  # to 65535, whatever the file's largest is
        levels = levels.astype(np.uint16)
    tags: Any = getattr(image, "tag_v2", {})
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO and levels.dtype == np.uint16:  # Pillow inverts these of 8 bits alone
        levels = np.iinfo(np.uint16).max - levels
    flat = _from_array(levels, name)
    if isinstance(clear, int):
        flat.paste("white", mask=Image.fromarray(levels == clear))
    return flat


def _on_white(image: Image.Image) -> Image.Image:
    """Lays transparency on white, a strip at a time: whole copies of a large image would take gigabytes."""
    width, height = image.size
    rows = max(1, STRIP // width)
    flat = Image.new("RGB", image.size)
    for top in range(0, height, rows):
        box = (0, top, width, min(top + rows, height))
        layer = image if rows >= height else image.crop(box)
        layer = layer.convert("RGBA")
        flat.paste(Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB"), box)
    return flat


def _from_array(array: np.ndarray, name: str, channel_axes: tuple[int, int] = (2, 0)) -> Image.Image:
    """`channel_axes`: the axes that may hold 1, 3 or 4 channels, in order of preference."""
    name = f"{name} of shape {array.shape}"
    if array.ndim == 3:
        axis = next((axis for axis in channel_axes if array.shape[axis] in (1, 3, 4)), None)
        array = np.moveaxis(array, axis, 2) if axis is not None else array[None]
    if array.ndim not in (2, 3):
        raise ImageError(f"{name} is not an image; expected (H, W), (H, W, 1|3|4) or (1|3|4, H, W)")
    if not array.size:
        raise ImageError(f"{name} has no pixels")
    levels = np.ascontiguousarray(_to_uint8(array.astype(array.dtype.newbyteorder("="), copy=False), name))
    return _decode(Image.fromarray(levels[..., 0] if levels.shape[2:] == (1,) else levels), name)


def _to_uint8(array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    if array.dtype == np.uint16:
        return ((array.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    low, high = array.min(), array.max()
    if array.dtype.kind == "f":
        if not (low >= 0 and high <= 1):  # also true for NaN
            raise ImageError(
                f"{name} holds floats from {low:.4g} to {high:.4g}; expected 0 to 1: undo the normalisation, or cast "
                "levels of 0 to 255 to uint8"
            )
        return np.rint(array * 255).astype(np.uint8)
    if array.dtype == np.int32 and low >= 0 and high <= 65535:  # Pillow's mode I: 8- or 16-bit levels
        return _to_uint8(array.astype(np.uint8 if high <= 255 else np.uint16), name)
    raise ImageError(f"{name} holds {array.dtype} from {low} to {high}; cast it to uint8, uint16 or floats of 0 to 1")
