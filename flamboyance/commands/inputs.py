"""The inputs of the command line: images, demonstrations, labels."""

import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flamboyance.files import ANSWER_NAMES, JSONL_SUFFIXES, TEXT_NAMES, is_table, read_lines, read_table, separated
from flamboyance.images import listing
from flamboyance.images.listing import Row, image_rows

if TYPE_CHECKING:
    from flamboyance.task_files import TaskFile

__all__ = ["Demonstration", "find_images", "read_demonstrations", "read_labels", "task_of"]

Demonstration = tuple[Path | bytes, str] | tuple[Path | bytes, str, str]
"""(image, text), or (image, question, answer). An image of a task file is the content of an image file."""

COLUMNS = "image,text or image,label or image,question,answer"


def find_images(paths: Iterable[Path | str], outside: bool = False) -> list[Path]:
    """As flamboyance.images.listing.find_images.

    Raises:
        ValueError: one of them is a URL.
    """
    paths = list(paths)
    for path in paths:
        _refuse_url(path)
    return listing.find_images(paths, outside)


def _refuse_url(given: Path | str) -> None:
    if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://", str(given)):
        raise ValueError(f"{given} is a URL; only files on this machine are read: download it first")


def read_demonstrations(
    source: Path | str, shots: int | None = None, outside: bool = False, labels: bool = False
) -> list[Demonstration]:
    """The first `shots` demonstrations, or all, of a folder, of a CSV, TSV or JSONL file, or of a task file.

    A folder holds images, each with its text beside it (`cat.jpg`, `cat.txt`). A table has the columns `image` and
    `text` (or `label`), or `image`, `question` and `answer`. Image paths are relative to the file. Other columns are
    ignored.

    Args:
        outside: images may be outside of the folder, or of the folder of the file.
        labels: of a table with a label and another text, the label is taken, not the text.

    Raises:
        FileNotFoundError: the source, or an image in it, does not exist.
        ValueError: it is of another kind, is empty, lacks columns or values, or holds fewer than `shots`.
    """
    _refuse_url(source)
    if not os.path.exists(source):
        raise FileNotFoundError(f"no such demonstrations: {source}")
    found: list[Demonstration]
    if (task := task_of(source)) is not None:
        found = [_of_task(shot, source) for shot in task.demonstrations]
    else:
        names = ("label", *TEXT_NAMES) if labels else TEXT_NAMES
        found = [_demonstration(row, names) for row in image_rows(source, outside)]
    if not found:
        raise ValueError(f"{source} holds no demonstration; expected rows of {COLUMNS}")
    if shots is not None and shots > len(found):
        raise ValueError(f"--shots {shots} asks for more than the {len(found)} demonstrations of {source}")
    return found[:shots]


def task_of(source: Path | str | None) -> "TaskFile | None":
    """The task file of --demonstrations; None if they are something else."""
    from flamboyance.task_files import is_task_file, read_task  # for start-up time

    return read_task(source) if source is not None and is_task_file(source) and os.path.isfile(source) else None


def _of_task(shot: tuple[Any, ...], source: Path | str) -> Demonstration:
    if len(shot) == 2:
        return shot[0], shot[1]
    if len(shot) == 3:
        return shot[0], shot[1], shot[2]
    raise ValueError(f"{source}: its template has {len(shot) - 1} fields; expected one, or a question and its answer")


def _demonstration(row: Row, names: Iterable[str]) -> Demonstration:
    said = row.record
    if "question" in said and (name := _first(said, ANSWER_NAMES)):
        return row.image, _filled(said["question"], f"{row.place}: question"), _said(row, name)
    if name := _first(said, names):
        return row.image, _said(row, name)
    raise ValueError(f"{row.place} has the columns {','.join(map(str, said))}; expected {COLUMNS}")


def _first(record: dict[str, Any], names: Iterable[str]) -> str | None:
    return next((name for name in names if name in record), None)


def _said(row: Row, name: str) -> str:
    """A column's text; of several captions the first, of several answers the most frequent."""
    said = row.record[name]
    if isinstance(said, list) and said and all(isinstance(one, str) for one in said):
        said = Counter(said).most_common(1)[0][0] if name == "answers" else said[0]
    return _filled(said, f"{row.place}: {name}")


def _filled(value: object, place: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{place} is {'empty' if value in (None, '') else repr(value)}; expected some text")
    return value.strip()


def read_labels(given: str) -> list[str]:
    """The labels of `cat,dog,bird`, of a text file with one on each line, or of a table's column `label`.

    Raises:
        ValueError: there are fewer than two, or one appears twice, or a table has no column `label`.
        FileNotFoundError: a name with a file's suffix does not exist.
    """
    is_file = os.path.exists(given) and not os.path.isdir(given)
    if is_file and is_table(given):
        placed = [(place, _label(row, place)) for place, row in read_table(given)]
    elif is_file:
        placed = read_lines(given)
    elif given.lower().endswith((".txt", ".csv", ".tsv", *JSONL_SUFFIXES)) and "," not in given:
        raise FileNotFoundError(f"--labels {given}: no such file; expected a text file with a label on each line")
    else:
        placed = [("--labels", label) for label in separated(given)]
    places: dict[str, list[str]] = {}
    for place, label in placed:
        places.setdefault(label, []).append(place)
    if twice := {label: found for label, found in places.items() if len(found) > 1}:
        where = [f"{label} ({' and '.join(found)})" if is_file else label for label, found in twice.items()]
        raise ValueError(f"--labels names {', '.join(where)} more than once")
    if len(places) < 2:
        expected = "one on each line" if is_file else "as in cat,dog"
        raise ValueError(f"--labels {given!r} gives {len(places)} label; expected two or more, {expected}")
    return list(places)


def _label(row: dict[str, Any], place: str) -> str:
    if "label" not in row:
        raise ValueError(
            f"{place} has the columns {','.join(map(str, row))}; expected a table with a column label, or a text file, "
            "as labels.txt, with a label on each line"
        )
    return _filled(row["label"], f"{place}: label")
