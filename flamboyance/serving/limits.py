"""What the server takes on; beyond it, requests are refused with a clear status."""

from __future__ import annotations

from dataclasses import dataclass

MEBI = 2**20


@dataclass(frozen=True)
class Limits:
    """
    Attributes:
        rows: texts that are generated together.
        queue: further requests that wait, or are being read; beyond them, 429.
        seconds: of a request, from its first byte to its last.
        body: bytes of a request's body.
        bodies: bytes of all bodies that are being read or wait.
        images: of a request, or of a task; videos count as images.
        image_bytes: of the file of one image or video.
        pixels: of one image.
        video_pixels: of a video's frame: 4K.
        video_seconds: of decoding one video.
        video_memory: bytes that decoding a video may take.
        frames: of the videos of a request, or of a task; those that are encoded already cost nothing and do not count.
        tokens: that a request may generate in each choice.
        default_tokens: that a request generates if it does not say.
        choices: `n` of a request.
        tasks: few-shot tasks.
        media: bytes of encoded images that are kept.
        body_seconds: until a request's body has arrived.
        header_seconds: until a connection has sent the headers of its first request.
        stall_seconds: that a client may leave its answer unread while more of it waits.
        connections: open at a time.
    """

    rows: int = 32
    queue: int = 128
    seconds: float = 120.0
    body: int = 32 * MEBI
    bodies: int = 256 * MEBI
    images: int = 64
    image_bytes: int = 20 * MEBI
    pixels: int = 40_000_000
    video_pixels: int = 9_000_000
    video_seconds: float = 20.0
    video_memory: int = 2048 * MEBI
    frames: int = 256
    tokens: int = 512
    default_tokens: int = 64
    choices: int = 8
    tasks: int = 64
    media: int = 1024 * MEBI
    body_seconds: float = 30.0
    header_seconds: float = 20.0
    stall_seconds: float = 20.0
    connections: int = 1000
