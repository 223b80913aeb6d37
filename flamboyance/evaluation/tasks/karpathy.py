"""COCO and Flickr30k in Karpathy's splits: one JSON file with all images, their captions and their split."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from flamboyance import templates
from flamboyance.evaluation import metrics
from flamboyance.evaluation.task import Example, Task
from flamboyance.evaluation.tasks.official_files import (
    Record,
    check,
    file_name,
    listed,
    records,
    value,
)
from flamboyance.evaluation.tasks.protocols import separator
from flamboyance.files import read_json

Place = Callable[[Record, str], tuple[str, Path]]
"""(the record of an image, its place in the file) -> the image's id and path."""


def caption_task(name: str, title: str, file: Path, place: Place, protocol: str) -> Task:
    """A task of captions, measured by CIDEr."""
    support, queries = read_karpathy(file, place)
    return Task(name, title, templates.caption, support, queries, metrics.CIDER, separator=separator(protocol))


def read_karpathy(file: Path, place: Place) -> tuple[list[Example], list[Example]]:
    """The images of the splits "train" (the support set) and "test" (the queries).

    A demonstration has the first caption of its image; a query has all of its captions as references. The splits "val"
    and "restval" are not read.

    Raises:
        ValueError, FileNotFoundError: an item of the file is wrong. The message names it.
    """
    found: dict[str, list[Example]] = {"train": [], "test": []}
    for where, record in records(read_json(file), "images", file):
        split = value(record, "split", str, where)
        if split in found:
            name, image = place(record, where)
            captions = _captions(record, where)
            references = tuple(captions) if split == "test" else ()
            found[split].append(Example(name, image, captions[0], references=references))
    check(found["train"], templates.caption, file, "train", solved=True)
    check(found["test"], templates.caption, file, "test", solved=False)
    return found["train"], found["test"]


def _captions(record: Record, where: str) -> list[str]:
    sentences = listed(value(record, "sentences", list, where), where, "sentences")
    captions = [value(sentence, "raw", str, inside).strip() for inside, sentence in sentences]
    if not any(captions):
        raise ValueError(f"{where}: sentences holds no caption")
    return [caption for caption in captions if caption]


def in_folder(folder: Path, record: Record, where: str) -> Path:
    """The image that a record names."""
    return folder / file_name(record, "filename", where)
