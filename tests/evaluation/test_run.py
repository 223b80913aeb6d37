"""A whole evaluation: the same answers however it is batched, shared out, cut off and gone on with."""

import copy
import dataclasses
import json
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

from flamboyance.evaluation import metrics, results, run, shots
from flamboyance.evaluation.prompts import Prompt
from flamboyance.evaluation.run import Settings
from flamboyance.evaluation.task import Metric, Score
from flamboyance.processes import World
from flamboyance.prompting import Prefix
from tests.evaluation.small_tasks import captions, questions, tiny_answers

ABOUT = {"model": {"fingerprint": "f"}, "protocol": "papers", "fixed": {}, "tasks": {}}


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    return tiny_answers(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    return [captions(folder / "captions"), questions(folder / "questions", permutations=3)]


def asked(tasks, answers, output: Path, **settings) -> dict:
    settings = {"shots": (0, 3), "seeds": (0,), **settings}
    return run.evaluate(tasks, answers, Settings(output, **settings), dict(ABOUT), say=lambda _: None)


def rows(output: Path) -> dict[str, list[dict]]:
    files = sorted(output.glob("*/*/predictions.jsonl"))
    return {str(file.parent.relative_to(output)): results.read_rows(file) for file in files}


def assert_same(left: dict[str, list[dict]], right: dict[str, list[dict]]) -> None:
    assert left.keys() == right.keys() and left
    for cell, found in left.items():
        for one, other in zip(found, right[cell], strict=True):
            scores, others = one.pop("scores"), other.pop("scores")
            assert one == other
            if scores:
                assert list(scores.values()) == pytest.approx(list(others.values()), abs=1e-5)


@pytest.fixture(scope="module")
def whole(tasks, answers, tmp_path_factory):
    output = tmp_path_factory.mktemp("whole")
    asked(tasks, answers, output)
    return output


@pytest.mark.parametrize("size", [1, 2, 16])
def test_batch_size_changes_nothing(tasks, answers, whole, tmp_path, size):
    asked(tasks, answers, tmp_path, batch_size=size)
    assert_same(rows(whole), rows(tmp_path))


def test_answers_are_those_of_the_plain_model(tasks, answers, whole):
    """Each query alone, its full prompt and pixels, without any cache."""
    processor, model = answers.processor, answers.model
    for cell in ("captions/0-random-0", "captions/3-random-0"):
        for row in rows(whole)[cell]:
            images = [shot["image"] for shot in row["demonstrations"] if shot["image"]] + [row["image"]]
            inputs = processor([row["prompt"]], [images])
            out = model.generate(**inputs, max_new_tokens=4, num_beams=3, length_penalty=0.0, do_sample=False)
            text = processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0]
            assert row["generated"] == text


def test_scores_are_those_of_the_plain_model(tasks, answers):
    prompts = [Prompt.of(tasks[1], i, range(i, i + 3), 3) for i in range(4)]
    for prompt, found in zip(prompts, answers.score(prompts), strict=True):
        for label, score in zip(tasks[1].labels, found, strict=True):
            alone = answers.processor([prompt.text], [prompt.images])
            both = answers.processor([prompt.text + label], [prompt.images])
            new = both["input_ids"].shape[1] - alone["input_ids"].shape[1]
            logits = answers.model(**both).logits[0, -new - 1 : -1].log_softmax(-1)
            assert score == pytest.approx(logits.gather(1, both["input_ids"][0, -new:, None]).mean().item(), abs=1e-5)


def test_labels_are_averaged_over_orders(tasks, answers, whole):
    task = tasks[1]
    chosen = shots.select(task, 3, "random", 0)
    row = rows(whole)["questions/3-random-0"][4]
    orders = shots.permutations(3, 3, 0, "q4")
    assert len(set(orders)) == 3
    prompts = [Prompt.of(task, 4, chosen[4], 3).in_order(order) for order in orders]
    alone = [answers.score([prompt])[0] for prompt in prompts]
    assert list(row["scores"].values()) == pytest.approx(np.mean(alone, axis=0).tolist(), abs=1e-5)
    assert row["answer"] == task.labels[int(np.argmax(np.mean(alone, axis=0)))]
    assert not np.allclose(alone[0], alone[1], atol=1e-4)  # orders do count


