"""Karpathy's splits of COCO and Flickr30k: one JSON file with all images, their captions and their split."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from flamboyance.evaluation.task import Example
from flamboyance.evaluation.tasks.reading import (
    Record,
    check,
    file_name,
    listed,
    records,
    value,
)
from flamboyance.files import read_json
from flamboyance.templates import Template

Place = Callable[[Record, str], tuple[str, Path]]
"""(an image's record, where it stands in the file) -> its id and path."""


def read_karpathy(
    file: Path, place: Place, template: Template, with_queries: bool = True
) -> tuple[list[Example], list[Example]]:
    """The images of the splits "train" and "test": what demonstrations are taken from, and what is asked.

    A demonstration says its image's first caption; all of a query's captions are its references. Other splits ("val",
    and COCO's "restval") are not read.

    Raises:
        ValueError, FileNotFoundError: the file does not hold that; names the item.
    """
    found: dict[str, list[Example]] = {"train": [], "test": []}
    for where, record in records(read_json(file), "images", file):
        split = value(record, "split", str, where)
        if split in found and (split == "train" or with_queries):
            name, image = place(record, where)
            captions = _captions(record, where)
            references = tuple(captions) if split == "test" else ()
            found[split].append(Example(name, image, captions[0], references=references))
    check(found["train"], template, file, "train", solved=True)
    if with_queries:
        check(found["test"], template, file, "test", solved=False)
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
