"""The log of a run: log.jsonl, a progress line, and trackers."""

from __future__ import annotations

import json
import math
import os
import sys
import time
import uuid
from pathlib import Path
from typing import Any, TextIO

from flamboyance.files import check_written_here, naming, write_text

FILE = "log.jsonl"


class Log:
    """`log.jsonl` in the run's directory, one object per step, and the trackers. Only one process writes.

    A run that resumes after step n keeps the lines of the first n steps, so each step is logged once.

    Args:
        start: number of steps taken before.
        track: names of trackers.

    Attributes:
        last: the newest line that an earlier process wrote, of a step that is kept; empty if there is none.
    """

    def __init__(self, output: Path, start: int, steps: int, track: tuple[str, ...] = (), config: Any = None):
        self._path = path = output / FILE
        check_written_here(path)
        self.last = _cut(path, start)
        self._file: TextIO = open(path, "a", encoding="utf-8")  # noqa: SIM115  open as long as the run
        self._trackers = [_tracker(name, output, start, config) for name in track]
        self._line = ProgressLine(start, steps)

    def complete(self, step: int, figures: dict[str, Any]) -> None:
        """Adds figures to the line of the step that an earlier process took last."""
        kept = self._path.read_text(encoding="utf-8").splitlines(keepends=True)
        if not self.last or self.last["step"] != step:
            return self.write(step, figures)
        with naming(self._path):
            self._file.close()
            write_text(self._path, "".join([*kept[:-1], json.dumps({**self.last, **_plain(figures)}) + "\n"]))
            self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115
        self._tell(step, figures)

    def write(self, step: int, figures: dict[str, Any]) -> None:
        """Writes one step's figures. Lists are written as lists, and numbers that are not finite as null."""
        with naming(self._path):
            self._file.write(json.dumps({"step": step, **_plain(figures)}) + "\n")
            self._file.flush()
        self._tell(step, figures)

    def _tell(self, step: int, figures: dict[str, Any]) -> None:
        flat = {k: v for k, v in _flat(figures).items() if isinstance(v, (int, float)) and math.isfinite(v)}
        for tracker in self._trackers:
            tracker(step, flat)
        self._line.show(step, figures)

    def say(self, text: str) -> None:
        self._line.say(text)

    def close(self) -> None:
        self._line.close()
        with naming(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        for tracker in self._trackers:
            tracker(None, {})


class ProgressLine:
    """On a terminal, one line that is overwritten; elsewhere, a line every half minute."""

    def __init__(self, start: int, steps: int, every: float = 30.0):
        self.start, self.steps, self.every = start, steps, every
        self.began = self.shown = time.monotonic()
        self.live = sys.stderr.isatty()

    def show(self, step: int, figures: dict[str, Any]) -> None:
        scores = {k.removeprefix("evaluation/"): v for k, v in figures.items() if k.startswith("evaluation/")}
        if scores:
            self.say(f"step {step}, evaluated: " + "  ".join(f"{name} {value:.3g}" for name, value in scores.items()))
        if "loss" not in figures:
            return
        now = time.monotonic()
        last = step == self.steps
        if not last and now - self.shown < (0.2 if self.live else self.every):
            return
        self.shown = now
        left = (now - self.began) / max(step - self.start, 1) * (self.steps - step)
        sources = "  ".join(f"{k.removeprefix('loss/')} {v:.3f}" for k, v in figures.items() if k.startswith("loss/"))
        text = (
            f"step {step}/{self.steps}  {sources}  gradient {figures['gradient_norm']:.2f}  "
            f"{figures['images_per_s']:.0f} images/s  waits {figures['data_wait_s'] / figures['step_s']:.0%}  "
            f"{_duration(left)} left"
        )
        self.say(text, end="\n" if last or not self.live else "")

    def say(self, text: str, end: str = "\n") -> None:
        start = "\r\x1b[K" if self.live else ""
        print(start + text, end=end, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.live:
            print(file=sys.stderr)


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def _cut(path: Path, start: int) -> dict[str, Any]:
    """Keeps the lines of the first `start` steps, and returns the last of them. A line that was cut off by a kill is
    removed too."""
    kept, last = [], {}
    if not path.exists():
        return last
    for line in [] if start == 0 else path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        try:
            row = json.loads(line)
            if row["step"] > start:
                break
        except (ValueError, KeyError, TypeError, RecursionError):
            break
        kept.append(line)
        last = row
    write_text(path, "".join(kept))
    return last


def _plain(value: Any) -> Any:
    """Replaces NaN and infinity, which JSON lacks, by None."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _flat(figures: dict[str, Any]) -> dict[str, Any]:
    """Lists and objects as one figure per entry, NAME/ENTRY."""
    flat = {}
    for name, value in figures.items():
        entries = dict(enumerate(value)) if isinstance(value, list) else value
        flat |= {f"{name}/{k}": v for k, v in entries.items()} if isinstance(entries, dict) else {name: value}
    return flat


def _tracker(name: str, output: Path, start: int, config: Any) -> Any:
    """A function of (step or None at the end, figures).

    Raises:
        ImportError: its package is not installed.
    """
    try:
        if name == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            writer = SummaryWriter(str(output / "tensorboard"), purge_step=start + 1)

            def to_tensorboard(step: int | None, figures: dict[str, float]) -> None:
                for key, value in figures.items():
                    writer.add_scalar(key, value, step)
                if step is None:
                    writer.close()

            return to_tensorboard
        library: Any = __import__(name)
    except ImportError as error:
        raise ImportError(f"track={name!r} needs a package: pip install {name}") from error
    # One tracked run per directory, however often it is resumed, and not shared with a directory of the same name.
    known = output / ".run-id"
    if not known.exists():
        write_text(known, uuid.uuid4().hex[:12])
    run = f"{output.resolve().name}-{known.read_text(encoding='utf-8')}"
    more = {"dir": str(output), "id": run, "resume": "allow"} if name == "wandb" else {"resume": "allow"}
    library.init(project="flamboyance", name=run, config=config, **more)

    def to_library(step: int | None, figures: dict[str, float]) -> None:
        library.finish() if step is None else library.log(figures, step=step)

    return to_library
