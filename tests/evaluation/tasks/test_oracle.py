"""What an oracle scores that gives the annotators' majority: figures of the protocols that need no model."""

from collections import Counter

import pytest

from flamboyance.evaluation.task import Example, Prediction
from flamboyance.evaluation.tasks import open_task
from tests.evaluation.tasks.files import WRITE, picture, put, vqa_pair


def oracle(task):
    """The majority's answer to each query, through the task's post-processing."""
    said = [Counter(one.references).most_common(1)[0][0] for one in task.queries]
    return task.metric.measure(task.queries, [Prediction(task.post_process(answer)) for answer in said])


@pytest.mark.parametrize("name", ["vqav2", "ok_vqa", "textvqa", "vizwiz"])
def test_the_majority_is_right(name, tmp_path):
    WRITE[name](tmp_path)  # nine and seven of ten agree
    assert oracle(open_task(name, tmp_path)).value == pytest.approx(100)


@pytest.mark.parametrize("name", ["vqav2", "ok_vqa", "textvqa", "vizwiz"])
def test_answers_that_all_agree_on_are_normalized_as_by_each_script(name, tmp_path):
    """VQAv2's leaves "Yes" as it is where all say "yes"; TextVQA's and VizWiz's do not, nor does OpenFlamingo's."""
    WRITE[name](tmp_path)
    found = {}
    for protocol in ("papers", "openflamingo"):
        metric = open_task(name, tmp_path, protocol=protocol).metric
        query = Example("1", tmp_path, "", (), ("yes",) * 10)
        if metric.variant.startswith("annotators"):  # vizwiz's has the files' entries, by its queries' ids
            continue
        found[protocol] = metric.measure([query], [Prediction("Yes")]).value, metric.variant
    assert found["papers"][0] == (100 if name in ("textvqa", "vizwiz") else 0)
    assert "openflamingo" not in found or found["openflamingo"][0] == 100
    assert len(found) >= 1 + (name != "vizwiz")
    assert len(set(found.values())) == (1 if name == "textvqa" else len(found))


@pytest.mark.parametrize("agree, value", [(1, 30), (2, 60), (3, 90), (4, 100)])
def test_few_who_agree_are_worth_less(agree, value, tmp_path):
    WRITE["vqav2"](tmp_path)
    answers = ["red"] * agree + [f"other {n}" for n in range(10 - agree)]
    rows = [(5, 25, "What color?", answers)]
    pair = [
        tmp_path / f"v2_{name}.json" for name in ("OpenEnded_mscoco_val2014_questions", "mscoco_val2014_annotations")
    ]
    vqa_pair(*pair, rows)
    assert oracle(open_task("vqav2", tmp_path)).value == pytest.approx(value)


def vizwiz(folder, with_ids):
    """Two questions of VizWiz as open_flamingo ships them: all ten agree with one confidence; four of ten agree."""
    rows = [
        (0, "VizWiz_val_00000000.jpg", "What is this?", ["unanswerable"] * 10),
        (1, "VizWiz_val_00000001.jpg", "What now?", ["cat"] * 4 + [f"other {n}" for n in range(6)]),
    ]
    train = [(0, "VizWiz_train_00000000.jpg", "What is this?", ["a dog"])]
    for split, part in (("train", train), ("val", rows)):
        for _, image, *_ in part:
            picture(folder / split / image)
        files = [folder / f"{split}_{kind}_vqa_format.json" for kind in ("questions", "annotations")]
        vqa_pair(*files, part, with_ids)


def test_the_references_figure_for_vizwiz(tmp_path):
    # The reference leaves out every entry that equals the left-out one. Ten alike: nobody is left to agree, 0. Four
    # alike: nobody agrees with those four, four do with each of the other six, 6 of 10.
    vizwiz(tmp_path, with_ids=False)
    assert oracle(open_task("vizwiz", tmp_path)).value == pytest.approx(100)
    published = oracle(open_task("vizwiz", tmp_path, protocol="openflamingo"))
    assert published.value == pytest.approx((0 + 60) / 2)
    assert published.items == pytest.approx({"0": 0, "1": 60})


def test_with_ids_the_references_figure_is_the_official_one(tmp_path):
    vizwiz(tmp_path, with_ids=True)
    assert oracle(open_task("vizwiz", tmp_path, protocol="openflamingo")).value == pytest.approx(100)


def test_confidences_tell_annotators_apart(tmp_path):
    vizwiz(tmp_path, with_ids=False)
    answers = [{"answer": "yes", "answer_confidence": sure} for sure in ["yes"] * 5 + ["maybe"] * 3 + ["no"] * 2]
    put(
        tmp_path / "val_annotations_vqa_format.json",
        {
            "annotations": [
                {"question_id": 0, "answers": answers},
                {"question_id": 1, "answers": [{"answer": "a"}, {"answer": "b"}]},
            ]
        },
    )
    items = oracle(open_task("vizwiz", tmp_path, protocol="openflamingo")).items
    assert items["0"] == pytest.approx(100)  # at least five others are left, whoever is left out


def test_memes_and_classes(tmp_path):
    for name in ("hateful_memes", "imagenet"):
        WRITE[name](tmp_path / name)
    memes = open_task("hateful_memes", tmp_path)  # yes, no
    right = [Prediction("yes", (-2.0, -1.0)), Prediction("no", (-1.0, -2.0))]
    assert memes.metric.measure(memes.queries, right).value == pytest.approx(100)
    assert memes.metric.measure(memes.queries, right[::-1]).value == pytest.approx(0)
    things = open_task("imagenet", tmp_path)
    assert things.metric.measure(things.queries, [Prediction("tench"), Prediction("tench")]).value == pytest.approx(50)


@pytest.mark.parametrize("name", ["coco", "flickr30k"])
def test_a_reference_is_a_good_caption(name, tmp_path):
    WRITE[name](tmp_path)
    task = open_task(name, tmp_path)
    said = [Prediction(one.references[0]) for one in task.queries]
    others = [Prediction("nothing of the kind") for _ in task.queries]
    if len(task.queries) > 1:  # of one image alone CIDEr is 0
        assert task.metric.measure(task.queries, said).value > 100
    assert task.metric.measure(task.queries, others).value == 0
