"""Parts of a run's answers: types of questions, odd answers, calibration, orders; and lm-eval's layout."""

import json
import math
import random
from pathlib import Path

import pytest

import flamboyance as fl
from flamboyance.cli import main
from flamboyance.evaluation.task import Generated
from flamboyance.evaluation.tasks import open_task
from flamboyance.evaluation.tasks.ok_vqa import first_part_stemmed
from flamboyance.evaluation.tasks.vl_icl import first_number, first_sentence
from flamboyance.evaluation.tasks.vqa import first_part
from flamboyance.mini import benchmarks
from flamboyance.reports import lm_eval, tags
from flamboyance.reports.evaluation_run import read_run
from flamboyance.reports.inspection import calibration, inspections
from tests.evaluation.small_tasks import captions, questions, tiny_answers
from tests.reports.test_page import Page
from tests.reports.written_run import Row, WrittenRun, row

SECTION_5_2 = {"yes/no": 70.6, "number": 30.5}  # arXiv:2308.01390, section 5.2, of OpenFlamingo-9B


def crafted(folder: Path) -> Path:
    """VQAv2 with a thousand questions of each type, whose mean scores are the paper's."""
    rows: list[Row] = []
    for kind, mean in (*SECTION_5_2.items(), ("other", 50.0)):
        for i in range(1000):
            score = 100.0 if i < 10 * mean else 0.0
            rows.append(row(f"{kind}-{i}", score, asked=["is it?"], kinds={"answer type": kind, "question type": "is"}))
    random.Random(0).shuffle(rows)
    run = WrittenRun(folder).task("vqav2", "VQAv2", "VQA accuracy")
    run.cell("vqav2", 4, "random", 0, rows, sum(one["score"] for one in rows) / 3000)
    return run.folder


def test_scores_by_answer_type_are_those_of_section_5_2(tmp_path, capsys):
    crafted(tmp_path)
    (one,) = inspections(read_run(tmp_path))
    found = {group.name: group for group in one.kinds if group.kind == "answer type"}
    assert {name: group.score for name, group in found.items()} == pytest.approx({**SECTION_5_2, "other": 50.0})
    assert found["number"].queries == 1000 and found["number"].share == pytest.approx(1 / 3)
    low, high = found["number"].interval
    assert low < 30.5 < high and high - low == pytest.approx(2 * 1.96 * 100 * math.sqrt(0.305 * 0.695 / 1000), rel=0.1)
    assert main(["report", str(tmp_path), "--items", "600"]) == 0
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "## By type of question" in text and "| 30.5 |" in text and "| 70.6 |" in text
    page = Page(tmp_path / "index.html")
    assert all("answer type: " + found["id"].rpartition("-")[0] in found["tags"] for found in page.rows())


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({}, []),
        ({"answer": " "}, ["empty"]),
        ({"cut_off": True}, ["cut off"]),
        ({"answer": "it is a cat I think", "references": ["cat"]}, ["verbose"]),
        ({"answer": "a black cat", "references": ["cat"]}, []),  # three times as many words, but two more
        ({"asked": ["How many cats are there?"]}, ["counting"]),
        ({"asked": ["what is it?"], "kinds": {"answer type": "number"}}, ["counting"]),
        ({"answer": "A DOG."}, ["copied"]),
    ],
)
def test_flags(changes, expected):
    assert tags.flags(row("q", 0.0) | {"references": ["a cat there"], "answer": "a cat"} | changes) == expected


def test_labels_are_neither_copied_nor_verbose():
    shown = row(
        "q", 0.0, answer="a big dog of three", demonstrations=[{"answer": "a big dog of three"}], references=["b"]
    )
    assert tags.flags(shown, ["a big dog of three", "b"]) == []


def test_flags_are_counted_with_their_scores(tmp_path):
    rows = [row("a", 100.0, answer="A dog."), row("b", 0.0, answer="A dog."), row("c", 0.0, answer="")]
    run = WrittenRun(tmp_path).task("coco", "COCO", "CIDEr")
    run.cell("coco", 4, "random", 0, [*rows, row("d", 50.0)])
    run.cell("coco", 4, "random", 1, [row("a", 0.0), *rows[1:], row("d", 50.0)])
    (one,) = inspections(read_run(tmp_path))
    found = {group.name: (group.queries, group.share, group.score) for group in one.flags}
    assert found == {"empty": (1, 0.25, 0.0), "copied": (2, 0.375, 50.0)}  # query a: 100, in one seed; b: 0 in both


