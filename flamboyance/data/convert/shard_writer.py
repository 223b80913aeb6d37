"""Writes tars of records: files that share a key, `KEY.jpg`, `KEY.txt`, …"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterable
from pathlib import Path

from flamboyance.files import naming


def write_shard(path: Path | str, records: Iterable[tuple[str, dict[str, bytes]]]) -> int:
    """Writes (key, content by extension) to a tar; the same bytes for the same records. Returns how many there were.

    The tar is there complete or not at all: it is written as `.NAME.part` beside its place, and moved once it is on
    the disk. Without any record, or where `records` raises, none is left.

    Raises:
        ValueError: a key with a dot after its last slash, or without a name, which would be read as another.
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
        raise ValueError(f"{key!r} with the files {', '.join(fields) or 'none'} is no record: a key has no dot")
    for extension, content in fields.items():
        member = tarfile.TarInfo(f"{key}.{extension}")  # owner, mode and time are the same for all: 0, 0644, 1970
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
