"""Images that users name: files and folders of them, and tables or folders that give each image its texts.

One rule for all: of a folder, and of the folder of a table, regular files inside it are read. What links or paths lead
out to is refused, unless `outside` allows it.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from flamboyance.files import (
    TABLE_SUFFIXES,
    TEXT_LIMIT,
    Record,
    is_inside,
    is_table,
    local_name,
    read_table,
    read_text,
    walk,
)
from flamboyance.images.suffixes import SUFFIXES, UNREADABLE

TEXTS = ("text", "caption", "captions", "label", "question", "answer", "answers")
SHOWN = 3  # of the files that are left out for one reason


def is_image(name: str | Path) -> bool:
    """Whether a file's name ends as those of images do, in lower or upper case."""
    return os.path.splitext(name)[1].lower() in SUFFIXES


def find_images(paths: Iterable[Path | str], outside: bool = False) -> list[Path]:
    """The image files that are named, and those in the folders that are named, at any depth.

    Files keep the order given and may have any suffix; a folder's files are sorted, hidden ones left out.
    Each path appears once. Warns of pictures in folders that are left out, and says why.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: a folder holds no image.
    """
    found: dict[Path, None] = {}
    for path in map(Path, paths):
        if path.is_dir():
            inside, left_out = images_in(path, outside)
            if not inside:
                raise ValueError(f"the folder {path} holds no image ({_known()}){_why_not(left_out)}")
            if left_out:
                warnings.warn(f"{path}{_why_not(left_out)}", stacklevel=2)
            found.update(dict.fromkeys(inside))
        elif path.exists() or path.is_symlink():
            found[path] = None
        else:
            raise FileNotFoundError(f"no such image or folder: {path}")
    return list(found)


def images_in(folder: Path, outside: bool = False) -> tuple[list[Path], dict[str, list[str]]]:
    """The images of a folder and of those below it, sorted; and pictures that are left out, by reason."""
    found: list[Path] = []
    left_out: dict[str, list[str]] = {}
    for here in walk(folder, outside):
        found += [Path(here.folder, name) for name in here.names if is_image(name)]
        for name in here.names:
            if os.path.splitext(name)[1].lower() in UNREADABLE:
                left_out.setdefault("is of a format that is not read; save it as JPEG or PNG", []).append(name)
        for name, why in here.left_out:
            if is_image(name) or os.path.isdir(os.path.join(here.folder, name)):
                why = f"{why}; allow that with outside (--outside)" if why.startswith("leads out") else why
                left_out.setdefault(why, []).append(name or here.folder)
    return sorted(found), left_out


def _why_not(left_out: dict[str, list[str]]) -> str:
    """`: not read: a.heic, b.heic and 7 more: is of a format that …`, or nothing."""
    parts = []
    for why, names in left_out.items():
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        parts.append(f"{', '.join(names[:SHOWN])}{more} ({why})")
    return f"; not read: {'; '.join(parts)}" if parts else ""


def _known() -> str:
    return " ".join(sorted(SUFFIXES))


# ---- images with their texts ----------------------------------------------------------------------------------------


class Row(NamedTuple):
    """An image and what is said of it.

    Attributes:
        place: where it is, for messages: "FILE, line 3".
        image: its path; a regular file.
        record: by column, e.g. {"text": "a cat"} or {"question": …, "answer": …}.
    """

    place: str
    image: Path
    record: Record


def image_rows(path: Path | str, outside: bool = False, labels: bool = False) -> list[Row]:
    """The rows of a CSV, TSV or JSONL file, or the images of a folder with their texts.

    In a folder each image has its text beside it (`cat.jpg`, `cat.txt`).

    Args:
        outside: images may be outside of the folder: absolute paths, `..`, links that lead out.
        labels: where no image has a text beside it, the images of a label are in a folder of that name (`cat/1.jpg`).

    Raises:
        ValueError: something is wrong in a file, or an image is outside; names file and line.
        FileNotFoundError: the file or folder, an image, or the text of an image does not exist.
    """
    path = Path(path)
    if path.is_dir():
        return list(_folder_rows(path, outside, labels))
    if not path.exists():
        raise FileNotFoundError(f"no such file or folder: {path}")
    if not is_table(path):
        raise ValueError(f"{path}: expected a folder of images, or a file named {', '.join(TABLE_SUFFIXES)}")
    rows = []
    for place, record in read_table(path):
        _check_texts(record, place)
        rows.append(Row(place, _image(path, record, place, outside), record))
    return rows