def test_calibration():
    """Guo et al., equation 3, by hand: tenths 3 and 9."""
    answers = [(0.95, True), (0.9, True), (0.92, False), (0.35, False), (0.31, True), (1.0, True)]
    found = calibration(answers)
    assert found.bins[0] == (pytest.approx(0.33), 0.5, 2) and found.bins[1] == (pytest.approx(0.9425), 0.75, 4)
    assert found.error == pytest.approx((2 * 0.17 + 4 * 0.1925) / 6)
    assert (found.accuracy, found.confidence) == (pytest.approx(4 / 6), pytest.approx(sum(c for c, _ in answers) / 6))


def test_probabilities_of_labels_are_read(tmp_path):
    run = WrittenRun(tmp_path).task("birds", "Birds", "accuracy", labels=["no", "yes"])
    sure = {"no": math.log(0.1), "yes": math.log(0.9)}
    rows = [row("a", 100.0, scores=sure, answer="yes", references=["yes"])]
    rows += [row("b", 0.0, scores=sure, answer="yes", references=["no"]), row("c", 0.0, answer="?", references=["no"])]
    run.cell("birds", 4, "random", 0, rows)
    (one,) = inspections(read_run(tmp_path))
    assert (one.calibration.answers, one.calibration.accuracy) == (2, 0.5)
    assert one.calibration.error == pytest.approx(0.4)
    assert tags.tags(rows[0], ["no", "yes"]) == ["probability: 90 to 100 %"]
    assert tags.confidence(rows[0], ["no", "yes", "perhaps"]) is None


def last(demonstrations, query):
    """Repeats the answer next to the query: as sensitive to the order as can be."""
    return demonstrations[-1].answer


def test_orders_are_asked_and_compared(tmp_path):
    task = captions(tmp_path / "data")
    fl.evaluate(task, last, shots=[0, 1, 3], seeds=[0, 1], orders=2, output=tmp_path / "run")
    cells = {path.name for path in (tmp_path / "run" / "captions").iterdir() if "order" in path.name}
    assert cells == {f"3-random-{seed}-order_{n}" for seed in (0, 1) for n in (1, 2)}
    run = read_run(tmp_path / "run")
    plain = {(one.cell.shots, one.cell.seed): {r["id"]: r for r in one.rows()} for one in run.cells}
    for cell in run.changed:
        for found in cell.rows():
            before, now = plain[3, cell.cell.seed][found["id"]], [one["id"] for one in found["demonstrations"]]
            given = [one["id"] for one in before["demonstrations"]]
            assert sorted(now) == sorted(given) and now != given
    seen = {one.shots: one.orders for one in inspections(run)}
    assert seen[0] is None and seen[1] is None and len(seen[3].scores) == 3 and seen[3].changed > 0.5
    assert main(["report", str(tmp_path / "run")]) == 0
    text = (tmp_path / "run" / "report.md").read_text(encoding="utf-8")
    assert "## Order of demonstrations" in text and "What in the demonstrations" not in text


def test_no_order_is_asked_twice(tmp_path):
    task = captions(tmp_path / "data")
    fl.evaluate(task, last, shots=[2, 3], seeds=[0], orders=9, output=tmp_path / "run")
    assert {one.shots: len(one.orders.scores) for one in inspections(read_run(tmp_path / "run"))} == {2: 2, 3: 6}


