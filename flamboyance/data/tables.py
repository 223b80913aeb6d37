"""CSV, TSV and JSONL files -> a record per row or line."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from typing import Any

from flamboyance.data.documents import Record
from flamboyance.data.tar import MEMBER_LIMIT, Bytes, Damage
from flamboyance.files import JSONL_SUFFIXES, is_table, raw_lines, read_table, table_rows


def is_separated(name: str) -> bool:
    """Whether a file is a CSV or TSV by its name, with or without .gz."""
    return is_table(_without_gz(name)) and not is_json_lines(name)


def is_json_lines(name: str) -> bool:
    """Whether a file is JSONL by its name, with or without .gz."""
    return _without_gz(name).lower().endswith(JSONL_SUFFIXES)


def _without_gz(name: str) -> str:
    return name[:-3] if name.lower().endswith(".gz") else name


def check_table(name: str) -> None:
    """Reads a local CSV or TSV file once.

    Raises:
        ValueError: a row is damaged, or no column holds images; names the line.
    """
    for place, row in read_table(name):
        if not row.keys() & {"image", "images", "file_name"}:
            raise ValueError(
                f"{place} has the columns {','.join(row)}; expected image,text or image,label or image,question,answer"
            )


def table_records(name: str) -> Iterator[Record | Damage]:
    """The records of a local table."""
    with open(name, "rb") as file:
        yield from (separated if is_separated(name) else lines)(file, name)


def separated(stream: Bytes, name: str) -> Iterator[Record | Damage]:
    """The rows of a CSV or TSV file, as JSON. A damaged row ends it: rows after an open quote cannot be told apart."""
    file = io.BufferedReader(_RawStream(stream), 1 << 20)
    empty = True
    try:
        for place, row in table_rows(raw_lines(file, name), name):
            empty = False
            yield Record(place, {"json": json.dumps(row).encode()}, os.path.dirname(name) or ".")
    except ValueError:
        yield Damage("damaged table")
        return
    if empty:
        yield Damage("empty shard")


def lines(stream: Bytes, name: str) -> Iterator[Record | Damage]:
    """The lines of a JSONL file, which end in LF, CRLF or CR; without empty ones."""
    folder, number, pieces, size = os.path.dirname(name) or ".", 0, [], 0
    while chunk := stream.read(1 << 16):
        while chunk.endswith(b"\r") and (more := stream.read(1)):  # a line break may be two bytes
            chunk += more
        if b"\r" in chunk:
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        first, *others = chunk.split(b"\n")
        for following in others:
            number += 1
            if line := b"".join([*pieces, first]).strip():
                yield Record(f"{name}:{number}", {"json": line}, folder)
            first, pieces, size = following, [], 0
        pieces.append(first)
        size += len(first)
        if size > MEMBER_LIMIT:
            yield Damage(f"line longer than {MEMBER_LIMIT >> 20} MB")
            return
    if line := b"".join(pieces).strip():
        yield Record(f"{name}:{number + 1}", {"json": line}, folder)
    elif not number:
        yield Damage("empty shard")


class _RawStream(io.RawIOBase):
    """A stream of bytes as a raw file, for `io.BufferedReader`."""

    def __init__(self, stream: Bytes) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)
