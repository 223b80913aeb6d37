"""Runs of two processes over real shards: torchrun brings a killed rank back, and the run ends the same."""

import os
import signal
import time
from pathlib import Path

import pytest

from tests.processes import Child, ranks
from tests.training import tiny_run
from tests.training.launcher import launch
from tests.training.test_resume import TORCHRUN, assert_same, finish, start, steps_done
from tests.training.tiny_run import losses

STEPS = 30
ELASTIC = [*TORCHRUN, "--max-restarts", "3", "-m", "tests.training.tiny_run"]
RESUMED = "resumed after step"  # what a run says then
OPTIONS = ("workers=1", "checkpoint_every=6")


def elastic(output: Path) -> Child:
    return Child(launch, [str(output), str(STEPS), *OPTIONS], 3, log=output.with_suffix(".txt"))


def test_a_killed_rank_comes_back(tmp_path):
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    ranks(tiny_run.main, [str(whole), str(STEPS), *OPTIONS], log=tmp_path / "log")
    launcher = elastic(pieces)
    deadline = time.monotonic() + 600
    while steps_done(pieces) < 15 and time.monotonic() < deadline:
        time.sleep(0.001)
    os.kill(int((pieces / "rank-1.pid").read_text(encoding="utf-8")), signal.SIGKILL)
    assert launcher.wait(600) == 0, launcher.printed[-3000:]
    said = [file.read_text(encoding="utf-8") for file in tmp_path.glob("pieces.ranks/*/attempt_1/0/*.log")]
    assert any(RESUMED in text for text in said), said
    assert_same(whole, pieces)
    # As many streams of data, in one process: the same documents in the same steps.
    alone = finish(tmp_path / "alone", STEPS, "workers=2", "gradient_accumulation_steps=2", "checkpoint_every=100")
    assert losses(whole) == pytest.approx(losses(alone), rel=1e-4)


@pytest.mark.slow
def test_a_run_goes_on_with_other_ranks_and_sharded(tmp_path):
    alone = finish(tmp_path / "alone", STEPS, "workers=2", "gradient_accumulation_steps=2", "checkpoint_every=10")
    moved = tmp_path / "moved"
    launcher = start(moved, STEPS, *OPTIONS, launch=ELASTIC)
    deadline = time.monotonic() + 600
    while steps_done(moved) < 12 and time.monotonic() < deadline:
        time.sleep(0.001)
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text(encoding="utf-8").split()
    os.killpg(launcher.pid, signal.SIGKILL)  # first: it would start the ranks again, which are in sessions of their own
    for rank in map(int, children):
        os.kill(rank, signal.SIGKILL)
    launcher.wait()
    finish(moved, 2 * STEPS // 3, "workers=2", "gradient_accumulation_steps=2", "checkpoint_every=6")  # one process
    finish(moved, STEPS, "workers=1", "checkpoint_every=6", "parallel=fsdp", launch=ELASTIC)  # two, sharded
    assert losses(moved) == pytest.approx(losses(alone), rel=1e-4)
