"""A function of the user's as a model: what it is given, what it may give, and errors."""

import json
from dataclasses import replace
from functools import partial

import pytest
from PIL import Image

import flamboyance as fl
from flamboyance.cli import main
from flamboyance.evaluation import about
from flamboyance.evaluation.answers.function import FunctionAnswers
from flamboyance.evaluation.task import Example
from flamboyance.evaluation.tasks import user_data
from flamboyance.images import load_image
from flamboyance.templates import Template
from tests.evaluation.small_tasks import captions, draw, questions


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


def code_of(source: str) -> str:
    """The digest of the function `answer` in a script."""
    script: dict = {}
    exec(source, script)
    return FunctionAnswers(script["answer"]).describe()["code"]


MODEL = "class Model:\n def __init__(s, name): s.name_or_path = name\n def say(s, *_): return s.name_or_path\n"


@pytest.mark.parametrize(
    "source",
    [
        "N = 0\ndef answer(*_): return 'ab'[N]",
        "N = 0.5\ndef answer(*_): return str(N)",
        "WORD = 'a0'\ndef answer(*_): return WORD",
        "WORD = 'a0'\ndef answer(*_): return [WORD for _ in 'a'][0]",
        "WORD = 'a0'\ndef answer(*_): return (lambda: WORD)()",
        "def say(): return 'a0'\ndef answer(*_): return say()",
        f"{MODEL}model = Model('a0')\ndef answer(*_): return model.say()",
        f"{MODEL}answer = Model('a0').say",
        "def answer(*_, n=0): return 'ab'[n]",
        "def answer(a, b, n=0): return 'ab'[n]",
        "from functools import partial\ndef say(*_, n): return 'ab'[n]\nanswer = partial(say, n=0)",
    ],
)
def test_what_a_script_sets_beside_a_function_counts(source):
    assert code_of(source) == code_of(source) != code_of(source.replace("0", "1"))


def test_what_a_function_counts_does_not_matter():
    counting = "\ndef answer(*_):\n  global calls\n  calls += 1\n  return answer.__name__"
    assert code_of(f"calls = 0{counting}") == code_of(f"calls = 1{counting}")


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
    written = json.loads((tmp_path / "run" / "run.json").read_text())
    del written["tasks"]["captions"]["prompt"]  # as an earlier version wrote it
    (tmp_path / "run" / "run.json").write_text(json.dumps(written))
    fl.evaluate(task, answer, **options)


def test_other_pictures_of_the_same_names_are_another_task(tmp_path):
    options, answer = {"output": tmp_path / "run", "shots": (0,), "seeds": (0,)}, said("a cat")
    folder = tmp_path / "data"
    for place, seed in (("one", 0), ("two", 1)):
        draw(folder / place, 4, seed)

    def write(place: str) -> None:
        lines = [f"{place}/{i}.png,a cat\n" for i in range(4)]
        (folder / "pets.csv").write_text("".join(["image,answer\n", *lines]), encoding="utf-8")

    write("one")
    found = fl.evaluate(folder / "pets.csv", answer, **options)
    folder = folder.rename(tmp_path / "moved")
    assert fl.evaluate(folder / "pets.csv", answer, **options) == found
    write("two")
    with pytest.raises(ValueError, match="another tasks: pets: images"):
        fl.evaluate(folder / "pets.csv", answer, **options)


def test_images_of_a_benchmark_may_be_moved_together(tmp_path):
    images = [tmp_path / "data" / place / "1.png" for place in ("a", "b")]
    examples = [Example(f"{i}", image, "a cat") for i, image in enumerate(images)]
    task = replace(captions(tmp_path), support=examples, queries=examples)
    moved = [one.showing([tmp_path / "elsewhere" / one.image.relative_to(tmp_path)]) for one in examples]
    swapped = [one.showing([image]) for one, image in zip(examples, images[::-1], strict=True)]
    assert about.shown(task) == about.shown(replace(task, support=moved, queries=moved))
    assert about.shown(task) != about.shown(replace(task, support=swapped, queries=swapped))


def test_demonstrations_of_another_query_are_another_task(tmp_path):
    draw(tmp_path, 3, 0)
    row = {"image": "0.png", "answer": "a cat"}
    digests = set()
    for numbers in ((2, 1), (1, 2), (1, 2)):
        lines = [json.dumps(row | {"demonstrations": [row] * number}) for number in numbers]
        (tmp_path / "own.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        digests.add(about.shown(user_data.load(tmp_path / "own.jsonl")))
    assert len(digests) == 2


def first(image) -> int:
    return load_image(image).getpixel((0, 0))[0]


def test_a_file_is_a_task(tmp_path):
    captions(tmp_path)
    lines = [f"shown/{i}.png,{('cat', 'dog')[i % 2]}" for i in range(12)]
    (tmp_path / "pets.csv").write_text("\n".join(["image,label", *lines]) + "\n", encoding="utf-8")
    found = fl.evaluate(tmp_path / "pets.csv", lambda *_: "It is a Cat.", output=tmp_path / "run", shots=[1], seeds=[0])
    assert found["pets"]["random"]["1"]["mean"] == 50.0


def test_an_answer_is_not_cut_where_a_prompt_would_go_on(tmp_path):
    """A function, or a model that chats, does not continue with another question or caption."""
    right = {"1": "Shorts", "2": "Question mark", "3": "Short hair", "4": "an Answer"}
    captions(tmp_path)
    lines = [f"shown/{key}.png,what is it?,{answer}" for key, answer in right.items()]
    (tmp_path / "own.csv").write_text("\n".join(["image,question,answer", *lines]) + "\n", encoding="utf-8")
    options = {"output": tmp_path / "run", "shots": [0], "seeds": [0]}
    found = fl.evaluate(tmp_path / "own.csv", lambda _, query: right[query.id], **options)
    assert found["own"]["random"]["0"]["mean"] == 100.0
    task = questions(tmp_path / "data", labels=None)
    fl.evaluate(task, lambda *_: " Question: Shorts ", name="other", **options | {"output": tmp_path / "more"})
    lines = (tmp_path / "more/questions/0-random-0/predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert {json.loads(line)["answer"] for line in lines} == {"Question: Shorts"}


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
