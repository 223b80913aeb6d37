"""Work (h) of `make bench`: how long each side takes to import, and to open the same model from its files."""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import reference
from benchmarks.processes import CLOCKS, Worker
from benchmarks.sizes import Size

# Prints the most that was resident, in KiB.
RUN = "{}; print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
IMPORTS = {
    "ours": "from flamboyance import FewShotTask, FlamingoForConditionalGeneration, FlamingoProcessor",
    "theirs": "from open_flamingo import create_model_and_transforms",
}


def measure(directory: Path, size: Size, repeats: int, threads: int, clock: str) -> list[dict[str, Any]]:
    """A result for importing, and one for loading; files are in the system's cache."""
    python = reference.environment(directory)
    weights = reference.weights(directory, python, size)
    shape = {"paths": weights.paths, "threads": threads, "interval": size.interval}

    def ours() -> dict[str, float]:
        return _load(reference.own_worker(directory / "ours_fp32.log"), shape)

    def theirs() -> dict[str, float]:
        return _load(reference.worker(python, directory / "reference.log"), {**shape, "checkpoint": True})

    sides = {"ours": Path(sys.executable), "theirs": python}
    imports = {side: lambda side=side: _import(sides[side], IMPORTS[side]) for side in sides}
    return [
        _row("h: import", imports, repeats, clock),
        _row("h: load", {"ours": ours, "theirs": theirs}, repeats, clock),
    ]


def _row(name: str, ways: dict[str, Callable[[], dict[str, float]]], repeats: int, clock: str) -> dict[str, Any]:
    for way in ways.values():
        way()  # files come into the system's cache
    taken: dict[str, list[dict[str, float]]] = {side: [] for side in ways}
    for turn in range(repeats):
        for side in list(ways)[:: 1 if turn % 2 else -1]:
            taken[side].append(ways[side]())
    middle = {
        (side, figure): statistics.median(one[figure] for one in found)
        for side, found in taken.items()
        for figure in (CLOCKS[clock], "peak_gb")
    }
    seconds, peer_seconds = (middle[side, CLOCKS[clock]] for side in ("ours", "theirs"))
    return {
        "work": name, "peer": "open_flamingo 2.0.1", "dtype": "fp32",
        "peer_seconds": peer_seconds, "seconds": seconds, "ratio": peer_seconds / seconds,
        "peer_peak_gb": middle["theirs", "peak_gb"], "peak_gb": middle["ours", "peak_gb"],
    }  # fmt: skip


def _import(python: Path, statement: str) -> dict[str, float]:
    """A whole run of Python that imports and ends."""
    began, used = time.perf_counter(), _children()
    done = subprocess.run([str(python), "-c", RUN.format(statement)], capture_output=True, text=True, check=True)
    seconds = {"seconds": time.perf_counter() - began, "processor_seconds": _children() - used}
    return {**seconds, "peak_gb": int(done.stdout) * 1024 / 1e9}


def _load(worker: Worker, asked: dict[str, Any]) -> dict[str, float]:
    """Opening a model in a fresh process that has imported everything."""
    with worker:
        worker("watch_memory")
        before = worker("clocks")
        worker("load", **asked)
        after = worker("clocks")
        seconds = {figure: after[figure] - before[figure] for figure in before}
        return {**seconds, "peak_gb": worker("peak_memory") / 1e9}


def _children() -> float:
    """Processor's seconds of all processes that were waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
