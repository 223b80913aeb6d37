"""Frames of videos, decoded in a process that has limits on its time and memory (video_process.py)."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

from PIL import Image

from flamboyance.images import ImageError
from flamboyance.videos import VideoSampling

STARTING = 60.0  # seconds until a new process must be ready; a fifth of a second is usual


class SlowVideoError(ImageError):
    """A video is not decoded in time."""


class VideoDecoder:
    """Decodes one video at a time. The process is started for the first one, and again after it was ended.

    Args:
        seconds: of a video.
        pixels: of a frame.
        memory: bytes that the process may allocate to decode.
    """

    def __init__(self, seconds: float, pixels: int, memory: int):
        self.seconds, self.pixels, self.memory = seconds, pixels, memory
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def frames(self, content: bytes, sampling: VideoSampling) -> Iterator[Image.Image]:
        """The sampled frames, one at a time; to be read to the end.

        Raises:
            SlowVideoError: it takes too long.
            ImageError: it cannot be decoded, its frames are too large, or decoding takes too much memory.
        """
        with self._lock:
            process = self._running()
            late = threading.Event()

            def end() -> None:
                late.set()
                process.kill()

            timer = threading.Timer(self.seconds, end)
            timer.start()
            try:
                yield from self._ask(process, content, sampling)
            except (OSError, EOFError):
                self.close()
                if late.is_set():
                    raise SlowVideoError(
                        f"the video takes longer than {self.seconds:g} seconds to decode; shorten it or scale it down"
                    ) from None
                raise ImageError("the video ended the process that decodes it; it is damaged, or too large") from None
            except GeneratorExit:  # the rest is not read, and would be taken for the next answer
                self.close()
                raise
            finally:
                timer.cancel()

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self.close()
            # In a session of its own: Ctrl-C lets the server's requests end.
            self._process = process = subprocess.Popen(
                [sys.executable, "-m", "flamboyance.serving.video_process", str(self.memory)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            timer = threading.Timer(STARTING, process.kill)
            timer.start()
            try:
                _read_line(process)
            except EOFError:
                raise ImageError("the process that decodes videos does not start") from None
            finally:
                timer.cancel()
        return self._process

    def _ask(self, process: subprocess.Popen[bytes], content: bytes, sampling: VideoSampling) -> Iterator[Image.Image]:
        assert process.stdin is not None and process.stdout is not None
        request: dict[str, Any] = {"size": len(content), "max_pixels": self.pixels}
        request |= {"frames": sampling.frames, "per_second": sampling.per_second}
        process.stdin.write(json.dumps(request).encode() + b"\n" + content)
        process.stdin.flush()
        while "error" not in (header := _read_line(process)):
            width, height = header["width"], header["height"]
            data = process.stdout.read(3 * width * height)
            if len(data) < 3 * width * height:
                raise EOFError
            yield Image.frombytes("RGB", (width, height), data)
        if header["error"] is not None:
            raise ImageError(header["error"])


def _read_line(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    """
    Raises:
        EOFError: the process has ended.
    """
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    return json.loads(line)
