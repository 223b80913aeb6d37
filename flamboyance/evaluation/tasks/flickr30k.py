"""Flickr30k captions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from flamboyance.evaluation.task import Task, TaskFile
from flamboyance.evaluation.tasks.karpathy import caption_task, in_folder
from flamboyance.evaluation.tasks.official_files import Record


def load(files: Mapping[str, Path], protocol: str) -> Task:
    def place(record: Record, where: str) -> tuple[str, Path]:
        image = in_folder(files["images"], record, where)
        return image.stem, image

    return caption_task("flickr30k", "Flickr30k", files["karpathy"], place, protocol)


TASK = TaskFile(
    "flickr30k",
    "Flickr30k",
    {"karpathy": "dataset_flickr30k.json", "images": "flickr30k-images/"},
    load,
    "captions of Karpathy's test split, by CIDEr; demonstrations of its train split",
)
