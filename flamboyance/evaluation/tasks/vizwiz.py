"""VizWiz: questions that blind people asked of their photos."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from flamboyance import templates
from flamboyance.evaluation import metrics
from flamboyance.evaluation.task import Metric, Task, TaskFile
from flamboyance.evaluation.tasks import vqa
from flamboyance.evaluation.tasks.protocols import OPENFLAMINGO, separator
from flamboyance.evaluation.tasks.reading import file_name, listed, unique, value
from flamboyance.evaluation.tasks.vqa import Asked
from flamboyance.files import read_json


def load(files: Mapping[str, Path], protocol: str) -> Task:
    support, queries = vqa.read_splits(files, protocol, vqa.named_images, read)
    measured = any(one.references for one in queries)
    return Task(
        "vizwiz",
        "VizWiz",
        templates.vqa,
        support,
        queries,
        _published_metric(files) if protocol == OPENFLAMINGO and measured else vqa.accuracy(protocol),
        vqa.MAX_NEW_TOKENS,
        separator=separator(protocol),
        post_process=vqa.first_part,
        test_server=vqa.answers_by_image([one.image.name for one in queries]) if queries and not measured else None,
    )


def read(questions: Path, annotations: Path | None) -> list[Asked]:
    """VizWiz's own file, which has the answers too, or a pair in VQA's format; told apart by their content.

    VizWiz has one question an image, and calls it by the image's name.

    Raises:
        ValueError: as `vqa.read_vqa`.
    """
    content = read_json(questions)
    if not isinstance(content, list):
        return vqa.read_vqa(questions, annotations)
    found = listed(content, questions)
    asked = unique(((file_name(one, "image", place), place, (place, one)) for place, one in found), "image")
    return [
        Asked(
            key,
            value(one, "question", str, place),
            key,
            vqa.read_answers(one, place) if "answers" in one else (),
        )
        for key, (place, one) in asked.items()
    ]


def _published_metric(files: Mapping[str, Path]) -> Metric:
    """The reference's VQA accuracy. It leaves an answer out by leaving out all that equal it, entry for entry; VizWiz's
    entries have no number that tells them apart, so one annotator's "unanswerable" takes the others' with it."""
    asked = read(files["questions"], files.get("annotations"))
    return metrics.vqa_accuracy_by_entry({one.id: one.answers for one in asked})


TASK = TaskFile(
    "vizwiz",
    "VizWiz",
    {
        "train_images": "train/",
        "train_questions": "train.json|Annotations/train.json|train_questions_vqa_format.json",
        "images": "val/",
        "questions": "val.json|Annotations/val.json|val_questions_vqa_format.json",
    },
    load,
    "questions of the validation split, or of the test split for the test server, by VQA accuracy",
    optional={
        "train_annotations": "train_annotations_vqa_format.json",
        "annotations": "val_annotations_vqa_format.json",
    },
    for_queries=("images", "questions", "annotations"),
    splits={
        "test": {
            "images": "test/",
            "questions": "test.json|Annotations/test.json|test_questions_vqa_format.json",
            "annotations": "",
        }
    },
)
