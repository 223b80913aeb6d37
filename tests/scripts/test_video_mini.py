"""The video mini: what its clips show, and a run of one step."""

import json
from pathlib import Path

import numpy as np
import pytest

from flamboyance.mini.world.scenes import SIDE
from flamboyance.videos import find_video
from scripts import video_mini
from scripts.video_mini import EVENTS, SHOWN, clip, write_clip

SEEDS = range(12)


def places(frames: list[np.ndarray]) -> list[float]:
    """The column of the object's middle in each frame; NaN where there is none."""
    found = []
    for frame in frames:
        ground = np.median(frame.reshape(-1, 3), axis=0)
        mask = np.abs(frame - ground).max(2) > 60
        found.append(float(np.nonzero(mask)[1].mean()) if mask.sum() > 20 else float("nan"))
    return found


def shown(event: str, seed: int, path: Path, name: str = "8") -> list[np.ndarray]:
    """The frames that a model is shown of a clip's file."""
    write_clip(path, clip(event, np.random.default_rng([7, seed])))
    video = find_video(path)
    assert video is not None
    return [np.asarray(frame).astype(int) for frame in video.frames(SHOWN[name])]


@pytest.mark.parametrize("event", EVENTS)
def test_a_file_shows_what_its_text_says(event: str, tmp_path: Path) -> None:
    for seed in SEEDS:
        frames = shown(event, seed, tmp_path / "a.mp4")
        columns = places(frames)
        assert len(frames) == 8 and not np.isnan(columns[3:]).any()
        steps = np.diff(columns[3:])
        if event == "moves left":
            assert (steps < -1.5).all()
        elif event == "moves right":
            assert (steps > 1.5).all()
        else:
            assert (np.abs(steps) < 0.8).all()
        assert np.isnan(columns[0]) == (event == "appears")
        column, row = round(columns[-1]), SIDE // 2
        colors = [frame[row - 20 : row + 20, column - 4 : column + 5].reshape(-1, 3) for frame in frames]
        changed = np.abs(colors[0] - colors[-1]).max()
        if event == "changes color":
            assert changed > 60


def test_the_middle_frame_answers_nothing() -> None:
    # The same random numbers give the same middle, whatever happens; only a colour may have changed.
    for seed in SEEDS:
        middles = [clip(event, np.random.default_rng(seed))[15:17].astype(int).mean(0) for event in EVENTS]
        covered = [np.abs(frame - np.median(frame.reshape(-1, 3), axis=0)).max(2) > 60 for frame in middles]
        for mask in covered[1:]:
            assert (mask != covered[0]).mean() < 0.02
    assert [len(shown_frames) for shown_frames in [SHOWN["1"].times(8.0, 32), SHOWN["16"].times(8.0, 32)]] == [1, 16]


def test_a_run_of_one_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video_mini.main([str(tmp_path), "--clips", "4", "--tested", "4", "--steps", "1", "--batch-size", "2"])
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))["frames"]
    assert figures.keys() == SHOWN.keys() and all(one["clips"] == 4 for one in figures.values())
    assert capsys.readouterr().out.splitlines()[-4].startswith("| 8 | ")
