"""The table of flamingo-small: trials, controls, baselines, and going on after a stop."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import flamboyance as fl
from flamboyance.templates import Template
from scripts.pretrain_small import measure
from scripts.pretrain_small.measure import (
    Judge,
    Nearest,
    Row,
    Trial,
    changed,
    derangement,
    main,
    pixels,
    tables,
    trials,
    with_similar,
)

COLORS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 40, 220)}


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """Plain images of three colours; each class of an episode is one colour."""
    (tmp_path / "evaluation").mkdir()
    rng = np.random.default_rng(0)
    for name, color in COLORS.items():
        for number in range(3):
            noisy = np.clip(np.array(color) + rng.normal(0, 8, (32, 32, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(tmp_path / f"{name}.{number}.png")
    rows = []
    for number, (one, other) in enumerate([("red", "green"), ("blue", "red"), ("green", "blue")]):
        texts = {one: "dax", other: "blicket"}
        shown = [{"image": f"{c}.{n}.png", "text": texts[c], "concept": c} for n in (0, 1) for c in (one, other)]
        asked = (one, other)[number % 2]
        query = {"image": f"{asked}.2.png", "concept": asked}
        candidates = list(texts.values())
        rows.append({"demonstrations": shown, "query": query, "answer": texts[asked], "candidates": candidates})
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "evaluation" / "words-2way-colors.jsonl").write_text(lines, encoding="utf-8")
    naming = [{"image": f"{name}.0.png", "text": name, "concept": name} for name in COLORS]
    lines = "".join(json.dumps(row) + "\n" for row in naming)
    (tmp_path / "evaluation" / "naming-colors.jsonl").write_text(lines, encoding="utf-8")
    return tmp_path


def test_trials_are_those_of_the_file(world: Path) -> None:
    first, *_ = found = trials(world, "words-2way-colors", 10)
    assert len(found) == 3 and first.candidates == ("dax", "blicket") and first.answer == "dax"
    assert [text for _, text in first.shown] == ["dax", "blicket"] * 2
    names = trials(world, "naming-colors", 2)
    assert len(names) == 2 and all(t.shown == () and t.candidates == () for t in names)


@pytest.mark.parametrize("length", [2, 3, 8])
def test_shuffled_moves_every_image(length: int) -> None:
    for seed in range(20):
        order = derangement(length, np.random.default_rng(seed))
        assert sorted(order) == list(range(length)) and all(i != place for place, i in enumerate(order))


def test_controls_change_only_what_they_say(world: Path) -> None:
    trial, gray = trials(world, "words-2way-colors", 1)[0], Path("gray.png")
    shuffled, blank, blind = (changed(trial, way, gray, 0) for way in measure.CONTROLS)
    assert [t for _, t in shuffled.shown] == [t for _, t in blank.shown] == [t for _, t in trial.shown]
    assert sorted(i for i, _ in shuffled.shown) == sorted(i for i, _ in trial.shown) and shuffled.query == trial.query
    assert {i for i, _ in blank.shown} == {gray} and blank.query == trial.query and blind.query == gray


def test_the_nearest_pixels_tell_colours_apart(world: Path) -> None:
    given = trials(world, "words-2way-colors", 3)
    assert Nearest(pixels).right(given) == 3
    other = {"dax": "blicket", "blicket": "dax"}
    swapped = [Trial([(i, other[t]) for i, t in trial.shown], trial.query, trial.answer) for trial in given]
    assert Nearest(pixels).right(swapped) == 0
    assert Nearest(pixels).right([Trial((), t.query, t.answer) for t in given]) == 0


def test_pictures_to_name_are_shown_behind_similar_ones(world: Path) -> None:
    support = [(world / f"{name}.{number}.png", name) for number in (1, 2) for name in COLORS]
    found = with_similar(trials(world, "naming-colors", 3), support, pixel_mean)
    assert all(len(trial.shown) == 6 and {name for _, name in trial.few(2).shown} == {trial.answer} for trial in found)
    first = found[0]
    distance = [float(pixel_mean(image) @ pixel_mean(first.query)) for image, _ in first.shown]
    assert first.few(1).shown == first.shown[-1:] and np.argmax(distance) == 5
    assert with_similar(found[:0], support, pixel_mean) == []


def pixel_mean(image: Path) -> np.ndarray:
    mean = np.asarray(Image.open(image), np.float64).mean((0, 1))
    return mean / np.linalg.norm(mean)


def test_a_model_is_asked_as_written(world: Path) -> None:
    """As the public interface answers it, and the score of each full prompt by itself."""
    model, processor = fl.load_mini()
    template = Template("<image> {text}")
    given = trials(world, "words-2way-colors", 3)
    right = 0
    for trial in given:
        text = "".join(f"<image> {answer}<|endofchunk|>" for _, answer in trial.shown) + "<image>"
        images = [Image.open(image) for image, _ in trial.shown] + [Image.open(trial.query)]
        inputs = processor(text=[text], images=[images])
        tokens = [processor.tokenizer(f" {c}", add_special_tokens=False)["input_ids"] for c in trial.candidates]
        scores = [model.score(**inputs, candidates=[ids]).item() / len(ids) for ids in tokens]
        best = trial.candidates[max(range(len(scores)), key=scores.__getitem__)]
        task = fl.FewShotTask(model, processor, list(trial.shown), template=template)
        assert task.classify([trial.query], labels=list(trial.candidates))[0][0] == best
        right += best == trial.answer
    assert Judge(model, processor, template).right(given) == right


def test_which_task_is_chosen_or_written(world: Path) -> None:
    folder = world / "evaluation"
    (folder / "words-2way-colors.jsonl").rename(folder / "which-task.jsonl")
    (chosen, *_), (written, *_) = (trials(world, task, 10) for task in ("which-task", "which-task-written"))
    assert chosen.candidates == ("dax", "blicket") and written.candidates == ()
    assert replace(written, candidates=chosen.candidates) == chosen


def test_the_command_goes_on_after_its_last_row(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = world / "measured.json"
    arguments = ["--model", "mini", "--world", str(world), "--output", str(output), "--trials", "2"]
    main([*arguments, "--tasks", "naming-colors"])
    rows = [Row(**row) for row in json.loads(output.read_text("utf-8"))["rows"]]
    assert [(r.task, r.way, r.shots, r.total) for r in rows] == [("naming-colors", "as given", 0, 2)]
    asked = []
    monkeypatch.setattr(Judge, "right", lambda self, given: asked.append(given) or len(given))
    main(arguments)
    rows = [Row(**row) for row in json.loads(output.read_text("utf-8"))["rows"]]
    assert len(rows) == 1 + 4 + 3 * 3 + 2 * 3 and len(asked) == 4 + 3 * 3
    assert all(len(trial.shown) == row.shots for row, some in zip(rows[1:5], asked, strict=False) for trial in some)
    main([*arguments, "--ways", "as given", "--shots", "2,4"])
    main(arguments)
    assert len(asked) == 4 + 3 * 3
    assert tables(rows) == output.with_suffix(".md").read_text("utf-8")
    assert "| words-2way-colors | as given | 100% (34%–100%) |" in tables(rows)
    output.unlink()
    main([*arguments, "--tasks", "words-2way-colors", "--ways", "as given,blank", "--shots", "2"])
    rows = [Row(**row) for row in json.loads(output.read_text("utf-8"))["rows"]]
    assert [(row.way, row.shots) for row in rows] == [("as given", 2), ("blank", 2)]
    for wrong in (["--ways", "blnak"], ["--shots", "3"]):
        with pytest.raises(SystemExit):
            main([*arguments, *wrong])
