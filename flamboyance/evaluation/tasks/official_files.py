"""Reads records of benchmarks' files, with errors that name the file and the item."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TypeVar

from flamboyance.evaluation.task import Example
from flamboyance.files import Record
from flamboyance.files import read_json as read_json
from flamboyance.files import read_json_lines as read_json_lines
from flamboyance.images.listing import is_image
from flamboyance.templates import END_OF_CHUNK_TOKEN, IMAGE_TOKEN, Template

NAMED = 3  # of several items with the same mistake

T = TypeVar("T")


def records(content: object, key: str, file: Path) -> Iterator[tuple[str, Record]]:
    """The objects of the list `content[key]`, each with its place: "FILE, images[3]".

    Raises:
        ValueError: the content is not an object with such a list of objects.
    """
    if not isinstance(content, dict) or key not in content:
        found = f"the keys {', '.join(map(str, content)) or 'none'}" if isinstance(content, dict) else _kind(content)
        raise ValueError(f"{file} holds {found}; expected an object with the key {key!r}; is it the right file?")
    yield from listed(content[key], file, key)


def listed(found: object, file: Path | str, name: str = "") -> Iterator[tuple[str, Record]]:
    """The objects of a list, each with its place."""
    for number, record in enumerate(_is(found, list, f"{file}, {name}" if name else f"{file}")):
        place = f"{file}, {name}[{number}]"
        yield place, _is(record, dict, place)


def value(record: Record, key: str, kind: type[T] | tuple[type[T], ...], place: str) -> T:
    """`record[key]`.

    Raises:
        ValueError: it is missing, or of another type.
    """
    if key not in record:
        raise ValueError(f"{place} has no {key!r}; it has {', '.join(map(str, record)) or 'no keys'}")
    return _is(record[key], kind, f"{place}: {key}")


_NAMES: dict[type, str] = {
    dict: "an object",
    list: "a list",
    str: "a text",
    int: "a whole number",
    bool: "true or false",
}


def _kind(found: object) -> str:
    return "null" if found is None else _NAMES.get(type(found), "a number")


def _is(found: object, kind: type[T] | tuple[type[T], ...], place: str) -> T:
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(found, kinds) or (isinstance(found, bool) and bool not in kinds):
        shown = f" ({found!r})" if isinstance(found, str | int | float) and len(repr(found)) < 60 else ""
        expected = " or ".join(_NAMES[one] for one in kinds)
        raise ValueError(f"{place} is {_kind(found)}{shown}; expected {expected}")
    return found


def number_or_text(record: Record, key: str, place: str) -> str:
    """An id as text; in files it may be a number."""
    return str(value(record, key, (int, str), place))


def file_name(record: Record, key: str, place: str) -> str:
    """The name of an image in a folder.

    Raises:
        ValueError: the name leads to another folder.
    """
    name = value(record, key, str, place)
    if not is_plain_name(name):
        raise ValueError(f"{place}: {key} is {name!r}; expected the name of an image, without folders")
    return name


def is_plain_name(name: str) -> bool:
    """Whether a name is that of a file in a folder, and leads to no other folder."""
    return bool(name) and name not in (".", "..") and not set(name) & set("/\\\0")


def unique(pairs: Iterable[tuple[str, str, T]], what: str) -> dict[str, T]:
    """(id, place, item) -> items by their id.

    Raises:
        ValueError: two items have the same id.
    """
    found: dict[str, T] = {}
    for key, place, item in pairs:
        if key in found:
            raise ValueError(f"{place}: the {what} {key} appears twice; remove one of the two")
        found[key] = item
    return found


def images_in(folder: Path) -> list[Path]:
    """The images of a folder, in the order of their names."""
    names = (name for name in files_in(f"{folder}") if not name.startswith("."))
    return [folder / name for name in sorted(names) if is_image(name)]


def some(things: Sequence[str]) -> str:
    """`a, b, c and 7 more`."""
    more = f" and {len(things) - NAMED} more" if len(things) > NAMED else ""
    return ", ".join(things[:NAMED]) + more


def check(examples: Sequence[Example], template: Template, file: Path, split: str, solved: bool) -> None:
    """Checks the examples of a split.

    Args:
        split: the name of the split in errors: "train", "test".
        solved: whether the answers are shown too, as in demonstrations.

    Raises:
        ValueError: there are no examples, two have the same id, or a text would alter the prompt.
        FileNotFoundError: an image does not exist.
    """
    if not examples:
        raise ValueError(f"{file} holds no example of the split {split!r}; is it the right file?")
    unique(((one.id, f"{file}, {split}", None) for one in examples), "id")
    for one in examples:
        if any("<" in text for text in (*one.asked, one.answer)):
            _check_texts(one, template, f"{file}, {split}, item {one.id}", solved)
    check_images(examples, file)


def _check_texts(example: Example, template: Template, place: str, solved: bool) -> None:
    """Refuses a text that holds `<image>`, which would shift all later images, or `<|endofchunk|>`."""
    try:
        template.query(*example.asked)
        if solved:
            template.demonstration(*example.asked, example.answer)
    except ValueError as error:
        raise ValueError(
            f"{place}: {error}. Remove {IMAGE_TOKEN} and {END_OF_CHUNK_TOKEN} from the texts of the file"
        ) from error


def check_images(examples: Iterable[Example], file: Path) -> None:
    """Checks that every image exists. Each folder is listed once, however many images it holds.

    Raises:
        FileNotFoundError: images are missing. The message names the first one and their number.
    """
    listing = cache(files_in)
    paths = ((one, image, *os.path.split(image)) for one in examples for image in one.images)
    missing = [(one, image) for one, image, folder, name in paths if name not in listing(folder)]
    if missing:
        count = len({image for _, image in missing})
        more = f" (nor {count - 1} more)" if count > 1 else ""
        first, image = missing[0]
        raise FileNotFoundError(f"{file}, item {first.id} names the image {image}, which does not exist{more}")


def files_in(folder: str) -> frozenset[str]:
    """The names of a folder's files; none if the folder does not exist."""
    try:
        with os.scandir(folder or ".") as entries:
            return frozenset(entry.name for entry in entries if entry.is_file())
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()
