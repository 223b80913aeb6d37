"""A folder of images with their texts beside them, as records."""

from __future__ import annotations

import os
from collections.abc import Iterator

from flamboyance.data.documents import Record
from flamboyance.data.tar import MEMBER_LIMIT, Damage

IMAGE_SUFFIXES = frozenset(".jpg .jpeg .png .webp .gif .bmp .tif .tiff".split())
METADATA = "metadata.jsonl"
_TEXTS = (".txt", ".json")


def has_images(folder: str) -> bool:
    """Whether a folder, or one below it, holds images or a `metadata.jsonl`."""
    return any(METADATA in files or any(map(_is_image, files)) for _, files in _walk(folder))


def folder_records(folder: str) -> Iterator[Record | Damage]:
    """Each image with the .txt and .json of the same name; or, where there is a `metadata.jsonl`, each line of it.

    Folders below are read too, after the files beside them, everything in the order of the names.
    """
    for path, files in _walk(folder):
        if METADATA in files:
            yield from _metadata(path)
            continue
        names = set(files)
        for file in filter(_is_image, files):
            stem = os.path.splitext(file)[0]
            beside = [stem + text for text in _TEXTS if stem + text in names]
            try:
                fields = {os.path.splitext(name)[1][1:].lower(): _content(path, name) for name in (file, *beside)}
            except OSError as error:
                yield Damage(f"file cannot be read: {type(error).__name__}")
                continue
            yield Record(os.path.join(path, stem), fields, path)


def _metadata(path: str) -> Iterator[Record | Damage]:
    with open(os.path.join(path, METADATA), "rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(MEMBER_LIMIT), b""), 1):
            if line.strip():
                yield Record(f"{os.path.join(path, METADATA)}:{number}", {"json": line}, path)


def _walk(folder: str) -> Iterator[tuple[str, list[str]]]:
    """(path, names of its files) of a folder and those below it; a `metadata.jsonl` speaks for all below."""
    for path, folders, files in os.walk(folder):
        folders[:] = [] if METADATA in files else sorted(name for name in folders if not name.startswith("."))
        yield path, sorted(name for name in files if not name.startswith("."))


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _content(path: str, name: str) -> bytes:
    name = os.path.join(path, name)
    if os.path.getsize(name) > MEMBER_LIMIT:
        raise OSError(f"'{name}' is larger than {MEMBER_LIMIT >> 20} MB")
    with open(name, "rb") as file:
        return file.read()
