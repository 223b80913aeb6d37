"""COCO captions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from flamboyance.evaluation.task import Task, TaskFile
from flamboyance.evaluation.tasks.karpathy import caption_task, in_folder
from flamboyance.evaluation.tasks.official_files import Record, number_or_text, value


def load(files: Mapping[str, Path], protocol: str) -> Task:
    folders = {"train2014": files["train_images"], "val2014": files["images"]}

    def place(record: Record, where: str) -> tuple[str, Path]:
        folder = value(record, "filepath", str, where)
        if folder not in folders:
            raise ValueError(f"{where}: filepath is {folder!r}; expected {' or '.join(folders)}")
        return number_or_text(record, "cocoid", where), in_folder(folders[folder], record, where)

    return caption_task("coco", "COCO", files["karpathy"], place, protocol)


TASK = TaskFile(
    "coco",
    "COCO",
    {"karpathy": "dataset_coco.json", "train_images": "train2014/", "images": "val2014/"},
    load,
    "captions of Karpathy's test split, by CIDEr; demonstrations of its train split",
)
