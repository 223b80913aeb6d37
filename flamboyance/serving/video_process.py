"""The process that decodes videos for a server: `python -m flamboyance.serving.video_process MEMORY`.

Videos of strangers are decoded outside of the server. A file of two kilobytes may list frames whose index takes
gigabytes, and one of megabytes may hold hours: this process has a limit on its memory, and the server ends it when its
time is over (videos.py).

It writes a line when it is ready. Then it reads requests from its standard input: a line of JSON with `size`, `frames`,
`per_second` and `max_pixels`, and `size` bytes of a video. For each it writes the frames: a line of JSON with `width`
and `height`, and the frame's RGB bytes; and at last a line with `error`, a text, or null.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from flamboyance.images.loading import ImageError
from flamboyance.videos import VideoSampling, find_video


def main() -> None:
    limit_memory(int(sys.argv[1]))
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    write(answers, {"ready": True})
    while line := requests.readline():
        request = json.loads(line)
        content = requests.read(request["size"])
        if len(content) < request["size"]:  # the server has ended
            return
        error = None
        try:
            answer(content, request, answers)
        except (ImageError, ImportError) as failed:
            error = str(failed)
        except MemoryError:
            error = "decoding the video takes too much memory"
        write(answers, {"error": error})


def answer(content: bytes, request: dict[str, Any], answers: Any) -> None:
    """Writes the frames of one video."""
    video = find_video(content)
    if video is None:
        raise ImageError(f"the file of {len(content)} bytes is not a video")
    sampling = VideoSampling(request["frames"], request["per_second"])
    for frame in video.frames(sampling, request["max_pixels"]):
        write(answers, {"width": frame.width, "height": frame.height}, frame.tobytes())


def write(answers: Any, header: dict[str, Any], content: bytes = b"") -> None:
    answers.write(json.dumps(header).encode() + b"\n")
    answers.write(content)
    answers.flush()


def limit_memory(size: int) -> None:
    """Lets the process allocate `size` bytes more than it has. Without effect where the system is not Linux."""
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[5])
    except (ImportError, OSError):
        return
    most = pages * resource.getpagesize() + size
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))


if __name__ == "__main__":
    main()
