"""OK-VQA: questions that need knowledge beyond the image."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from flamboyance.evaluation.task import Task, TaskFile
from flamboyance.evaluation.tasks import vqa
from flamboyance.evaluation.tasks.protocols import OPENFLAMINGO
from flamboyance.evaluation.tasks.stems import stem


def load(files: Mapping[str, Path], protocol: str) -> Task:
    post_process = stem if protocol == OPENFLAMINGO else first_part_stemmed
    return vqa.vqa_task("ok_vqa", "OK-VQA", files, protocol, vqa.coco_images, post_process=post_process)


def first_part_stemmed(answer: str) -> str:
    """The annotators' answers are stemmed in the files, so a model's answer has to be stemmed too."""
    return stem(vqa.first_part(answer))


TASK = TaskFile(
    "ok_vqa",
    "OK-VQA",
    {
        "train_images": "train2014/",
        "train_questions": "OpenEnded_mscoco_train2014_questions.json",
        "train_annotations": "mscoco_train2014_annotations.json",
        "images": "val2014/",
        "questions": "OpenEnded_mscoco_val2014_questions.json",
        "annotations": "mscoco_val2014_annotations.json",
    },
    load,
    "questions of val2014, by VQA accuracy of stemmed answers",
)
