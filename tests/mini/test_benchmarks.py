"""The benchmarks in small: what the recipe writes is read as the official files are, and holds what it says."""

import json
from collections import Counter
from itertools import chain

import pytest
from PIL import Image

from flamboyance.evaluation.metrics import vqa_accuracy
from flamboyance.evaluation.metrics.vqa import normalize_answer
from flamboyance.evaluation.tasks import TASKS, open_task
from flamboyance.mini import benchmarks as mini_benchmarks
from flamboyance.mini.world.words import made_up_words

SUPPORT, QUERIES = 32, 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return mini_benchmarks.write(tmp_path_factory.mktemp("mini"), SUPPORT, QUERIES)


@pytest.mark.parametrize("protocol", ["papers", "openflamingo"])
@pytest.mark.parametrize("name", TASKS)
def test_every_task_is_there(name, protocol, folder):
    task = open_task(name, folder, protocol=protocol)
    assert len(task.support) == SUPPORT and len(task.queries) == QUERIES
    with Image.open(task.queries[0].image) as image:
        assert image.size == (64, 64) and image.format == ("PNG" if name == "hateful_memes" else "JPEG")


def test_captions_have_five_references(folder):
    for name in ("coco", "flickr30k"):
        task = open_task(name, folder)
        assert all(len(one.references) == 5 and one.answer in ("", one.references[0]) for one in task.queries)


@pytest.mark.parametrize("name", ["vqav2", "ok_vqa", "textvqa", "vizwiz"])
def test_ten_annotators_answer_and_most_are_right(name, folder):
    task = open_task(name, folder)
    assert all(len(one.references) == 10 for one in task.queries)
    assert all(Counter(one.references).most_common(1)[0][1] >= 7 for one in task.queries)
    first = open_task(name, folder, protocol="openflamingo")
    assert [one.answer for one in task.support] != [one.answer for one in first.support]  # they err now and then


@pytest.mark.parametrize("name", ["vqav2", "ok_vqa", "textvqa", "vizwiz"])
def test_a_question_has_one_right_answer(name, folder):
    """An answer that is not the right one is worth less than a third, by either normalization."""
    task = open_task(name, folder)
    for one in [*task.queries, *open_task(name, folder, protocol="openflamingo").queries]:
        forms = {normalize_answer(answer): answer for answer in chain(*mini_benchmarks.ANSWERS.values())}
        said = {**forms, **{normalize_answer(answer): answer for answer in one.references}}.values()
        for normalize in ("official", "always"):
            worth = {answer: vqa_accuracy(one.references, answer, normalize) for answer in said}
            assert sorted(worth.values())[-1] == 1 and sorted(worth.values())[-2] < 0.34, one


def test_answers_have_the_types_of_the_official_files(tmp_path):
    folder = mini_benchmarks.write(tmp_path, 48, 1)
    types = {"yes-no": "yes/no", "count": "number", "color": "other", "shape": "other"}
    file = folder / "vqav2" / "v2_mscoco_train2014_annotations.json"
    found = json.loads(file.read_text(encoding="utf-8"))["annotations"]
    assert {one["question_type"]: one["answer_type"] for one in found} == types
    assert all((one["answer_type"] == "yes/no") == (one["multiple_choice_answer"] in ("yes", "no")) for one in found)
    vizwiz = json.loads((folder / "vizwiz" / "Annotations" / "train.json").read_text(encoding="utf-8"))
    assert {one["answer_type"] for one in vizwiz} == {"number", "other", "unanswerable"}
    for one in vizwiz:
        most = Counter(answer["answer"] for answer in one["answers"]).most_common(1)[0][0]
        assert (one["answer_type"] == "unanswerable") == (most == "unanswerable") == (not one["answerable"])


def test_vizwiz_has_unanswerable_questions_and_no_ids(folder):
    assert "unanswerable" in {one.answer for one in open_task("vizwiz", folder).support}
    (entry, *_) = json.loads((folder / "vizwiz" / "Annotations" / "val.json").read_text(encoding="utf-8"))
    assert entry["answers"][0].keys() == {"answer", "answer_confidence"}


def test_made_up_words_name_the_classes(folder):
    task = open_task("imagenet", folder)
    assert len(task.labels) == mini_benchmarks.CLASSES and set(task.labels) <= set(made_up_words("test"))
    assert Counter(one.answer for one in task.support) == dict.fromkeys(task.labels, SUPPORT // len(task.labels))


def test_test_splits_are_there(folder):
    assert len(open_task("vqav2:test-dev", folder).queries) == QUERIES // 2
    assert len(open_task("vqav2:test", folder).queries) == QUERIES
    assert len(open_task("vizwiz:test", folder).queries) == QUERIES
    assert len(open_task("hateful_memes:dev", folder).queries) == QUERIES


def test_the_same_numbers_give_the_same_files(folder, tmp_path):
    again = mini_benchmarks.write(tmp_path / "again", SUPPORT, QUERIES)
    other = mini_benchmarks.write(tmp_path / "other", SUPPORT, QUERIES, seed=1)

    def content(where):
        return {str(file.relative_to(where)): file.read_bytes() for file in where.rglob("*") if file.is_file()}

    assert content(again) == content(folder) != content(other)


def test_a_folder_is_not_written_twice_with_other_numbers(folder):
    assert mini_benchmarks.write(folder, SUPPORT, QUERIES) == folder
    with pytest.raises(ValueError, match=r"'support': 32"):
        mini_benchmarks.write(folder, SUPPORT + 1, QUERIES)
    with pytest.raises(ValueError, match=r"support=3, queries=6.*16"):
        mini_benchmarks.write(folder, 3, QUERIES)


def test_the_command(folder, capsys):
    mini_benchmarks.main([str(folder), "--support", str(SUPPORT), "--queries", str(QUERIES)])
    said = capsys.readouterr().out
    assert str(SUPPORT) in said and str(QUERIES) in said
    with pytest.raises(SystemExit, match="another folder"):
        mini_benchmarks.main([str(folder)])
