"""A function of the user's as a model: what it is given, what it may give, and errors."""

import json
from dataclasses import replace
from functools import partial

import pytest
from PIL import Image

import flamboyance as fl
from flamboyance.cli import main
from flamboyance.evaluation.answers.function import FunctionAnswers
from flamboyance.images import load_image
from flamboyance.templates import Template
from tests.evaluation.small_tasks import captions, questions


def brightest(demonstrations, query):
    """Answers as the demonstration whose first pixel is most like the query's."""
    (asked,) = query.images
    shown = [one for one in demonstrations if one.images]
    if not shown:
        return "a cat"
    return min(shown, key=lambda one: abs(one.images[0].getpixel((0, 0))[0] - asked.getpixel((0, 0))[0])).answer


def test_a_function_is_evaluated_and_reported(tmp_path):
    task, calls = captions(tmp_path / "data"), []

    def spied(demonstrations, query):
        calls.append((demonstrations, query))
        return brightest(demonstrations, query)

    found = fl.evaluate(task, answer=spied, output=tmp_path / "run", shots=(0, 3), seeds=(0,))
    assert len(calls) == 18 and set(found["captions"]["random"]) == {"0", "3"}
    queries = {one.id: one for one in task.queries}
    for demonstrations, query in calls:
        assert query.request == "Output:" and query.labels is None and query.max_new_tokens == 4
        (image,) = query.images
        assert isinstance(image, Image.Image) and image.tobytes() == load_image(queries[query.id].image).tobytes()
        assert len(demonstrations) in (2, 3) and {len(one.images) for one in demonstrations} == {
            len(demonstrations) - 2
        }
    lines = (tmp_path / "run/captions/3-random-0/predictions.jsonl").read_text(encoding="utf-8").splitlines()
    for row in map(json.loads, lines):
        nearest = min(row["demonstrations"], key=lambda one: abs(first(one["image"]) - first(row["image"])))
        assert row["answer"] == nearest["answer"]
    assert fl.evaluate(task, spied, output=tmp_path / "run", shots=(0, 3), seeds=(0,)) == found and len(calls) == 18
    assert main(["report", str(tmp_path / "run")]) == 0
    report = (tmp_path / "run" / "report.md").read_text(encoding="utf-8")
    assert "spied" in report and "function" in report


def said(word: str):
    return lambda *_: word


def test_another_function_of_the_same_name_is_another_model(tmp_path):
    task, options = captions(tmp_path / "data"), {"output": tmp_path / "run", "shots": (1,), "seeds": (0,)}
    found = fl.evaluate(task, said("a cat"), **options)
    assert fl.evaluate(task, said("a cat"), **options) == found  # the same code, and what it closes over
    for other in (said("a dog"), lambda *_: "a cat", partial(lambda word, *_: word, "a cat"), Constant("a cat")):
        with pytest.raises(ValueError, match="another model"):
            fl.evaluate(task, other, **options | {"name": "<lambda>"})
    sets = (lambda _, query: str(query.id in {"a", "b"}), lambda _, query: str(query.id in {"a", "c"}))
    assert len({FunctionAnswers(one).describe()["code"] for one in sets}) == 2
    counted = counter()
    once = fl.evaluate(task, counted, name="counted", **options | {"output": tmp_path / "counted"})
    assert fl.evaluate(task, counted, name="counted", **options | {"output": tmp_path / "counted"}) == once


class Constant:
    def __init__(self, word: str) -> None:
        self.word = word

    def __call__(self, *_) -> str:
        return self.word


def counter():
    calls = 0

    def counted(*_):
        nonlocal calls
        calls += 1
        return "a cat"

    return counted


def test_another_way_to_write_the_prompt_is_another_task(tmp_path):
    task, options = captions(tmp_path / "data"), {"output": tmp_path / "run", "shots": (1,), "seeds": (0,)}
    answer = said("a cat")
    fl.evaluate(task, answer, **options)
    other = replace(task, template=Template("<image>A picture of {text}"))
    with pytest.raises(ValueError, match=r"another tasks.*pattern"):
        fl.evaluate(other, answer, **options)
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    del about["tasks"]["captions"]["prompt"]  # as an earlier version wrote it
    (tmp_path / "run" / "run.json").write_text(json.dumps(about))
    fl.evaluate(task, answer, **options)


def first(image) -> int:
    return load_image(image).getpixel((0, 0))[0]


def test_a_file_is_a_task(tmp_path):
    captions(tmp_path)
    lines = [f"shown/{i}.png,{('cat', 'dog')[i % 2]}" for i in range(12)]
    (tmp_path / "pets.csv").write_text("\n".join(["image,label", *lines]) + "\n", encoding="utf-8")
    found = fl.evaluate(tmp_path / "pets.csv", lambda *_: "It is a Cat.", output=tmp_path / "run", shots=[1], seeds=[0])
    assert found["pets"]["random"]["1"]["mean"] == 50.0


def test_scores_of_labels(tmp_path):
    task = questions(tmp_path / "data")

    def scored(_, query):
        return {label: -float(len(label) + int(query.id[1:]) % 2 * 2 * (label == "no")) for label in query.labels}

    fl.evaluate(task, scored, name="mine", output=tmp_path / "run", shots=(1,), seeds=(0,))
    folder = tmp_path / "run/questions/1-random-0"
    for row in map(json.loads, (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()):
        assert row["answer"] == ("yes" if int(row["id"][1:]) % 2 else "no")
        assert row["scores"] == {"yes": -3.0, "no": -4.0 if row["answer"] == "yes" else -2.0, "a red circle": -12.0}
    assert json.loads((folder / "score.json").read_text(encoding="utf-8"))["labels_by"] == {"scores": 9}
    assert json.loads((tmp_path / "run/run.json").read_text(encoding="utf-8"))["model"]["name"] == "mine"


@pytest.mark.parametrize("given", [None, 3, {"yes": 0.0}, {"yes": 0.0, "no": float("nan"), "a red circle": 0.0}])
def test_something_else_is_named_with_its_query(given, tmp_path):
    with pytest.raises(TypeError, match=r"query 'q\d'.*expected a text"):
        fl.evaluate(questions(tmp_path), lambda *_: given, output=tmp_path / "run", shots=(1,), seeds=(0,))
    with pytest.raises(TypeError, match=r"query 'q\d'.*expected a text"):
        fl.evaluate(captions(tmp_path), lambda *_: given, output=tmp_path / "other", shots=(1,), seeds=(0,))


def test_settings_are_checked_first(tmp_path):
    with pytest.raises(ValueError, match="99 shots"):
        fl.evaluate(captions(tmp_path), brightest, output=tmp_path / "run", shots=(99,))
    with pytest.raises(ValueError, match="RICES"):
        fl.evaluate(captions(tmp_path), brightest, output=tmp_path / "run", demonstrations=("rices",), shots=(1,))
    assert not (tmp_path / "run").exists()