def _check_texts(record: Record, place: str) -> None:
    for column, value in record.items():
        texts = value if isinstance(value, list) else [value]
        if column in TEXTS and any(isinstance(text, str) and len(text) > TEXT_LIMIT for text in texts):
            raise ValueError(f"{place}: {column} is longer than {TEXT_LIMIT:,} characters; expected a text of a prompt")


def _image(table: Path, record: Record, place: str, outside: bool) -> Path:
    column = next((name for name in ("image", "file_name") if name in record), None)
    if column is None:
        raise ValueError(f"{place} has no 'image'; it has {', '.join(map(str, record)) or 'no keys'}")
    name = record[column]
    if not isinstance(name, str) or not name.strip():
        shown = "empty" if name in (None, "") or isinstance(name, str) else f"{_brief(name)}"
        raise ValueError(f"{place}: {column} is {shown}; expected the path of an image")
    name = local_name(name.strip())
    if "://" in name[:12] or name.startswith("data:"):
        raise ValueError(f"{place}: the image {_brief(name)} is a URL, and URLs are not fetched; save it as a file")
    image = Path(os.path.normpath(table.parent / name))
    if not outside and not is_inside(image, table.parent):
        raise ValueError(
            f"{place}: the image {_brief(name)} is outside of the folder of {table.name}; allow that with outside "
            "(--outside)"
        )
    if not os.path.isfile(image):
        if os.path.exists(image):
            raise ValueError(f"{place} names the image {image}, which is not a regular file")
        raise FileNotFoundError(f"{place} names the image {_brief(str(image))}, which does not exist")
    return image


def _folder_rows(folder: Path, outside: bool, labels: bool) -> Iterator[Row]:
    images, left_out = images_in(folder, outside)
    if not images:
        raise ValueError(f"the folder {folder} holds no image ({_known()}){_why_not(left_out)}")
    if left_out:
        warnings.warn(f"{folder}{_why_not(left_out)}", stacklevel=3)
    texts, refused = _texts_in(folder, outside)
    for image in images:
        if why := refused.get(image.with_suffix("")):
            raise ValueError(f"the text of {image} {why}; expected a text file in {folder}")
    some = any(image.with_suffix("") in texts for image in images)
    for image in images:
        if text := texts.get(image.with_suffix("")):
            yield Row(f"{text}", image, {"text": read_text(text, TEXT_LIMIT)})
        elif some or not labels:
            raise FileNotFoundError(f"{image} has no text beside it: write it to {image.with_suffix('.txt')}")
        elif image.parent == folder:
            raise FileNotFoundError(
                f"{image} has no text beside it ({image.with_suffix('.txt').name}), and is in no folder named after "
                "its label"
            )
        else:
            yield Row(f"{image}", image, {"label": image.relative_to(folder).parts[0]})


def _texts_in(folder: Path, outside: bool) -> tuple[dict[Path, Path], dict[Path, str]]:
    """The texts of a folder by their path without suffix, which may be in upper case; why others are not read."""
    texts: dict[Path, Path] = {}
    refused: dict[Path, str] = {}
    for here in walk(folder, outside):
        for path in (Path(here.folder, name) for name in here.names):
            if path.suffix.lower() == ".txt":
                texts[path.with_suffix("")] = path
        for path, why in ((Path(here.folder, name), why) for name, why in here.left_out):
            if path.suffix.lower() == ".txt":
                refused[path.with_suffix("")] = why
    return texts, refused


def _brief(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) < 100 else f"{text[:97]}…"
