"""The images that users name: files and folders of images, and tables or folders that give each image its texts.

A video may be wherever an image may be.

In a folder, and in the folder of a table, regular files are read. Files outside, by a path or a link, are refused
unless `outside` allows them.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from flamboyance.files import (
    ANSWER_NAMES,
    TABLE_SUFFIXES,
    TEXT_LIMIT,
    TEXT_NAMES,
    Record,
    is_inside,
    is_table,
    local_name,
    read_table,
    read_text,
    walk,
)
from flamboyance.images.suffixes import MEDIA_SUFFIXES, SUFFIXES, UNREADABLE

TEXTS = {*TEXT_NAMES, "question", *ANSWER_NAMES}
SHOWN = 3  # names of files in a warning, per reason


def is_image(name: str | Path) -> bool:
    """Whether a file has the suffix of an image or a video, in lower or upper case."""
    return os.path.splitext(name)[1].lower() in MEDIA_SUFFIXES


def find_images(paths: Iterable[Path | str], outside: bool = False) -> list[Path]:
    """The given image files, and those in the given folders, at any depth.

    Files keep their order and may have any suffix. The files of a folder are sorted, without hidden ones. Each path
    appears once. Warns about images in folders that are not read, with the reason.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: a folder holds no image.
    """
    images: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            images += _images_or_error(path, outside)
        elif path.exists() or path.is_symlink():
            images.append(path)
        else:
            raise FileNotFoundError(f"no such image or folder: {path}")
    return list(dict.fromkeys(images))


def _images_or_error(folder: Path, outside: bool) -> list[Path]:
    images, left_out = images_in(folder, outside)
    if not images:
        raise ValueError(f"the folder {folder} holds no image ({' '.join(sorted(SUFFIXES))}){_reasons(left_out)}")
    if left_out:
        warnings.warn(f"{folder}{_reasons(left_out)}", stacklevel=3)
    return images


def images_in(folder: Path, outside: bool = False) -> tuple[list[Path], dict[str, list[str]]]:
    """The images of a folder and of those below it, sorted; and the images that are left out, by reason."""
    images: list[Path] = []
    left_out: dict[str, list[str]] = {}
    for here in walk(folder, outside):
        images += [Path(here.folder, name) for name in here.names if is_image(name)]
        for name in here.names:
            if os.path.splitext(name)[1].lower() in UNREADABLE:
                left_out.setdefault("is of an unsupported format; save it as JPEG or PNG", []).append(name)
        for name, reason in here.left_out:
            if is_image(name) or os.path.isdir(os.path.join(here.folder, name)):
                allow = "; allow that with outside (--outside)" if reason.startswith("leads out") else ""
                left_out.setdefault(reason + allow, []).append(name or here.folder)
    return sorted(images), left_out


def _reasons(left_out: dict[str, list[str]]) -> str:
    """`; not read: a.heic, b.heic and 7 more (is of an unsupported format; …)`, or nothing."""
    parts = []
    for reason, names in left_out.items():
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        parts.append(f"{', '.join(names[:SHOWN])}{more} ({reason})")
    return f"; not read: {'; '.join(parts)}" if parts else ""


# ---- images with their texts ----------------------------------------------------------------------------------------


class Row(NamedTuple):
    """An image and its texts.

    Attributes:
        place: "FILE, line 3", for messages.
        image: its path; a regular file.
        record: values by column, as in {"text": "a cat"} or {"question": …, "answer": …}.
        further: the other images, if the row has several.
        demonstrations: the row's own, if it has any.
    """

    place: str
    image: Path
    record: Record
    further: tuple[Path, ...] = ()
    demonstrations: tuple[Row, ...] = ()


def image_rows(path: Path | str, outside: bool = False, labels: bool = False, several: bool = False) -> list[Row]:
    """The rows of a CSV, TSV or JSONL file, or the images of a folder with their texts.

    In a folder each image has its text beside it (`cat.jpg`, `cat.txt`).

    Args:
        outside: images may be outside of the folder: absolute paths, `..`, links that lead out.
        labels: if no image has a text beside it, the name of its folder is its label (`cat/1.jpg`). Deeper folders are
            refused: `train/cat/1.jpg` may be of either name.
        several: a line of JSONL may have a list of `images` instead of one `image`, and a list of `demonstrations`,
            objects with the columns of a line.

    Raises:
        ValueError: an invalid file, or an image outside; names file and line.
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
        row = _row(path, record, place, outside, several)
        if several:
            shown = enumerate(_demonstrations(record, place), 1)
            own = [_row(path, one, f"{place}, demonstration {number}", outside, several) for number, one in shown]
            row = row._replace(demonstrations=tuple(own))
        rows.append(row)
    return rows


