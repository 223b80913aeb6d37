"""The fields of a record: JSON, texts, and images in a field, in base64, or in a file beside the record."""

from __future__ import annotations

import base64
import binascii
import json
from pathlib import Path
from typing import Any

from flamboyance.data.documents import Record, Rejected
from flamboyance.files import TEXT_LIMIT, local_name, text_of, without_halves
from flamboyance.images.suffixes import MEDIA_SUFFIXES

IMAGE_EXTENSIONS = tuple(suffix[1:] for suffix in MEDIA_SUFFIXES)
"""Of images and videos, in order of preference, where a record has several."""

FILE_LIMIT = 256 << 20
"""Largest image file that is read, in bytes."""

PATH_LENGTH, SHORTEST_BASE64 = 4096, 64  # characters: a longer value is no path, a shorter one no image


def json_object(record: Record, extension: str = "json") -> dict[str, Any]:
    """The JSON object among a record's files."""
    if extension not in record.fields:
        raise Rejected(f"no .{extension}")
    try:
        content = json.loads(record.fields[extension])
    except (ValueError, RecursionError) as error:  # also invalid UTF-8, and numbers of thousands of digits
        raise Rejected("broken JSON") from error
    if not isinstance(content, dict):
        raise Rejected("JSON is no object")
    # Half a surrogate pair can only come from an escape such as \ud83d.
    return without_halves(content) if b"\\ud" in record.fields[extension].lower() else content


def text(content: bytes) -> str:
    """A text file's content."""
    if len(content) > TEXT_LIMIT:
        raise Rejected("text too long")
    try:
        return text_of(content)
    except ValueError as error:
        raise Rejected("text is not UTF-8") from error


def first_image(record: Record) -> bytes:
    """The image or video among a record's files."""
    for extension in IMAGE_EXTENSIONS:
        if extension in record.fields:
            return record.fields[extension]
    raise Rejected("no image")


def from_base64(content: Any) -> bytes:
    """An image inside JSON."""
    if not isinstance(content, str):
        raise Rejected("damaged image")
    if content.startswith("b'") and content.endswith("'"):  # a bytes literal, from an early open_flamingo converter
        content = content[2:-1]
    try:
        return base64.b64decode(content)
    except (binascii.Error, ValueError) as error:
        raise Rejected("damaged image") from error


def named_image(record: Record, name: str, outside: bool = False, most: int = FILE_LIMIT) -> bytes:
    """The image of that name beside a record: among its files (in a tar: `KEY.name`), or a file in its folder.

    Args:
        outside: the file may be outside of the folder.
        most: bytes; larger files are rejected.
    """
    if (stored := record.fields.get(name.lower())) is not None:
        return stored
    if record.folder is None:
        raise Rejected("missing image")
    if "://" in record.folder:
        return _remote(record.folder, name)
    try:
        return _local(record.folder, local_name(name), outside, most)
    except (OSError, ValueError) as error:  # no permission, a name too long, a zero byte in it
        raise Rejected("missing image") from error


def found_image(record: Record, name: str, outside: bool = False) -> bytes | None:
    """`image_of`, or None if there is none of that name."""
    try:
        return image_of(record, name, outside, FILE_LIMIT)
    except Rejected as rejected:
        if rejected.reason == "missing image":
            return None
        raise


def image_of(record: Record, value: Any, outside: bool, most: int) -> bytes:
    """The image that a value names or contains: a path or a name as of `named_image`, base64, or a data: URL."""
    if not isinstance(value, str) or not (value := value.strip()):
        raise Rejected("missing image")
    if value.startswith("data:"):
        return from_base64(value.partition(",")[2])
    if len(value) >= PATH_LENGTH:
        return from_base64(value)
    try:
        return named_image(record, value, outside, most)
    except Rejected:
        if len(value) < SHORTEST_BASE64:
            raise
        try:
            return base64.b64decode("".join(value.split()), validate=True)
        except ValueError:
            pass
        raise


def _local(folder: str, name: str, outside: bool, most: int) -> bytes:
    path = Path(folder, name)
    if not outside and not path.resolve().is_relative_to(Path(folder).resolve()):
        raise Rejected("image outside the folder")
    if not path.is_file():
        raise Rejected("missing image")
    if path.stat().st_size > min(most, FILE_LIMIT):
        raise Rejected("image too large")
    return path.read_bytes()


def _remote(folder: str, name: str) -> bytes:
    import fsspec

    if "://" in name or ".." in name.split("/") or name.startswith("/"):
        raise Rejected("image outside the folder")
    try:
        with fsspec.open(f"{folder}/{name}", "rb") as file:
            content = file.read(FILE_LIMIT + 1)
    except Exception as error:
        raise Rejected("missing image") from error
    if len(content) > FILE_LIMIT:
        raise Rejected("image too large")
    return content
