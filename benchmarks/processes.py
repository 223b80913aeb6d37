"""Measured processes: started once, called in turns, one JSON object per line in each direction.

It uses the standard library alone, because the reference's environment imports this file too.

A child calls `serve` with its functions, and the parent's `Worker` calls them. Whatever a library prints goes to
stderr.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

SILENCE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONWARNINGS": "ignore",
    "PYTHONNOUSERSITE": "1",
}

# What may be counted as time, and which of `timed`'s figures it is.
CLOCKS = {"wall": "seconds", "processor": "processor_seconds"}


class Worker:
    """A process that answers questions: `worker("step", rate=1e-4)` -> what its function `step` returned.

    Args:
        command: what to start.
        log: file that takes what it prints.
    """

    def __init__(self, command: Sequence[str | Path], log: Path):
        self.log = log
        with log.open("w", encoding="utf-8") as stream:
            self.process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                env={**os.environ, **SILENCE},
                text=True,
            )

    def __call__(self, name: str, **arguments: Any) -> Any:
        """Raises RuntimeError, with the end of its log, when it failed or has died."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps([name, arguments]) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line or (answer := json.loads(line)) is None:
            self.close()
            raise RuntimeError(f"{name} failed; the end of {self.log}:\n{self.log.read_text(encoding='utf-8')[-3000:]}")
        return answer[0]

    def close(self) -> None:
        self.process.stdin.close()  # type: ignore[union-attr]
        self.process.wait()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def serve(functions: Mapping[str, Callable[..., Any]]) -> None:
    """Answers until the parent closes its end."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        name, arguments = json.loads(line)
        try:
            answer = [functions[name](**arguments)]
        except BaseException:
            traceback.print_exc()
            answers.write("null\n")
            answers.flush()
            raise
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def clocks() -> dict[str, float]:
    """What all clocks show now."""
    return {"seconds": time.perf_counter(), "processor_seconds": time.process_time()}


def timed(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """What the work returns; `seconds` that it took, and `processor_seconds` of all cores."""
    began = clocks()
    out = work()
    return out, {name: now - began[name] for name, now in clocks().items()}


def watch_memory() -> int:
    """Hands freed memory back and sets the high-water mark to what is resident now, in bytes, which is returned."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return resident_memory()


def resident_memory() -> int:
    """Bytes of this process that are resident now."""
    return _status("VmRSS")


def anonymous_memory() -> int:
    """Bytes of this process's own that are resident now: files that it has mapped, which come and go, aside."""
    ctypes.CDLL(None).malloc_trim(0)
    return _status("RssAnon")


def peak_memory() -> int:
    """Bytes: the most that was resident since `watch_memory`."""
    return _status("VmHWM")


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