def _row(table: Path, record: Record, place: str, outside: bool, several: bool) -> Row:
    _check_texts(record, place)
    if several and "images" in record:
        first, *further = _images(table, record["images"], place, outside)
        return Row(place, first, record, tuple(further))
    return Row(place, _image(table, record, place, outside), record)


def _demonstrations(record: Record, place: str) -> list[Record]:
    found = record.get("demonstrations", [])
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise ValueError(
            f"{place}: demonstrations is {_brief(found)}; expected a list of objects, such as "
            '{"image": "a.jpg", "label": "cat"}'
        )
    return found


def _images(table: Path, names: Any, place: str, outside: bool) -> list[Path]:
    if not isinstance(names, list) or not names:
        raise ValueError(f"{place}: images is {_brief(names)}; expected a list of paths of images")
    return [_image(table, {"image": name}, place, outside) for name in names]


def _check_texts(record: Record, place: str) -> None:
    for column, value in record.items():
        texts = value if isinstance(value, list) else [value]
        if column in TEXTS and any(isinstance(text, str) and len(text) > TEXT_LIMIT for text in texts):
            raise ValueError(f"{place}: {column} has more than {TEXT_LIMIT:,} characters; expected a short text")


def _image(table: Path, record: Record, place: str, outside: bool) -> Path:
    column = next((name for name in ("image", "file_name") if name in record), None)
    if column is None:
        raise ValueError(f"{place} has no column 'image'; its columns are {', '.join(map(str, record)) or '(none)'}")
    name = record[column]
    if not isinstance(name, str) or not name.strip():
        shown = "empty" if name is None or isinstance(name, str) else _brief(name)
        raise ValueError(f"{place}: {column} is {shown}; expected the path of an image")
    name = local_name(name.strip())
    if "://" in name[:12] or name.startswith("data:"):
        raise ValueError(f"{place}: the image {_brief(name)} is a URL, which is not fetched; save it as a file")
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
    images = _images_or_error(folder, outside)
    texts, refused = _texts_in(folder, outside)
    for image in images:
        if reason := refused.get(image.with_suffix("")):
            raise ValueError(f"the text of {image} {reason}; expected a text file in {folder}")
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
        elif image.parent.parent != folder:
            raise ValueError(
                f"{image} is more than one folder below {folder}, so its label may be the name of any; give the "
                f"folder {image.parent.parent}, or a table with the columns image,label"
            )
        else:
            yield Row(f"{image}", image, {"label": image.parent.name})


def _texts_in(folder: Path, outside: bool) -> tuple[dict[Path, Path], dict[Path, str]]:
    """The texts of a folder, and the reasons why others are not read, by their paths without the suffix."""
    texts: dict[Path, Path] = {}
    refused: dict[Path, str] = {}
    for here in walk(folder, outside):
        for path in (Path(here.folder, name) for name in here.names):
            if path.suffix.lower() == ".txt":
                texts[path.with_suffix("")] = path
        for path, reason in ((Path(here.folder, name), reason) for name, reason in here.left_out):
            if path.suffix.lower() == ".txt":
                refused[path.with_suffix("")] = reason
    return texts, refused


def _brief(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) < 100 else f"{text[:97]}…"
