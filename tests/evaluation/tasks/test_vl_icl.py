"""VL-ICL Bench from files in its published layout, made small: demonstrations, prompts, scores."""

import json
import re
from dataclasses import replace

import pytest
import torch

import flamboyance as fl
from flamboyance.cli import main
from flamboyance.evaluation import shots
from flamboyance.evaluation.answers.transformers_vlm import TransformersAnswers
from flamboyance.evaluation.prompts import Prompt
from flamboyance.evaluation.results import read_rows
from flamboyance.evaluation.tasks import VL_ICL, open_task, vl_icl
from flamboyance.mini import vl_icl as small
from flamboyance.reports.curves import curves, efficiency
from flamboyance.reports.evaluation_run import read_run
from tests.evaluation.answers.test_transformers_vlm import save_tiny_llava
from tests.evaluation.small_tasks import tiny_answers

OPERATORS = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "x": lambda a, b: a * b}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return small.write(tmp_path_factory.mktemp("vl_icl"), support=10, queries=6)


def records(data, name, file):
    return json.loads((data / name / f"{file}.json").read_text(encoding="utf-8"))


def shown(task, number, seed=0, query=0):
    (chosen,) = shots.select(task, number, "random", seed, queries=[query])
    return Prompt.of(task, query, chosen, number)


@pytest.mark.parametrize("name", VL_ICL)
def test_every_task_opens(data, name):
    task, asked = open_task(name, data), records(data, name, "query")
    assert [one.references for one in task.queries] == [(str(row["answer"]),) for row in asked]
    assert [list(one.images) for one in task.queries] == [[data / path for path in row["image"]] for row in asked]
    assert all(image.is_file() for one in (*task.support, *task.queries) for image in one.images)
    images = len(asked[0]["image"])
    assert images == (2 if name in ("matching_mi", "operator_induction_interleaved") else 1)
    prompt = shown(task, 0)
    assert prompt.text == "<image>" * images + f"{asked[0]['question']}\nAnswer:" and prompt.demonstrations == ()
    prompt = shown(task, 2)
    first = prompt.demonstrations[0]
    expected = "<image>" * images + f"{first.asked[0]}\nAnswer: {first.answer}<|endofchunk|>"
    assert prompt.text.startswith(expected) and len(prompt.images) == prompt.text.count("<image>")
    more, less = shown(task, 3).demonstrations, prompt.demonstrations
    assert more[: len(less)] == less and shown(task, 2, seed=1).demonstrations != less
    with pytest.raises(ValueError, match="fixes which demonstrations"):
        shots.select(task, 2, "fixed")
    with pytest.raises(ValueError, match="and 11 shots were requested"):
        shown(task, 11)


