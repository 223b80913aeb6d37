"""Writes folders of tars; a record is the files of a tar that share a key: `KEY.jpg`, `KEY.txt`, …"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

from flamboyance.files import naming, read_json, write_json

PER_SHARD = 1000

Fields = dict[str, bytes]
"""The files of a record: content by extension."""

Item = TypeVar("Item")


def check_settings(output: Path, settings: dict[str, Any], name: str = "conversion.json") -> None:
    """Writes the settings into the folder of tars; ValueError if its tars were made with others.

    Other settings would put other documents into the tars that are missing.
    """
    output.mkdir(parents=True, exist_ok=True)
    file = output / name
    if not file.is_file():
        write_json(file, settings, indent=None)
    elif (before := read_json(file)) != settings:
        changed = [key for key in sorted(before | settings) if before.get(key) != settings.get(key)]
        shown = ", ".join(f"{key}={before.get(key)} instead of {settings.get(key)}" for key in changed)
        raise ValueError(f"the tars in {output} were made with {shown}; give those values, or another folder")


def batches(items: Iterator[Item], size: int) -> Iterator[Iterator[Item]]:
    """Batches of `size` items, which are not held in memory. A batch is exhausted before the next one begins."""
    for first in items:
        batch = chain([first], islice(items, size - 1))
        yield batch
        deque(batch, maxlen=0)


def json_bytes(content: dict[str, Any]) -> bytes:
    return json.dumps(content, ensure_ascii=False).encode("utf-8", "replace")


def write_shard(path: Path | str, records: Iterable[tuple[str, Fields]]) -> int:
    """Writes (key, files) to a tar; the same bytes for the same records. Returns the number of records.

    The tar is written whole or not at all: as `.NAME.part` in the same folder, and renamed once it is on the disk. No
    file is left without records, or if `records` raises.

    Raises:
        ValueError: a key without a name, or with a dot after its last slash, which would be read as another key.
    """
    path = Path(path)
    part, written = path.with_name(f".{path.name}.part"), 0
    try:
        with naming(path), part.open("wb") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT, encoding="utf-8") as tar:
                for key, fields in records:
                    _add(tar, key, fields)
                    written += 1
            file.flush()
            os.fsync(file.fileno())
        if written:
            os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return written


def _add(tar: tarfile.TarFile, key: str, fields: dict[str, bytes]) -> None:
    name = key.rpartition("/")[2]
    if not name or "." in name or not fields:
        raise ValueError(
            f"invalid record {key!r} with the files {', '.join(fields) or 'none'}; expected a key without a dot, and "
            "one or more files"
        )
    for extension, content in fields.items():
        member = tarfile.TarInfo(f"{key}.{extension}")  # owner 0, mode 0644, time 1970
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