def test_no_shots_are_two_texts_without_images(whole):
    row = rows(whole)["captions/0-random-0"][0]
    assert [shot["image"] for shot in row["demonstrations"]] == [None, None]
    assert row["prompt"].count("<image>") == 1 and row["prompt"].endswith("<image>Output:")
    assert row["prompt"].count("<|endofchunk|>") == 2
    assert row["prompt"].startswith(f"Output:{row['demonstrations'][0]['answer']}<|endofchunk|>")


def test_ranks_share_every_query_once(tasks, answers, whole, tmp_path):
    """Processes one after the other; `test_command.py` has real ones."""
    cell, task = results.Cell("captions", 3, "random", 0), tasks[0]
    settings = Settings(tmp_path, shots=(3,), seeds=(0,))
    queries = list(range(len(task.queries)))
    for rank in (1, 0):
        run._answer_share(task, queries, cell, answers, settings, None, World(rank, 2), lambda _: None)
    parts = sorted(cell.folder(tmp_path).glob("predictions-*.jsonl"))
    assert [len(results.read_rows(part)) for part in parts] == [5, 4]
    results.finish(cell, tmp_path, task, {})
    assert_same({"captions/3-random-0": rows(whole)["captions/3-random-0"]}, rows(tmp_path))


class Killed(RuntimeError):
    pass


@pytest.mark.parametrize("resumed_as", [World(), World(1, 2)])
def test_a_killed_run_goes_on(tasks, answers, whole, tmp_path, monkeypatch, resumed_as):
    left = iter(range(2))

    def dies(batch):
        if next(left, None) is None:
            raise Killed
        return type(answers).generate(answers, batch)

    monkeypatch.setattr(answers, "generate", dies)
    with pytest.raises(Killed):
        asked(tasks[:1], answers, tmp_path, shots=(3,), batch_size=2)
    monkeypatch.undo()
    part = tmp_path / "captions/3-random-0/predictions-0.jsonl"
    done = results.read_rows(part)
    assert len(done) == 4
    with part.open("a", encoding="utf-8") as file:
        file.write('{"id": "q8", "answ')  # cut off in writing
    again = []
    monkeypatch.setattr(
        answers,
        "generate",
        lambda batch: again.extend(p.query.id for p in batch) or type(answers).generate(answers, batch),
    )
    if resumed_as.size == 2:  # on another number of processes
        cell, queries = results.Cell("captions", 3, "random", 0), list(range(9))
        for rank in (0, 1):
            settings = Settings(tmp_path, shots=(3,), seeds=(0,))
            run._answer_share(tasks[0], queries, cell, answers, settings, None, World(rank, 2), lambda _: None)
    asked(tasks[:1], answers, tmp_path, shots=(3,), batch_size=2)
    assert sorted(again) == sorted({f"q{i}" for i in range(9)} - {row["id"] for row in done})
    assert_same({"captions/3-random-0": rows(whole)["captions/3-random-0"]}, rows(tmp_path))
    assert not list(tmp_path.glob("*/*/predictions-*.jsonl"))


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("number", [0, 3])
def test_fixed_demonstrations_are_computed_once(tasks, answers, tmp_path, monkeypatch, size, number):
    """And the answers are those of the whole prompts."""
    task = dataclasses.replace(tasks[1], permutations=1)
    made = []
    of = Prefix.of.__func__
    monkeypatch.setattr(Prefix, "of", classmethod(lambda cls, *given: made.append(1) or of(cls, *given)))
    for one in (tasks[0], task):
        settings = {"shots": (number,), "modes": ("fixed",), "batch_size": size}
        asked([one], answers, tmp_path / "shared", **settings)
    assert len(made) == 2
    monkeypatch.setattr(answers, "_shared_prefix", lambda prompts: None)
    for one in (tasks[0], task):
        asked([one], answers, tmp_path / "whole", **settings)
    assert_same(rows(tmp_path / "shared"), rows(tmp_path / "whole"))


