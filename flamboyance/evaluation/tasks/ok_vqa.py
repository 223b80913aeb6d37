"""OK-VQA: questions that need knowledge from outside of the picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from flamboyance import templates
from flamboyance.evaluation.task import Task, TaskFile
from flamboyance.evaluation.tasks import vqa
from flamboyance.evaluation.tasks.protocols import OPENFLAMINGO, separator
from flamboyance.evaluation.tasks.stems import stem


def load(files: Mapping[str, Path], protocol: str) -> Task:
    support, queries = vqa.read_splits(files, protocol, vqa.coco_images)
    return Task(
        "ok_vqa",
        "OK-VQA",
        templates.vqa,
        support,
        queries,
        vqa.accuracy(protocol),
        vqa.MAX_NEW_TOKENS,
        separator=separator(protocol),
        post_process=stem if protocol == OPENFLAMINGO else first_part_stemmed,
    )


def first_part_stemmed(answer: str) -> str:
    """The annotators' answers are stemmed in the files, so a model's must be."""
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
    for_queries=("images", "questions", "annotations"),
)
