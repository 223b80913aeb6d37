"""Flickr30k captions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from flamboyance import templates
from flamboyance.evaluation import metrics
from flamboyance.evaluation.task import Task, TaskFile
from flamboyance.evaluation.tasks.karpathy import in_folder, read_karpathy
from flamboyance.evaluation.tasks.protocols import separator
from flamboyance.evaluation.tasks.reading import Record


def load(files: Mapping[str, Path], protocol: str) -> Task:
    def place(record: Record, where: str) -> tuple[str, Path]:
        image = in_folder(files["images"], record, where)
        return image.stem, image

    support, queries = read_karpathy(files["karpathy"], place, templates.caption)
    return Task(
        "flickr30k",
        "Flickr30k",
        templates.caption,
        support,
        queries,
        metrics.CIDER,
        max_new_tokens=20,
        separator=separator(protocol),
    )


TASK = TaskFile(
    "flickr30k",
    "Flickr30k",
    {"karpathy": "dataset_flickr30k.json", "images": "flickr30k-images/"},
    load,
    "captions of Karpathy's test split, by CIDEr; demonstrations of its train split",
)
