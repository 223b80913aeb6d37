"""A folder of images, with a text beside each or a table of all -> records."""

from __future__ import annotations

import os
from collections.abc import Iterator

from flamboyance.data.documents import Record
from flamboyance.data.tables import table_records
from flamboyance.data.tar import MEMBER_LIMIT, Damage
from flamboyance.files import TEXT_LIMIT, walk
from flamboyance.images.listing import is_image
from flamboyance.images.suffixes import UNREADABLE

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.tsv")
_TEXTS = (".txt", ".json")


def has_images(folder: str) -> bool:
    """Whether a folder, or one below it, holds images or a `metadata.jsonl` (.csv, .tsv). Links out are followed."""
    return any(
        _metadata(here.names) or any(is_image(name) or _unreadable(name) for name in here.names)
        for here in walk(folder, outside=True)
    )


def folder_records(folder: str, outside: bool = False) -> Iterator[Record | Damage]:
    """Each image with the .txt and .json of the same name; or each row of a `metadata.jsonl` (.csv, .tsv), if present.

    Folders below are read after the files beside them, everything in the order of names. A `metadata.jsonl` describes
    the folders below it too, which are then skipped.

    Args:
        outside: links may lead out of the folder.
    """
    described = ""  # the last folder with a metadata.jsonl
    for here in walk(folder, outside):
        if described and here.folder.startswith(described):
            continue
        if metadata := _metadata(here.names):
            described = os.path.join(here.folder, "")
            yield from table_records(os.path.join(here.folder, metadata))
            continue
        for name, why in here.left_out:
            if os.path.isdir(os.path.join(here.folder, name)):
                yield Damage(_reason(why, "folder"))
            elif is_image(name):
                yield Damage(_reason(why, "image"))
            elif name.lower() in METADATA:
                yield Damage(_reason(why, "metadata"))
        yield from (Damage(f"{kind} is not read") for name in here.names if (kind := _unreadable(name)))
        yield from _images(here.folder, here.names, dict(here.left_out))


def _images(folder: str, names: list[str], left_out: dict[str, str]) -> Iterator[Record | Damage]:
    # The suffixes of texts, like those of images, may be in upper case.
    texts = {_lower_suffix(name): name for name in [*left_out, *names] if _lower_suffix(name).endswith(_TEXTS)}
    for file in filter(is_image, names):
        stem = os.path.splitext(file)[0]
        beside = [texts[stem + text] for text in _TEXTS if stem + text in texts]
        if reasons := [left_out[name] for name in beside if name in left_out]:
            yield Damage(_reason(reasons[0], "text"))
            continue
        try:
            fields = {
                os.path.splitext(name)[1][1:].lower(): _content(os.path.join(folder, name)) for name in (file, *beside)
            }
        except OSError as error:
            yield Damage(f"file cannot be read: {type(error).__name__}")
            continue
        except ValueError as error:
            yield Damage(str(error))
            continue
        yield Record(os.path.join(folder, stem), fields, folder)


def _metadata(names: list[str]) -> str | None:
    return next((name for known in METADATA for name in names if name.lower() == known), None)


def _lower_suffix(name: str) -> str:
    stem, suffix = os.path.splitext(name)
    return stem + suffix.lower()


def _unreadable(name: str) -> str:
    """The suffix of an image of an unsupported format, such as ".heic"; else ""."""
    suffix = os.path.splitext(name)[1].lower()
    return suffix if suffix in UNREADABLE else ""


def _reason(why: str, what: str) -> str:
    """The reason that is counted for a file that `walk` leaves out."""
    if why.startswith("leads out"):
        return f"{what} outside the folder"
    return "folder cannot be listed" if why.startswith("cannot") else f"{what} is no regular file"


def _content(path: str) -> bytes:
    """A file's content. Raises ValueError, with the reason that is counted, if it is too large."""
    is_text = path.lower().endswith(".txt")
    if os.path.getsize(path) > (TEXT_LIMIT if is_text else MEMBER_LIMIT):
        raise ValueError("text too long" if is_text else f"file larger than {MEMBER_LIMIT >> 20} MB")
    with open(path, "rb") as file:
        return file.read()