def test_an_open_ended_shot_is_an_image_of_each_of_two_classes(data):
    task, asked = open_task("open_mi", data), records(data, "open_mi", "query")
    for query, row in enumerate(asked):
        prompt = shown(task, 3, query=query)
        names = [one.answer for one in prompt.demonstrations]
        assert len(names) == 6 and names[:2] == names[2:4] == names[4:] and row["answer"] in names
        assert len(set(names)) == 2 and set(names) <= set(row["classes"])
        for place, one in enumerate(prompt.demonstrations):
            assert one.image == data / row["support"][one.answer]["images"][place // 2]
    with pytest.raises(ValueError, match="has 5 images of each of two classes, and 6 shots"):
        shown(task, 6)


@pytest.mark.parametrize("name", ["operator_induction", "operator_induction_interleaved"])
def test_a_demonstration_shows_the_result_of_the_querys_operator(data, name):
    task, support = open_task(name, data), records(data, name, "support")
    by_image = {data / row["image"][0]: row["answer"] for row in support}
    for query, row in enumerate(records(data, name, "query")):
        prompt = shown(task, 4, query=query)
        for one in prompt.demonstrations:
            assert one.answer == str(by_image[one.image]["+-x".index(row["operator"])])
        assert len({one.image for one in prompt.demonstrations}) == 4


def test_a_matching_shot_is_the_same_and_another(data):
    task = open_task("matching_mi", data)
    assert [one.answer for one in shown(task, 3).demonstrations] == ["yes", "no"] * 3


def test_answers_are_read_as_published():
    assert vl_icl.first_sentence(" dax. It is\nblue") == "dax. It is"
    assert vl_icl.first_sentence("dax. Blue") == "dax" and vl_icl.first_sentence(".5") == ".5"
    assert vl_icl.first_number("It is 12, or 13") == "12" and vl_icl.first_number("ten") == ""
    assert vl_icl.yes_or_no("Yes, it is") == "yes" and vl_icl.yes_or_no("perhaps") == "no"


def judged(name: str, generated: str, answer: str) -> bool:
    """Whether an answer is right, written anew from the benchmark's rules."""
    text = generated.strip()
    end = text.find("\n") if "\n" in text else text.find(".")
    text = text[:end] if end > 0 else text
    if name == "matching_mi":
        return ("yes" in text.lower()) == (answer == "yes")
    if name.startswith("operator"):
        digits = re.findall(r"\d+", text)
        text = digits[0] if digits else ""
    return text.lower() == answer.lower()


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A model that answers in sentences: rightly if it is shown its answer, in one of several forms."""
    output = tmp_path_factory.mktemp("run")

    def talkative(demonstrations, query):
        assert len({len(one.images) for one in demonstrations} | {len(query.images)}) == 1
        said = demonstrations[int(query.id) % len(demonstrations)].answer if demonstrations else "nothing"
        return (f"{said.upper()}\nThis is a", f" {said}. And", f"The answer is {said}", said)[int(query.id) % 4]

    tasks = [open_task(name, data) for name in VL_ICL]
    fl.evaluate(tasks, talkative, shots=(0, 1, 2, 4), seeds=(0, 1), output=output)
    return output


@pytest.mark.parametrize("name", VL_ICL)
def test_scores_are_those_of_the_predictions(run, name):
    scores = json.loads((run / "scores.json").read_text(encoding="utf-8"))[name]["random"]
    assert set(scores) == {"0", "1", "2", "4"}
    for number, found in scores.items():
        for seed in ("0", "1"):
            rows = read_rows(run / name / f"{number}-random-{seed}" / "predictions.jsonl")
            right = [judged(name, row["generated"], row["references"][0]) for row in rows]
            assert found["seeds"][seed] == pytest.approx(100 * sum(right) / 6) and len(right) == 6
            per_shot = 2 if name in ("open_mi", "matching_mi") else 1
            assert {len(row["demonstrations"]) for row in rows} == {int(number) * per_shot}


def test_peak_and_efficiency(run, capsys):
    scores = json.loads((run / "scores.json").read_text(encoding="utf-8"))
    for one in curves(read_run(run)):
        means = [scores[one.task]["random"][n]["mean"] for n in ("0", "1", "2", "4")]
        assert (one.zero, one.peak) == (means[0], max(means))
        assert one.peak_shots == (0, 1, 2, 4)[means.index(max(means))]
        area = (means[0] + means[1]) / 2 + (means[1] + means[2]) / 2 + (means[2] + means[3]) - 4 * means[0]
        assert one.efficiency == pytest.approx(area / 4)
    assert efficiency([0, 1, 2], [0, 100, 100]) == 75 and efficiency([0, 4], [50, 0]) == -25
    assert main(["report", str(run)]) == 0
    text = (run / "report.md").read_text(encoding="utf-8")
    assert "## Curves over shots" in text and "ICL efficiency" in text and "Fast Matching MiniImageNet" in text


def test_ablations_of_several_images(data, tmp_path):
    def seen(demonstrations, query):
        return "yes" if any(one.images for one in demonstrations) else "no"

    task = open_task("matching_mi", data)
    fl.evaluate(task, seen, shots=(2,), seeds=(0,), ablate=True, output=tmp_path)
    rows = read_rows(tmp_path / "matching_mi/2-random-0-shuffled_images/predictions.jsonl")
    plain = read_rows(tmp_path / "matching_mi/2-random-0/predictions.jsonl")
    for row, before in zip(rows, plain, strict=True):
        pairs = [one["images"] for one in row["demonstrations"]]
        assert sorted(pairs) == sorted(one["images"] for one in before["demonstrations"])
    assert main(["report", str(tmp_path)]) == 0 and "of the gain" in (tmp_path / "report.md").read_text(
        encoding="utf-8"
    )


def test_the_embedded_model_answers_from_the_command_line(data, tmp_path, capsys):
    arguments = ["vl_icl", "--data", str(data), "--shots", "0,1", "--seeds", "0", "--queries", "2", "--beams", "1"]
    assert main(["evaluate", *arguments, "--output", str(tmp_path)]) == 0
    assert {path.parent.parent.name for path in tmp_path.glob("*/*/score.json")} == set(VL_ICL)


@pytest.mark.parametrize(
    "name, change, said",
    [
        ("operator_induction", lambda rows: rows[0].update(operator="/"), "operator is '/'; expected one of"),
        ("clevr", lambda rows: rows[1].update(image=["../a.png"]), "expected a path below the benchmark's folder"),
        ("clevr", lambda rows: rows[1].update(image=[]), "expected a list of paths"),
        ("clevr", lambda rows: rows[1].update(image=["clevr/no.png"]), "which does not exist"),
        ("textocr", lambda rows: rows[0].pop("answer"), "has no 'answer'"),
        ("open_mi", lambda rows: rows[0].update(classes=["a"]), "expected the answer and others, with support"),
        ("matching_mi", lambda rows: rows[0]["image"].pop(), "expected the same number in all"),
    ],
)
def test_a_wrong_record_is_named(name, change, said, tmp_path):
    small.write(tmp_path, support=3, queries=2)
    rows = records(tmp_path, name, "query")
    change(rows)
    (tmp_path / name / "query.json").write_text(json.dumps(rows), encoding="utf-8")
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(said)) as error:
        open_task(name, tmp_path)
    assert "query.json" in str(error.value)


@pytest.mark.parametrize("kind", ["flamingo", "transformers"])
def test_pairs_behind_shared_demonstrations_answer_as_alone(data, tmp_path, kind):
    """Demonstrations that prompts share are computed once, with all their images."""
    task = replace(open_task("matching_mi", data), max_new_tokens=4)
    if kind == "flamingo":
        answers = tiny_answers(tmp_path / "model", beams=1)
    else:
        answers = TransformersAnswers.open(str(save_tiny_llava(tmp_path / "model", True)), "cpu", torch.float32, 1)
    prompts = [Prompt.of(task, i, (0, 1), 1) for i in range(3)]
    alone = [answers.generate([prompt])[0] for prompt in (prompts[0], replace(prompts[1], demonstrations=()))]
    together = answers.generate(prompts)
    assert together[0] == alone[0] and len(together) == 3
    if kind == "transformers":
        assert answers._caches and answers._text(prompts[0]).count("<image>") == 6
