"""COCO captions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from flamboyance import templates
from flamboyance.evaluation import metrics
from flamboyance.evaluation.task import Task, TaskFile
from flamboyance.evaluation.tasks.karpathy import in_folder, read_karpathy
from flamboyance.evaluation.tasks.protocols import separator
from flamboyance.evaluation.tasks.reading import Record, number_or_text, value


def load(files: Mapping[str, Path], protocol: str) -> Task:
    folders = {"train2014": files["train_images"], "val2014": files.get("images", files["train_images"])}

    def place(record: Record, where: str) -> tuple[str, Path]:
        folder = value(record, "filepath", str, where)
        if folder not in folders:
            raise ValueError(f"{where}: filepath is {folder!r}; expected {' or '.join(folders)}")
        return number_or_text(record, "cocoid", where), in_folder(folders[folder], record, where)

    support, queries = read_karpathy(files["karpathy"], place, templates.caption, "images" in files)
    return Task(
        "coco",
        "COCO",
        templates.caption,
        support,
        queries,
        metrics.CIDER,
        max_new_tokens=20,
        separator=separator(protocol),
    )


TASK = TaskFile(
    "coco",
    "COCO",
    {"karpathy": "dataset_coco.json", "train_images": "train2014/", "images": "val2014/"},
    load,
    "captions of Karpathy's test split, by CIDEr; demonstrations of its train split",
    for_queries=("images",),
)
