"""Video files, read by PyAV, whose wheels hold FFmpeg's libraries.

A file is read twice: once for the times of its frames, without decoding any, which costs little and needs no trust in
what a header states about length and rate; and once from a key frame before each frame that is wanted.
"""

from __future__ import annotations

import io
import struct
from bisect import bisect_right
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from flamboyance.images.loading import MAX_PIXELS, ImageError, ImageTooLargeError
from flamboyance.videos.sampling import VideoSampling
from flamboyance.videos.timeline import shown_at

# How a stored picture is turned or mirrored upright. The display matrix ((a, b), (c, d)) maps stored positions to shown
# ones: if rows stay rows, the signs are those of a and d; if they become columns, those of b and c.
_UPRIGHT = {
    ("rows", 1, 1): None,
    ("rows", -1, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    ("rows", 1, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    ("rows", -1, -1): Image.Transpose.ROTATE_180,
    ("columns", 1, -1): Image.Transpose.ROTATE_270,
    ("columns", -1, 1): Image.Transpose.ROTATE_90,
    ("columns", 1, 1): Image.Transpose.TRANSPOSE,
    ("columns", -1, -1): Image.Transpose.TRANSVERSE,
}
THREADS = 4  # of a decoder; FFmpeg's default is one for each core, up to 16, each with memory of its own
SHORT = 0.95  # of the frames that an index lists, or of the length that a header states: with less, the end is missing
_STATED = ("matroska", "flv")  # containers whose header states a length, if the file was not recorded live
_FROM_START = ("mpeg",)  # containers whose frames share timestamps: after a seek, FFmpeg gives them to other frames


def decoded(
    source: Path | bytes,
    name: str,
    container: str,
    sampling: VideoSampling,
    max_pixels: int | None,
    rng: np.random.Generator | None,
) -> Iterator[Image.Image]:
    """The sampled frames; see `VideoFile.frames`. `container`: FFmpeg's name of the format."""
    limit = MAX_PIXELS if max_pixels is None else min(max_pixels, MAX_PIXELS)
    with _opened(source, name, container, limit) as (file, stream):
        _check_size(stream, name, limit)
        timeline = _timeline(file, stream, name, container)
    seconds = [float((stamp - timeline.stamps[0]) * timeline.unit) for stamp in timeline.stamps]
    end = seconds[-1] + timeline.last
    chosen = [timeline.stamps[i] for i in shown_at(seconds, sampling.times(end, len(seconds), rng))]
    with _opened(source, name, container, limit) as (file, stream):
        yield from _pictures(file, stream, name, chosen, timeline)


@contextmanager
def _opened(source: Path | bytes, name: str, container: str, limit: int) -> Generator[tuple[Any, Any]]:
    """The open file and its stream of pictures. Errors of FFmpeg become ImageErrors.

    `limit`: pixels of a frame. The decoder has it too: the frames of a stream may be larger than its header says, and
    opening a file decodes some.
    """
    try:
        import av  # an optional dependency
        from av.stream import Disposition
    except ImportError as error:
        raise ImportError(
            f"{name} is a video, which needs PyAV: pip install 'flamboyance[video]', or pip install av"
        ) from error
    try:
        # FFmpeg is given an open file, not a name that it may take for an address, and the format that was recognised.
        with (
            io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as content,
            av.open(content, format=container, options={"max_pixels": str(limit)}, metadata_errors="replace") as file,
        ):
            # The cover of a song is a stream of one picture.
            streams = [stream for stream in file.streams.video if not stream.disposition & Disposition.attached_pic]
            if not streams:
                holds = "sound alone" if file.streams.audio else "neither pictures nor sound"
                raise ImageError(f"{name} has no video in it: it holds {holds}; give a file with pictures")
            streams[0].codec_context.options = {"max_pixels": str(limit)}
            streams[0].codec_context.thread_count = THREADS
            yield file, streams[0]
    except (av.error.FFmpegError, OSError) as error:
        said = getattr(error, "strerror", None) or error
        raise ImageError(f"{name} is a truncated or damaged video ({said}); download or save it again") from error


def _check_size(stream: Any, name: str, limit: int) -> None:
    width, height = stream.width, stream.height
    if width * height > limit:
        raise ImageTooLargeError(f"{name} is too large: {width} x {height} pixels, limit {limit}; scale it down")


@dataclass(frozen=True)
class _Timeline:
    """The frames of a stream, in the order in which they are shown.

    Attributes:
        stamps: when each is shown, in `unit`s.
        keys: the stamps of frames that can be decoded without others, in order; empty if seeking leads astray.
        unit: seconds.
        last: for how long the last one is shown, in seconds.
        counted: frames are told by their number from the start, as the stamps of decoded ones are not theirs.
    """

    stamps: list[int]
    keys: list[int]
    unit: Any
    last: float
    counted: bool


def _timeline(file: Any, stream: Any, name: str, container: str) -> _Timeline:
    stamps, keys, last, end = [], [], 0, 0.0
    for packet in file.demux() if container in _STATED else file.demux(stream):
        stamp = packet.dts if packet.pts is None else packet.pts
        if stamp is None or not packet.size or packet.is_discard:
            continue
        end = max(end, float((stamp + (packet.duration or 0)) * packet.time_base))
        if packet.stream_index != stream.index:
            continue  # sound may last longer than pictures
        if not stamps or stamp >= max(stamps[-32:]):
            last = packet.duration or 0
        stamps.append(stamp)
        if packet.is_keyframe:
            keys.append(stamp)
    if not stamps:
        raise ImageError(f"{name} is a video without a frame; download or save it again")
    missing = _missing(file, stream, container, len(stamps), max(stamps) + last, end)
    if missing:
        raise ImageError(f"{name} is a truncated video: it holds {missing}; download or save it again")
    # AVI has no times of frames. FFmpeg finds those of MPEG-4, but to frames of H.264 it gives the order of decoding.
    counted = container == "avi" and stream.codec_context.has_b_frames and stamps == sorted(stamps)
    stamps.sort()
    mean = (stamps[-1] - stamps[0]) / (len(stamps) - 1) if len(stamps) > 1 else 0
    keys = [] if container in _FROM_START else sorted(keys)
    return _Timeline(stamps, keys, stream.time_base, float((last or mean) * stream.time_base), counted)


def _missing(file: Any, stream: Any, container: str, frames: int, shown: int, end: float) -> str:
    """What a file holds of what it should, if its end is missing; "" if it is whole, or states no length.

    Args:
        frames, shown: of the pictures, their number and their end, in the stream's unit.
        end: of the last packet of any stream, in seconds.
    """
    if container in _STATED:
        stated = (file.duration or 0) / 1e6
        return f"{end:.1f} of the {stated:.1f} seconds that its header states" if end < SHORT * stated else ""
    if container not in ("mov", "avi"):
        return ""
    # A clip that was cut without encoding it again has fewer frames than its index lists, too: FFmpeg leaves out those
    # before its start. But they reach to its end. An AVI's unit is a frame, and its duration is cut to the file's size.
    duration = stream.frames if container == "avi" else stream.duration
    short = not duration or shown - (stream.start_time or 0) < SHORT * duration
    if frames < SHORT * stream.frames - 1 and short:
        return f"{frames} of the {stream.frames} frames that its index lists"
    return ""


def _pictures(file: Any, stream: Any, name: str, chosen: list[int], timeline: _Timeline) -> Iterator[Image.Image]:
    """The frames of the chosen stamps, which are in order and may repeat."""
    aspect = float(stream.sample_aspect_ratio or 1)
    if timeline.counted:
        yield from _counted(file.decode(stream), aspect, name, chosen, timeline.stamps)
        return
    keys = timeline.keys
    frame, stamp, ahead = None, 0, None
    for wanted in chosen:
        if frame is None or stamp < wanted:
            key = keys[max(0, bisect_right(keys, wanted) - 1)] if keys else -inf
            if ahead is None or key > stamp:
                if keys and key > keys[0]:
                    file.seek(key, stream=stream)
                ahead = file.decode(stream)
                frame, stamp = _next(ahead, name, at_end=inf)
                if stamp > wanted:  # the file's index led too far
                    file.seek(min(chosen[0], 0), stream=stream)
                    ahead, keys = file.decode(stream), []
                    frame, stamp = _next(ahead, name)
            while stamp < wanted:
                frame, stamp = _next(ahead, name)
        yield _picture(frame, aspect, name)


def _counted(
    ahead: Iterator[Any], aspect: float, name: str, chosen: list[int], stamps: list[int]
) -> Iterator[Image.Image]:
    """As `_pictures`, of all frames from the start, which have these stamps."""
    frame, stamp, remaining = None, -1, iter(stamps)
    for wanted in chosen:
        while frame is None or stamp < wanted:
            (frame, _), stamp = _next(ahead, name), next(remaining)
        yield _picture(frame, aspect, name)


def _next(ahead: Iterator[Any], name: str, at_end: float | None = None) -> tuple[Any, Any]:
    """The next decoded frame and its stamp. `at_end`: the stamp where there is none, which is an error without it."""
    frame = next(ahead, None)
    if frame is None and at_end is not None:
        return None, at_end
    stamp = None if frame is None else frame.dts if frame.pts is None else frame.pts
    if frame is None or stamp is None or frame.is_corrupt:
        raise ImageError(f"{name} is a damaged video: a frame cannot be decoded; download or save it again")
    return frame, stamp


def _picture(frame: Any, aspect: float, name: str) -> Image.Image:
    """A frame upright, RGB, with square pixels. `aspect`: width of its pixels / height."""
    picture = frame.to_image()
    if aspect > 0 and aspect != 1:
        width = round(picture.width * aspect)
        if not 0 < width * picture.height <= MAX_PIXELS:
            raise ImageError(f"{name} is a damaged video: its pixels are {aspect:g} times as wide as high")
        picture = picture.resize((width, picture.height))
    turn = _upright(frame.side_data.get("DISPLAYMATRIX"))
    return picture if turn is None else picture.transpose(turn)


def _upright(matrix: Any) -> Image.Transpose | None:
    """The turn or mirroring that is nearest to a display matrix of FFmpeg's: 9 integers, three rows."""
    if matrix is None:
        return None
    a, b, _, c, d, *_ = struct.unpack("9i", bytes(matrix))
    kind, first, second = ("rows", a, d) if abs(a) + abs(d) >= abs(b) + abs(c) else ("columns", b, c)
    return _UPRIGHT[kind, -1 if first < 0 else 1, -1 if second < 0 else 1]