def test_types_come_from_the_benchmarks_files(tmp_path):
    benchmarks.write(tmp_path, 20, 12, tasks=["vqav2", "vizwiz"])
    (file,) = (tmp_path / "vqav2").glob("*val2014_annotations.json")
    known = {str(one["question_id"]): one for one in json.loads(file.read_text(encoding="utf-8"))["annotations"]}
    for one in open_task("vqav2", tmp_path).queries:
        types = known[one.id]
        assert dict(one.kinds) == {"answer type": types["answer_type"], "question type": types["question_type"]}
    assert all(dict(one.kinds)["answer type"] for one in open_task("vizwiz", tmp_path).queries)
    table = tmp_path / "own.jsonl"
    images = [str(image.relative_to(tmp_path)) for image in sorted((tmp_path / "vqav2" / "val2014").iterdir())]
    told = {"question": "how many?", "answer": "2", "answer_type": "number"}
    table.write_text("".join(json.dumps(told | {"image": image}) + "\n" for image in images), encoding="utf-8")
    found = fl.evaluate(table, lambda *_: Generated("2 and", True), shots=[0], seeds=[0], output=tmp_path / "r")
    assert found["own"]["random"]["0"]["mean"] == 0
    first = next(next(iter(read_run(tmp_path / "r").cells)).rows())
    assert first["kinds"] == {"answer type": "number"} and first["cut_off"] is True
    assert tags.flags(first) == ["cut off", "counting"]


@pytest.mark.parametrize(
    "post_process, said, cut_off",
    [
        (first_part, "a group of people riding", True),
        (first_part_stemmed, "a group of people riding", True),  # the answer is "a group of people ride"
        (first_part, "yes, it", False),
        (first_part_stemmed, "bears, it", False),
        (first_sentence, "bears\nand", False),
        (first_number, "It is 12", True),
    ],
)
def test_an_answer_is_cut_off_if_more_would_change_it(post_process, said, cut_off, tmp_path):
    task = questions(tmp_path / "data", labels=None, post_process=post_process)
    fl.evaluate(task, lambda *_: Generated(said, True), shots=[0], seeds=[0], output=tmp_path / "run")
    assert {found["cut_off"] for found in next(iter(read_run(tmp_path / "run").cells)).rows()} == {cut_off}


def test_a_flamingo_says_whether_it_was_cut_off(tmp_path):
    answers, task = tiny_answers(tmp_path / "model"), captions(tmp_path / "data", max_new_tokens=3)
    fl.evaluate(task, answers, shots=[0], seeds=[0], output=tmp_path / "run")
    for found in next(iter(read_run(tmp_path / "run").cells)).rows():
        assert found["cut_off"] in (True, False)
        assert not found["cut_off"] or len(found["generated"].split()) == 3
    assert questions(tmp_path / "more").labels


def test_lm_evals_layout(tmp_path):
    run = (
        WrittenRun(tmp_path, "org/some model")
        .task("birds", "Birds", "top-1", 2, ["no", "yes"])
        .task("coco", "COCO", "CIDEr")
    )
    run.cell("birds", 4, "random", 0, [row("a", 100.0), row("b", 0.0)], 50.0)
    run.cell("birds", 4, "random", 1, [row("a", 100.0), row("b", 100.0)], 100.0, (100.0, 100.0))
    run.cell("coco", 4, "random", 0, [row("a", 80.0)], 80.0, None)
    run.cell("coco", 0, "rices", 0, [row("a", 80.0)], 70.0)
    assert main(["report", str(tmp_path)]) == 0
    files = sorted(tmp_path.glob("lm_eval/*/*/results_*.json"))
    assert [str(file.relative_to(tmp_path)) for file in files] == [
        f"lm_eval/{cell}/org__some__model/results_2026-11-21.json" for cell in ("0-rices", "4-random")
    ]
    found = json.loads(files[1].read_text(encoding="utf-8"))
    assert found["results"]["birds"]["acc,none"] == 0.75 and found["results"]["birds"]["alias"] == "birds"
    error = (((60 + 100) - (40 + 100)) / 2) / (2 * 1.959964) / 100
    assert found["results"]["birds"]["acc_stderr,none"] == pytest.approx(error)
    assert found["results"]["coco"] == {"alias": "coco", "cider,none": 0.8, "cider_stderr,none": "N/A"}
    assert found["n-shot"] == {"birds": 4, "coco": 4} and found["n-samples"]["birds"] == {"original": 2, "effective": 2}
    assert found["configs"]["birds"]["output_type"] == "multiple_choice"
    assert found["higher_is_better"]["coco"] == {"cider": True}
    assert found["model_name"] == "org/some model" and found["config"]["model_args"] == "pretrained=org/some model"
    assert lm_eval.metric_key("VQA accuracy") == "vqa_accuracy"
