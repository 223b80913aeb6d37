"""`plot`: what is read from logs, how it is smoothed, what is drawn, and what is said of logs that cannot be."""

import errno
import json
import os
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image

from flamboyance.cli import main
from flamboyance.training.plot import COLORS, draw, read, smoothed


def row(step, **more):
    gates = [0.01 * step, -0.02 * step, 0.0]
    return {
        "step": step,
        "loss": 3.0,
        "loss/laion": 5.0 - 0.01 * step,
        "loss/mmc4": 3.0 - 0.01 * step,
        "gates/attention": gates,
        "gates/feed_forward": gates,
        "gradient_norm": 1.5,
        "images": 10,
        **({"evaluation/captions": step / 100} if step % 20 == 0 else {}),
        **more,
    }


def write(folder, rows, end=""):
    folder.mkdir(exist_ok=True)
    (folder / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows) + end, encoding="utf-8")
    return folder


@pytest.fixture
def run(tmp_path):
    return write(tmp_path / "first", [row(step) for step in range(1, 101)])


def texts(path):
    """The titles and labels of an SVG drawn with text as text."""
    return [e.text for e in ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text")]


@pytest.fixture(autouse=True)
def svg_with_text():
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none"}):
        yield


def test_a_run_is_drawn(run, capsys):
    assert main(["plot", str(run)]) == 0
    assert capsys.readouterr().out == f"wrote {run / 'curves.png'}\n"
    with Image.open(run / "curves.png") as image:
        assert image.width > 1500 and len(set(image.convert("L").tobytes())) > 20


def test_a_panel_for_each_figure(run, tmp_path):
    assert main(["plot", str(run), "--output", str(tmp_path / "a.svg")]) == 0
    drawn = texts(tmp_path / "a.svg")
    for title in (
        "Loss: laion",
        "Loss: mmc4",
        "Gates: attention (tanh)",
        "Gates: feed-forward (tanh)",
        "Evaluation: captions",
        "Gradient norm, before clipping",
        "block 1",
        "block 3",
    ):
        assert title in drawn
    assert "Loss" not in drawn  # the sum is not shown beside its parts


def test_runs_lie_over_one_another(run, tmp_path):
    other = write(tmp_path / "second", [row(step) for step in range(1, 51)])
    assert main(["plot", str(run), str(other), "--output", str(tmp_path / "b.svg"), "--against", "images"]) == 0
    drawn = texts(tmp_path / "b.svg")
    assert {str(run), str(other), "images seen"} <= set(drawn)
    source = (tmp_path / "b.svg").read_text(encoding="utf-8").lower()
    assert all(color.lower() in source for color in COLORS[:2])


def test_an_evaluation_before_the_first_step_is_at_no_images(tmp_path):
    rows = [{"step": 0, "evaluation/loss": 3.0}, *(row(step) for step in range(1, 4))]
    x, _ = read(write(tmp_path / "first", rows)).series("evaluation/loss", "images")
    assert x[0] == 0


def test_values_and_axes(run):
    log = read(run)
    x, y = log.series("loss/mmc4")
    assert x.tolist() == list(range(1, 101)) and y[0] == pytest.approx(2.99)
    assert log.series("loss/mmc4", "images")[0].tolist() == list(range(10, 1001, 10))
    x, y = log.series("evaluation/captions")
    assert x.tolist() == [20, 40, 60, 80, 100] and y.tolist() == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert log.series("gates/attention")[1].shape == (100, 3)
    with pytest.raises(ValueError, match="tokens"):
        log.series("loss", "tokens")


def test_running_mean():
    values = np.array([1.0, 2.0, np.nan, 4.0, 6.0])
    assert smoothed(values, 2).tolist() == [1.0, 1.5, 2.0, 4.0, 5.0]
    assert smoothed(values, 1)[[0, 1, 3, 4]].tolist() == [1.0, 2.0, 4.0, 6.0]
    assert np.isnan(smoothed(values, 1)[2])
    assert smoothed(values, 9)[-1] == pytest.approx(13 / 4)


def test_gaps_and_changes_of_what_is_logged(tmp_path):
    rows = [row(step, gradient_norm=None if step == 3 else 1.0) for step in range(1, 30)]
    rows[4]["loss/laion"] = None
    del rows[7]["loss/mmc4"]
    rows[9]["loss/new"] = 2.0
    draw([read(write(tmp_path / "gaps", rows))], tmp_path / "gaps.svg")
    assert "Loss: new" in texts(tmp_path / "gaps.svg")


def test_a_line_that_is_being_written_is_left_out(tmp_path):
    log = read(write(tmp_path / "live", [row(1), row(2)], end='{"step": 3, "lo'))
    assert [r["step"] for r in log.rows] == [1, 2]


@pytest.mark.parametrize(
    "content, words",
    [
        (None, "does not exist; give a run's directory"),
        ("", "is empty: the run has logged no step yet"),
        ('{"step": 1, "loss"', "is empty: the run has logged no step yet"),
        ('{"step": 1}\n{"step": 2,\n{"step": 3}\n', "line 2 is damaged"),
        ('{"loss": 1}\n', "line 1 is no step of a run"),
        ("[1, 2]\n", "line 1 is no step of a run"),
        ('{"step": 1, "rate": 0.1}\n', "no loss, gate or gradient was logged"),
    ],
)
def test_logs_that_cannot_be_drawn(tmp_path, capsys, content, words):
    folder = tmp_path / "run"
    folder.mkdir()
    if content is not None:
        (folder / "log.jsonl").write_text(content, encoding="utf-8")
    assert main(["plot", str(folder)]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not (folder / "curves.png").exists()


def test_a_full_disk_names_the_file(run, capsys, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    assert main(["plot", str(run)]) == 2
    assert capsys.readouterr().err.startswith(f"flamboyance: {run / 'curves.png'}: No space left")
    assert [file.name for file in run.iterdir()] == ["log.jsonl"]


def test_other_mistakes(run, capsys):
    assert main(["plot", str(run), "--output", "curves.txt"]) == 2
    assert ".png, .svg, .pdf" in capsys.readouterr().err
    assert main(["plot", str(run), "--smooth", "0"]) == 2
    assert "--smooth 0" in capsys.readouterr().err
