"""Answers to images that were replaced since: their files have other sizes than the predictions tell."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from functools import cache
from pathlib import Path

from flamboyance.evaluation.results import Row, each_row, write_rows
from flamboyance.evaluation.task import Example, Task
from flamboyance.files import size_of

Places = dict[tuple[str, ...], list[str]]


def replaced(output: Path, tasks: Sequence[Task]) -> dict[Path, dict[str, str]]:
    """By file of predictions: the queries that were asked with an image that was replaced since, and which one.

    The images are those that the tasks have now, so data may have been moved. One that is not there any more was not
    replaced; what earlier versions wrote does not tell the sizes.
    """
    found: dict[Path, dict[str, str]] = defaultdict(dict)
    size = cache(size_of)
    for task in tasks:
        now = _Images(task)
        for file in sorted((output / task.name).glob("*/predictions*.jsonl")):
            # A damaged line of a finished cell is named by what reads its answers.
            with suppress(ValueError) if (file.parent / "score.json").exists() else nullcontext():
                for row in each_row(file):
                    if image := now.replaced(row, size):
                        found[file][row["id"]] = image
    return dict(found)


def forget(output: Path, tasks: Sequence[Task], say: Callable[[str], None]) -> None:
    """Removes the answers to replaced images from unfinished cells, so that they are asked again.

    Raises:
        ValueError: finished cells have such answers. Then nothing is removed.
    """
    found = replaced(output, tasks)
    if finished := sorted({file.parent for file in found if (file.parent / "score.json").exists()}):
        first = next(
            image for file, queries in found.items() if file.parent == finished[0] for image in queries.values()
        )
        raise ValueError(
            f"{first} was replaced since it was asked about. Give another --output, or remove what has answers to such "
            f"images, to have it asked again: {' '.join(map(str, finished))}"
        )
    for file, queries in found.items():
        write_rows(file, (row for row in each_row(file) if row["id"] not in queries))
    if found:
        say(f"{sum(map(len, found.values()))} answers to images that were replaced since are asked again")


class _Images:
    """Where the images of predictions are now."""

    def __init__(self, task: Task):
        parts = (task.queries, task.support)
        self._all = {str(image.absolute()) for part in parts for one in part for image in one.images}
        self._queries, self._support = map(_by_names, parts)

    def replaced(self, row: Row, size: Callable[[str], int | None]) -> str | None:
        """The first image of a prediction that has another size now."""
        for one, places in ((row, self._queries), *((one, self._support) for one in row.get("demonstrations", ()))):
            before = one.get("images") or [str(one.get("image"))]
            paths = before if self._all.issuperset(before) else places.get(_key(one.get("id"), before), ())
            for path, asked in zip(paths, one.get("image_bytes", ()), strict=False):
                if asked is not None and size(path) not in (asked, None):
                    return path
        return None


def _by_names(examples: Sequence[Example]) -> Places:
    paths = [(one.id, [str(image.absolute()) for image in one.images]) for one in examples]
    return {_key(example, images): images for example, images in paths}


def _key(example: object, paths: Sequence[object]) -> tuple[str, ...]:
    return (str(example), *(os.path.basename(str(path)) for path in paths))
