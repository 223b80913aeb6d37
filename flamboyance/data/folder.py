"""A folder of images with their texts beside them, as records."""

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
    """Whether a folder, or one below it, holds pictures or a `metadata.jsonl` (.csv, .tsv), also behind links out."""
    return any(
        _metadata(here.names) or any(is_image(name) or _unreadable(name) for name in here.names)
        for here in walk(folder, outside=True)
    )


def folder_records(folder: str, outside: bool = False) -> Iterator[Record | Damage]:
    """Each image with the .txt and .json of the same name; or, where there is a `metadata.jsonl`, each line of it.

    Folders below are read too, after the files beside them, everything in the order of the names; a `metadata.jsonl`
    speaks for those below it.

    Args:
        outside: links may lead out of the folder.
    """
    told = ""  # the last folder that has a metadata.jsonl
    for here in walk(folder, outside):
        if told and here.folder.startswith(told):
            continue
        if metadata := _metadata(here.names):
            told = os.path.join(here.folder, "")
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
    # Suffixes may be in upper case, also those of texts.
    texts = {_lower_suffix(name): name for name in [*left_out, *names] if _lower_suffix(name).endswith(_TEXTS)}
    for file in filter(is_image, names):
        stem = os.path.splitext(file)[0]
        beside = [texts[stem + text] for text in _TEXTS if stem + text in texts]
        if refused := [left_out[name] for name in beside if name in left_out]:
            yield Damage(_reason(refused[0], "text"))
            continue
        try:
            fields = {os.path.splitext(name)[1][1:].lower(): _content(folder, name) for name in (file, *beside)}
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
    """The suffix of a picture that cannot be opened, such as ".heic"."""
    suffix = os.path.splitext(name)[1].lower()
    return suffix if suffix in UNREADABLE else ""


def _reason(why: str, what: str) -> str:
    """Why `walk` leaves a file out -> what is counted."""
    if why.startswith("leads out"):
        return f"{what} outside the folder"
    return "folder cannot be listed" if why.startswith("cannot") else f"{what} is no regular file"


def _content(path: str, name: str) -> bytes:
    """Raises ValueError, with the reason that is counted, for a file that is too large."""
    name = os.path.join(path, name)
    is_text = name.lower().endswith(".txt")
    if os.path.getsize(name) > (TEXT_LIMIT if is_text else MEMBER_LIMIT):
        raise ValueError("text too long" if is_text else f"file larger than {MEMBER_LIMIT >> 20} MB")
    with open(name, "rb") as file:
        return file.read()
