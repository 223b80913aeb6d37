"""A run that is killed, however often and whenever, ends as one that never was: bit for bit."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.processes import Child
from tests.training import tiny_run
from tests.training.tiny_run import losses

LAUNCH: list[str] = []  # a process of `tests/processes.py`
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
TORCHRUN += ["--rdzv-endpoint", "localhost:0"]


def slow_saves(arguments: list[str]) -> None:
    """A run whose checkpoints take so long to be put in place that another process sees it, on a busy machine too."""
    replace = os.replace

    def slowly(source: Path, target: Path) -> None:
        time.sleep(0.3 if str(source).endswith(".partial") else 0)
        replace(source, target)

    os.replace = slowly
    tiny_run.main(arguments)


def start(
    output: Path, steps: int, *options: str, launch: list[str] = LAUNCH, run: Callable = tiny_run.main
) -> Child | subprocess.Popen:
    if not launch:
        return Child(run, [str(output), str(steps), *options], log=output.with_suffix(".txt"))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with open(output.with_suffix(".txt"), "a", encoding="utf-8") as log:
        return subprocess.Popen(
            [*launch, str(output), str(steps), *options],
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )


def finish(output: Path, steps: int, *options: str, launch: list[str] = LAUNCH) -> Path:
    process = start(output, steps, *options, launch=launch)
    assert process.wait(600) == 0, output.with_suffix(".txt").read_text(encoding="utf-8")[-2000:]
    return output


def steps_done(output: Path) -> int:
    log = output / "log.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def kill_when(process: Child | subprocess.Popen, moment) -> bool:
    """SIGKILL to the whole session once `moment()` holds; whether it still ran then."""
    deadline = time.monotonic() + 600
    while process.poll() is None and time.monotonic() < deadline:
        if moment():
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return True
        time.sleep(0.0005)
    return False


def assert_same(whole: Path, pieces: Path) -> None:
    assert losses(whole) == losses(pieces)
    first, second = (load_file(path / "model" / "model.safetensors") for path in (whole, pieces))
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def after(output: Path, step: int):
    return lambda: steps_done(output) >= step


def while_saving(output: Path, seen: int):
    return lambda: steps_done(output) > seen and any((output / "checkpoints").glob(".step-*.partial"))


def killed_at_random(folder: Path, steps: int, kills: int, seed: int) -> None:
    """Every second kill comes while a checkpoint is being written."""
    whole = finish(folder / "whole", steps)
    pieces, rng = folder / "pieces", random.Random(seed)
    for number in range(kills):
        process = start(pieces, steps, run=slow_saves)
        goal = min(steps - 2, steps * (number + 1) // (kills + 1) + rng.randrange(3))
        moment = while_saving(pieces, steps_done(pieces)) if number % 2 else after(pieces, goal)
        assert kill_when(process, moment), (
            f"kill {number}: {pieces.with_suffix('.txt').read_text(encoding='utf-8')[-800:]}"
        )
    assert_same(whole, finish(pieces, steps))


def test_killed_runs_end_as_the_uninterrupted_one(tmp_path):
    killed_at_random(tmp_path, steps=40, kills=2, seed=0)


@pytest.mark.slow
def test_ten_kills(tmp_path):
    killed_at_random(tmp_path, steps=200, kills=10, seed=1)


def test_a_signal_saves_first_and_a_finished_run_is_left_alone(tmp_path):
    output = tmp_path / "run"
    process = start(output, 100_000, "checkpoint_every=100000")
    deadline = time.monotonic() + 600
    while steps_done(output) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(600) == 128 + signal.SIGTERM
    done = steps_done(output)
    assert done >= 3
    assert [int(p.name[-8:]) for p in (output / "checkpoints").iterdir()] == [done]
    finish(output, done + 2)
    assert len(losses(output)) == done + 2
    before = (output / "model" / "model.safetensors").stat().st_mtime_ns
    model = load_file(output / "model" / "model.safetensors")
    finish(output, done + 2)  # nothing left to do: exports the same
    assert (output / "model" / "model.safetensors").stat().st_mtime_ns >= before
    again = load_file(output / "model" / "model.safetensors")
    assert all(torch.equal(model[name], again[name]) for name in model)
    settings = json.loads((output / "training.json").read_text(encoding="utf-8"))
    assert settings["training"]["sources"]["documents"]["format"] == "MMC4"
    assert settings["training"]["steps"] == done + 2
