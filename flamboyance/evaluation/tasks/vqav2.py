"""VQAv2."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from flamboyance import templates
from flamboyance.evaluation.task import Task, TaskFile
from flamboyance.evaluation.tasks import vqa
from flamboyance.evaluation.tasks.protocols import separator


def load(files: Mapping[str, Path], protocol: str) -> Task:
    support, queries = vqa.read_splits(files, protocol, vqa.coco_images)
    server = None
    if "questions" in files and "annotations" not in files:
        every = [one.id for one in vqa.read_vqa(files.get("all_questions", files["questions"]), None)]
        server = vqa.answers_by_question(every)
    return Task(
        "vqav2",
        "VQAv2",
        templates.vqa,
        support,
        queries,
        vqa.accuracy(protocol),
        vqa.MAX_NEW_TOKENS,
        separator=separator(protocol),
        post_process=vqa.first_part,
        test_server=server,
    )


_TEST = "v2_OpenEnded_mscoco_test2015_questions.json"
TASK = TaskFile(
    "vqav2",
    "VQAv2",
    {
        "train_images": "train2014/",
        "train_questions": "v2_OpenEnded_mscoco_train2014_questions.json",
        "train_annotations": "v2_mscoco_train2014_annotations.json",
        "images": "val2014/",
        "questions": "v2_OpenEnded_mscoco_val2014_questions.json",
        "annotations": "v2_mscoco_val2014_annotations.json",
    },
    load,
    "questions of val2014, or of a test split for the test server, by VQA accuracy",
    for_queries=("images", "questions", "annotations", "all_questions"),
    splits={
        "test-dev": {
            "images": "test2015/",
            "questions": "v2_OpenEnded_mscoco_test-dev2015_questions.json",
            "annotations": "",
            "all_questions": _TEST,
        },
        "test": {"images": "test2015/", "questions": _TEST, "annotations": ""},
    },
)