def test_what_is_done_is_not_asked_again(tasks, answers, tmp_path, monkeypatch):
    first = asked(tasks[:1], answers, tmp_path)
    monkeypatch.setattr(answers, "generate", None)
    assert asked(tasks[:1], answers, tmp_path) == first


def test_further_settings_join_a_run(tasks, answers, tmp_path):
    asked(tasks[:1], answers, tmp_path, shots=(2,))
    found = asked(tasks[:1], answers, tmp_path, shots=(2,), seeds=(0, 1))
    assert set(found["captions"]["random"]["2"]["seeds"]) == {"0", "1"}
    values = list(found["captions"]["random"]["2"]["seeds"].values())
    assert found["captions"]["random"]["2"]["mean"] == pytest.approx(np.mean(values))
    assert found["captions"]["random"]["2"]["std"] == pytest.approx(np.std(values))


def test_a_command_for_another_seed_alone_joins_a_run(tasks, answers, tmp_path):
    asked(tasks[:1], answers, tmp_path, shots=(2,), seeds=(0, 1))
    found = asked(tasks[:1], answers, tmp_path, shots=(0,), seeds=(3,))
    assert set(found["captions"]["random"]["2"]["seeds"]) == {"0", "1"}
    assert set(found["captions"]["random"]["0"]["seeds"]) == {"3"}


def test_what_utf8_cannot_write_is_kept(tasks, answers, tmp_path):
    odd = dataclasses.replace(tasks[0].queries[0], id="caf\udce9")
    task = dataclasses.replace(tasks[0], queries=[odd, *tasks[0].queries[1:]])
    asked([task], answers, tmp_path, shots=(2,))
    rows = results.read_rows(tmp_path / "captions/2-random-0/predictions.jsonl")
    assert rows[0]["id"] == "caf\udce9"


def test_a_query_without_an_answer_among_others_is_named(tasks, tmp_path):
    queries = [tasks[0].queries[0], dataclasses.replace(tasks[0].queries[1], references=())]
    task = dataclasses.replace(tasks[0], queries=queries)
    with pytest.raises(ValueError, match=f"1 of 2 .*{queries[1].id!r}"):
        Settings(tmp_path, shots=(2,)).check([task])
    without = dataclasses.replace(task, queries=queries[1:])
    Settings(tmp_path, shots=(2,)).check([without])  # a test split


def test_a_querys_own_images_do_not_count_as_demonstrations(tasks, tmp_path):
    task = dataclasses.replace(tasks[0], support=tasks[0].queries)
    number = len(task.queries)
    with pytest.raises(ValueError, match=f"{number - 1} demonstrations.*{number} shots"):
        Settings(tmp_path, shots=(number,)).check([task])
    Settings(tmp_path, shots=(number - 1,)).check([task])


def test_a_damaged_run_is_named(tasks, answers, tmp_path):
    asked(tasks[:1], answers, tmp_path, shots=(2,))
    (tmp_path / "run.json").write_text('{"model":', encoding="utf-8")
    with pytest.raises(ValueError, match=r"run\.json.*damaged"):
        asked(tasks[:1], answers, tmp_path, shots=(2,))


def test_another_model_is_refused(tasks, answers, tmp_path):
    asked(tasks[:1], answers, tmp_path, shots=(2,))
    about = {**ABOUT, "model": {"fingerprint": "other"}}
    with pytest.raises(ValueError, match=r"fingerprint.*'f'.*'other'"):
        run.evaluate(tasks[:1], answers, Settings(tmp_path, shots=(2,)), about)


def test_other_data_are_refused(tasks, answers, tmp_path):
    asked(tasks[:1], answers, tmp_path, shots=(2,))
    (tmp_path / "captions/2-random-0/score.json").unlink()
    fewer = dataclasses.replace(tasks[0], queries=tasks[0].queries[:5])
    with pytest.raises(ValueError, match=r"9 .*5 "):
        asked([fewer], answers, tmp_path, shots=(2,))


