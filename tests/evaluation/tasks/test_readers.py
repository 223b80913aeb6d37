"""Official files become examples: which split, which image, which answer, which references."""

import json

import pytest

from flamboyance.evaluation.task import Prediction
from flamboyance.evaluation.tasks import TASKS, open_task
from tests.evaluation.tasks import files
from tests.evaluation.tasks.files import WRITE


def opened(name, folder, **options):
    return open_task(name, folder, **options)


@pytest.mark.parametrize("name", TASKS)
def test_every_task_opens(name, tmp_path):
    WRITE[name](tmp_path / name)
    task = opened(name, tmp_path)
    assert task.name == name and task.title == TASKS[name].title
    assert task.support and task.queries
    assert all(one.image.is_file() for one in (*task.support, *task.queries))
    assert all(one.answer for one in task.support)
    assert all(one.references for one in task.queries)
    # The data's folder itself does as well as the folder that holds it.
    assert opened(name, tmp_path / name).queries == task.queries


def test_karpathy_splits_of_coco(tmp_path):
    files.coco(tmp_path)
    task = opened("coco", tmp_path)
    assert [(one.id, one.answer) for one in task.support] == [("1", "A cat on a sofa."), ("5", "Two dogs")]
    assert [(one.id, one.references) for one in task.queries] == [("4", ("A red bus.", "A bus.")), ("6", ("A boat",))]
    assert task.support[0].image == tmp_path / "train2014" / "COCO_train2014_000000000001.jpg"
    assert task.queries[0].image.parent.name == "val2014"


def test_karpathy_splits_of_flickr30k(tmp_path):
    files.flickr30k(tmp_path)
    task = opened("flickr30k", tmp_path)
    assert [one.id for one in task.support] == ["11", "13"] and [one.id for one in task.queries] == ["12"]


@pytest.mark.parametrize("name", ["vqav2", "ok_vqa"])
def test_questions_and_annotations_are_joined_by_id(name, tmp_path):
    WRITE[name](tmp_path)  # the annotations stand in the other order
    task = opened(name, tmp_path)
    assert [(one.id, one.asked, one.answer) for one in task.support] == [
        ("1", ("What is this?",), "cat"),
        ("2", ("What color is the bus?",), "red"),
    ]
    assert [one.references[-1] for one in task.queries] == ["two dogs", "no"]
    assert [one.image.name for one in task.queries] == [f"COCO_val2014_{n:012d}.jpg" for n in (25, 26)]


def test_the_protocols_show_the_majority_or_the_first_annotator(tmp_path):
    files.vqav2(tmp_path)
    assert opened("vqav2", tmp_path).support[0].answer == "cat"
    assert opened("vqav2", tmp_path, protocol="openflamingo").support[0].answer == "a cat"


@pytest.mark.parametrize(
    "name, write, other", [("textvqa", files.textvqa, files.textvqa_pair), ("vizwiz", files.vizwiz, files.vizwiz_pair)]
)
def test_both_formats_say_the_same(name, write, other, tmp_path):
    write(tmp_path / "own")
    other(tmp_path / "pair")
    own, pair = opened(name, tmp_path / "own"), opened(name, tmp_path / "pair")
    assert [(q.asked, q.answer, q.references, q.image.name) for q in own.queries] == [
        (q.asked, q.answer, q.references, q.image.name) for q in pair.queries
    ]
    assert [(q.asked, q.answer) for q in own.support] == [(q.asked, q.answer) for q in pair.support]


def test_vqav2s_test_server_gets_an_answer_to_every_question(tmp_path):
    files.vqav2(tmp_path)
    assert opened("vqav2", tmp_path).test_server is None
    task = opened("vqav2:test-dev", tmp_path)
    assert task.name == "vqav2-test-dev" and [one.id for one in task.queries] == ["101"]
    assert not any(one.references for one in task.queries)
    assert task.test_server(task.queries, [Prediction("Two, the dogs!")]) == [
        {"question_id": 100, "answer": ""},
        {"question_id": 101, "answer": "2 dogs"},
        {"question_id": 102, "answer": ""},
    ]
    assert len(opened("vqav2:test", tmp_path).queries) == 3


def test_vizwizs_test_server_gets_an_answer_to_every_image(tmp_path):
    files.vizwiz(tmp_path)
    task = opened("vizwiz:test", tmp_path)
    some = task.test_server(task.queries[1:], [Prediction("no")])
    assert [one["answer"] for one in some] == ["", "no"]
    assert task.test_server(task.queries, [Prediction("The bus."), Prediction("no")]) == [
        {"image": "VizWiz_test_00000025.jpg", "answer": "bus"},
        {"image": "VizWiz_test_00000026.jpg", "answer": "no"},
    ]


def test_hateful_memes(tmp_path):
    files.hateful_memes(tmp_path)
    task = opened("hateful_memes", tmp_path)
    assert [(one.asked, one.answer) for one in task.support] == [(("nice day",), "no"), (("nasty day",), "yes")]
    assert [one.references for one in task.queries] == [("yes",), ("no",)]
    assert [one.id for one in opened("hateful_memes:dev", tmp_path).queries] == ["3"]


def test_hateful_memes_without_labels_are_asked_all_the_same(tmp_path):
    files.hateful_memes(tmp_path)
    files.put(tmp_path / "test_unseen.jsonl", json.dumps({"id": 1, "img": "img/00001.png", "text": "hm"}))
    assert opened("hateful_memes:test_unseen", tmp_path).queries[0].references == ()


def test_imagenet_is_in_the_folders_order(tmp_path):
    files.imagenet(tmp_path)
    task = opened("imagenet", tmp_path)
    assert [one.id for one in task.support] == ["n01/n01_1.JPEG", "n01/n01_2.JPEG", "n02/n02_1.JPEG", "n02/n02_2.JPEG"]
    assert [one.references for one in task.queries] == [("tench",), ("great white shark",)]


def test_class_names_from_json_and_from_folders(tmp_path):
    files.imagenet(tmp_path)
    (tmp_path / "classnames.txt").unlink()
    assert opened("imagenet", tmp_path).labels == ("n01", "n02")
    files.put(tmp_path / "classnames.json", {"n01": "tench", "n02": "tench too", "n03": "unused"})
    assert opened("imagenet", tmp_path).labels == ("tench", "tench too")


def test_imagenets_thousand_folders_get_openais_names(tmp_path):
    pytest.importorskip("open_clip")
    for number in range(1000):
        for split in ("train", "val"):
            folder = tmp_path / split / f"n{number:08d}"
            folder.mkdir(parents=True)
            (folder / "a.JPEG").touch()
    task = opened("imagenet", tmp_path)
    assert task.support[0].answer == "tench" and task.support[999].answer == "toilet paper"
    assert len(task.labels) == 998  # two pairs of classes share a name


def test_files_may_lie_elsewhere(tmp_path):
    files.flickr30k(tmp_path)
    moved = (tmp_path / "dataset_flickr30k.json").rename(tmp_path / "splits.json")
    assert opened("flickr30k", tmp_path, files={"karpathy": str(moved)}).queries
