"""VizWiz: questions of blind people about their photos."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from flamboyance.evaluation import metrics
from flamboyance.evaluation.task import Metric, Task, TaskFile
from flamboyance.evaluation.tasks import vqa
from flamboyance.evaluation.tasks.official_files import Record, file_name, listed, value
from flamboyance.evaluation.tasks.protocols import OPENFLAMINGO
from flamboyance.evaluation.tasks.vqa import Question
from flamboyance.files import read_json


def load(files: Mapping[str, Path], protocol: str) -> Task:
    metric = metrics.VQA_ACCURACY_VIZWIZ
    task = vqa.vqa_task("vizwiz", "VizWiz", files, protocol, vqa.named_images, read, metric=metric)
    if any(one.references for one in task.queries):
        return replace(task, metric=_published_metric(files)) if protocol == OPENFLAMINGO else task
    return replace(task, test_server=vqa.answers_by_image([one.image.name for one in task.queries]))


def read(questions: Path, annotations: Path | None) -> list[Question]:
    """Reads VizWiz's own file, which holds the answers too, or a pair of files in VQA's format.

    VizWiz has one question per image, and identifies it by the image's name.

    Raises:
        ValueError: as `vqa.read_vqa`.
    """
    content = read_json(questions)
    if not isinstance(content, list):
        return vqa.read_vqa(questions, annotations)
    return vqa.unique_questions(((place, _question(one, place)) for place, one in listed(content, questions)), "image")


def _question(record: Record, place: str) -> Question:
    name = file_name(record, "image", place)
    annotations = vqa.read_answers(record, place) if "answers" in record else ()
    return Question(name, value(record, "question", str, place), name, annotations, vqa.read_kinds(record))


def _published_metric(files: Mapping[str, Path]) -> Metric:
    """The reference's VQA accuracy. It leaves out an annotator together with all equal entries. VizWiz's entries have
    no number, so the other annotators' "unanswerable" is left out with one annotator's."""
    questions = read(files["questions"], files.get("annotations"))
    return metrics.vqa_accuracy_by_entry({one.id: one.annotations for one in questions})


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
    splits={
        "test": {
            "images": "test/",
            "questions": "test.json|Annotations/test.json|test_questions_vqa_format.json",
            "annotations": "",
        }
    },
)
