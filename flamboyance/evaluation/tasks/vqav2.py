"""VQAv2: questions about COCO's images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from flamboyance.evaluation.task import Task, TaskFile
from flamboyance.evaluation.tasks import vqa


def load(files: Mapping[str, Path], protocol: str) -> Task:
    server = None
    if "annotations" not in files:
        every = [one.id for one in vqa.read_vqa(files.get("all_questions", files["questions"]), None)]
        server = vqa.answers_by_question(every)
    return vqa.vqa_task("vqav2", "VQAv2", files, protocol, vqa.coco_images, test_server=server)


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