def test_a_damaged_line_is_named(tasks, answers, tmp_path):
    asked(tasks[:1], answers, tmp_path, shots=(2,))
    folder = tmp_path / "captions/2-random-0"
    (folder / "score.json").unlink()
    lines = (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    (folder / "predictions.jsonl").write_text(
        "\n".join([*lines[:3], lines[3][:20], *lines[4:]]) + "\n", encoding="utf-8"
    )
    with pytest.raises(ValueError, match=r"predictions\.jsonl, line 4"):
        asked(tasks[:1], answers, tmp_path, shots=(2,))


def test_demonstrations_go_before_the_query_is_cut(tasks, answers, tmp_path, monkeypatch):
    task = tasks[0]
    whole = Prompt.of(task, 0, range(8), 8)
    monkeypatch.setattr(answers, "context", answers.lengths([whole.without_first(3)])[0] + task.max_new_tokens)
    found = asked([task], answers, tmp_path, shots=(8,))
    assert found["captions"]["random"]["8"]["mean"] is not None
    for row in rows(tmp_path)["captions/8-random-0"]:
        assert row["dropped"] > 0 and len(row["demonstrations"]) == 8 - row["dropped"]
        assert row["prompt"].endswith("<image>Output:")
        assert answers.lengths([whole])[0] > answers.context - 4
    score = json.loads((tmp_path / "captions/8-random-0/score.json").read_text(encoding="utf-8"))
    assert score["dropped"] == sum(row["dropped"] for row in rows(tmp_path)["captions/8-random-0"])
    monkeypatch.setattr(answers, "context", 5)
    with pytest.raises(ValueError, match="query 'q0'"):
        asked([task], answers, tmp_path / "short", shots=(2,))


def test_subsets_of_queries(tasks, answers, tmp_path):
    asked(tasks[:1], answers, tmp_path, shots=(2,), queries=4, seeds=(0, 1))
    first, second = ([row["id"] for row in found] for found in rows(tmp_path).values())
    assert len(set(first)) == 4 and first == second  # deviations over seeds are of the demonstrations alone


def test_queries_without_references_are_answered(tasks, answers, tmp_path):
    blank = [dataclasses.replace(query, references=()) for query in tasks[0].queries]
    sent = lambda examples, said: [{"id": e.id, "answer": p.answer} for e, p in zip(examples, said, strict=True)]  # noqa: E731
    task = dataclasses.replace(tasks[0], queries=blank, test_server=sent)
    assert asked([task], answers, tmp_path, shots=(2,)) == {}
    content = json.loads((tmp_path / "captions/2-random-0/test_server.json").read_text(encoding="utf-8"))
    assert [one["id"] for one in content] == [query.id for query in blank]


def test_labels_without_numbers_are_refused(tasks, answers, tmp_path, monkeypatch):
    """The likeliest of labels whose log-probabilities are NaN would be the first one."""
    monkeypatch.setattr(answers, "score", lambda prompts: [[float("nan")] * 3] * len(prompts))
    with pytest.raises(ValueError, match=r"query 'q\d'.*log-probabilities"):
        asked(tasks[1:], answers, tmp_path, shots=(2,))
    assert not list(tmp_path.glob("*/*/score.json"))


def test_a_curve_of_one_label_is_refused_beforehand(tasks, tmp_path):
    task = dataclasses.replace(tasks[1], metric=metrics.roc_auc("yes", tasks[1].labels))
    Settings(tmp_path, shots=(2,)).check([task])
    with pytest.raises(ValueError, match=r"questions.*label 'yes'"):
        Settings(tmp_path, shots=(2,)).check([dataclasses.replace(task, queries=task.queries[::2])])


def test_values_that_are_none_are_null(tasks, answers, tmp_path):
    """score.json and scores.json are JSON for any reader."""

    def refuse(name: str) -> float:
        raise AssertionError(name)

    nothing = Metric("m", lambda examples, said: Score(float("nan"), {}, (float("nan"), float("nan"))))
    assert asked([dataclasses.replace(tasks[0], metric=nothing)], answers, tmp_path, shots=(2,)) == {}
    for file in tmp_path.rglob("*.json"):
        json.loads(file.read_text(encoding="utf-8"), parse_constant=refuse)
    score = json.loads((tmp_path / "captions/2-random-0/score.json").read_text(encoding="utf-8"))
    assert score["value"] is None and score["interval"] is None


def test_a_finished_cells_rows_are_not_held(tasks, answers, tmp_path, monkeypatch):
    """Prompts of VQAv2's cells take gigabytes: at most one is in memory when a cell is put in order."""
    alive = weakref.WeakSet()
    most = []

    class Held(dict):
        __hash__ = object.__hash__

        def __init__(self, *given):
            super().__init__(*given)
            alive.add(self)
            most.append(len(alive))

    plain = json.loads
    asked(tasks[:1], answers, tmp_path, shots=(2,))
    (tmp_path / "captions/2-random-0/score.json").unlink()
    monkeypatch.setattr(results.json, "loads", lambda text, **how: Held(plain(text, **how)))
    before = rows_of(tmp_path / "captions/2-random-0/predictions.jsonl", plain)
    most.clear()
    results.finish(results.Cell("captions", 2, "random", 0), tmp_path, tasks[0], {})
    assert len(most) == 18 and max(most) <= 3
    assert rows_of(tmp_path / "captions/2-random-0/predictions.jsonl", plain) == before


def rows_of(file: Path, loads) -> list[dict]:
    return [loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_too_many_shots_are_told_beforehand(tasks, tmp_path):
    with pytest.raises(ValueError, match=r"captions.*12 .*32 "):
        Settings(tmp_path).check(tasks)
    one = dataclasses.replace(tasks[0], support=tasks[0].support[:1])
    for settings, advice in (
        ({"shots": (0,)}, r"fewer: --shots 1$"),  # 0 shots show two texts
        ({"shots": (0, 1, 8)}, r"fewer: --shots 1$"),
        ({"shots": (1,), "ablate": True}, r"more examples$"),
    ):
        with pytest.raises(ValueError, match=advice):
            Settings(tmp_path, **settings).check([one])
    with pytest.raises(ValueError, match="labels"):
        Settings(tmp_path, shots=(4,), modes=("balanced",)).check(tasks)


def test_bf16_counts_as_another_model(answers):
    before = answers.describe()
    assert before["dtype"] == "float32" and before["parameters"] == sum(p.numel() for p in answers.model.parameters())
    answers.model.to(torch.bfloat16)
    try:
        assert answers.describe()["fingerprint"] != before["fingerprint"]
    finally:
        answers.model.to(torch.float32)


def test_another_processor_counts_as_another_model(answers, monkeypatch):
    before, processor = answers.describe(), answers.processor
    darker = dataclasses.replace(processor.image_processor, mean=(0.0, 0.0, 0.0))
    monkeypatch.setattr(processor, "image_processor", darker)
    other = answers.describe()
    assert {key for key in before if before[key] != other[key]} == {"preprocessing"}
    tokenizer = copy.deepcopy(processor.tokenizer)
    tokenizer.add_tokens(["zebra"])
    monkeypatch.setattr(processor, "tokenizer", tokenizer)
    assert answers.describe()["tokenizer"] != before["tokenizer"]


def test_a_run_of_an_earlier_version_goes_on(tasks, answers, tmp_path):
    """Its run.json does not tell how images are prepared. From then on it does, whatever the next command computes."""
    asked(tasks[:1], answers, tmp_path, shots=(2,))
    told = {**ABOUT, "model": ABOUT["model"] | {"preprocessing": "a"}, "fixed": {"features": "tower"}}
    for about in (told, ABOUT):
        results.begin(tmp_path, dict(about))
        assert results.read_object(tmp_path / "run.json")["model"] == told["model"]
    for other in ({"model": ABOUT["model"] | {"preprocessing": "b"}}, {"fixed": {"features": "other"}}):
        with pytest.raises(ValueError, match=r"preprocessing.*'a'.*'b'|features.*'tower'.*'other'"):
            results.begin(tmp_path, told | other)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_names_the_predictions(tmp_path):
    rows = results.Rows(tmp_path, 0)
    rows._file = open("/dev/full", "a", encoding="utf-8")  # noqa: SIM115  closed below
    for again in (lambda: rows.append([{"id": "a"}]), rows.close):
        with pytest.raises(OSError, match="No space left") as raised:
            again()
        assert raised.value.filename == str(tmp_path / "predictions-0.jsonl")
