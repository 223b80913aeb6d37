"""Small video files of known content: frame i is evenly grey, of level 4·i, so that a decoded frame is recognised."""

import io
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

WIDTH, HEIGHT = 64, 32


def grey(number: int) -> np.ndarray:
    return np.full((HEIGHT, WIDTH, 3), 4 * number, np.uint8)


def numbers(frames: Sequence[Image.Image]) -> list[int]:
    """Which frames these were."""
    return [round(float(np.asarray(frame).mean()) / 4) for frame in frames]


def write_video(
    path: Path | io.BytesIO,
    pictures: Sequence[np.ndarray],
    rate: float = 10,
    starts: Sequence[float] | None = None,
    codec: str = "libx264",
    format: str | None = None,
    rotation: int = 0,
    options: dict[str, str] | None = None,
) -> Path | io.BytesIO:
    """Writes RGB pictures (H, W, 3) as a video; `starts`: when each is shown, in seconds, instead of at equal steps."""
    unit = 1 / Fraction(rate) if starts is None else Fraction(1, 1000)
    kind = {} if format is None else {"format": format}
    with av.open(str(path) if isinstance(path, Path) else path, "w", options=options or {}, **kind) as file:
        stream = file.add_stream(codec, rate=Fraction(rate))
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "10", "g": "7"} if codec == "libx264" else {}
        if codec == "mpeg4":
            stream.bit_rate = 8_000_000
        stream.codec_context.time_base = unit
        if rotation:
            stream.set_display_rotation(rotation)
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = number if starts is None else round(1000 * starts[number])
            frame.time_base = unit
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def write_sound(path: Path) -> Path:
    """A file with a second of silence and no picture."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.rate = 16000
        file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path
