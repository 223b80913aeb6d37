"""Runs of two processes over real shards: torchrun brings a killed rank back, and the run ends the same."""

import os
import signal
import time
from pathlib import Path

import pytest

from tests.training.test_resume import TORCHRUN, assert_same, finish, start, steps_done
from tests.training.tiny_run import losses

STEPS = 30
ELASTIC = [*TORCHRUN, "--max-restarts", "3", "-m", "tests.training.tiny_run"]
OPTIONS = ("workers=1", "checkpoint_every=6")


def ranks(launcher: int) -> list[int]:
    """Process ids of the trainers that torchrun has started."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text(encoding="utf-8").split()
    return [
        int(p) for p in children if "tests.training.tiny_run" in Path(f"/proc/{p}/cmdline").read_text(encoding="utf-8")
    ]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the ranks in /proc")
def test_a_killed_rank_comes_back(tmp_path):
    whole = finish(tmp_path / "whole", STEPS, *OPTIONS, launch=ELASTIC)
    launcher = start(tmp_path / "pieces", STEPS, *OPTIONS, launch=ELASTIC)
    deadline = time.monotonic() + 120
    while steps_done(tmp_path / "pieces") < 15 and time.monotonic() < deadline:
        time.sleep(0.001)
    os.kill(ranks(launcher.pid)[1], signal.SIGKILL)
    assert launcher.wait(240) == 0, (tmp_path / "pieces.txt").read_text(encoding="utf-8")[-3000:]
    assert "going on after step" in (tmp_path / "pieces.txt").read_text(encoding="utf-8")
    assert_same(whole, tmp_path / "pieces")
    # As many streams of data, in one process: the same documents in the same steps.
    alone = finish(tmp_path / "alone", STEPS, "workers=2", "accumulate=2", "checkpoint_every=100")
    assert losses(whole) == pytest.approx(losses(alone), rel=1e-4)


@pytest.mark.slow
def test_a_run_goes_on_with_other_ranks_and_sharded(tmp_path):
    alone = finish(tmp_path / "alone", STEPS, "workers=2", "accumulate=2", "checkpoint_every=10")
    moved = tmp_path / "moved"
    launcher = start(moved, STEPS, *OPTIONS, launch=ELASTIC)
    deadline = time.monotonic() + 120
    while steps_done(moved) < 15 and time.monotonic() < deadline:
        time.sleep(0.001)
    os.killpg(launcher.pid, signal.SIGKILL)
    launcher.wait()
    finish(moved, 2 * STEPS // 3, "workers=2", "accumulate=2", "checkpoint_every=6")  # one process
    finish(moved, STEPS, "workers=1", "checkpoint_every=6", "parallel=fsdp", launch=ELASTIC)  # two, sharded
    assert losses(moved) == pytest.approx(losses(alone), rel=1e-4)
