"""Reads Qt's resource files (`.rcc`): a tree of named files, some compressed by zlib.

The format is that of Qt's `rcc` tool, versions 1 to 3: a header of big-endian offsets; a table of nodes of 14 bytes
(22 from version 2 on, with a time); a block of names in UTF-16; a block of contents, each with its length before it.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

COMPRESSED, DIRECTORY, COMPRESSED_ZSTD = 1, 2, 4  # flags of a node


def read(path: Path) -> Iterator[tuple[str, bytes]]:
    """(path in the resource tree, content) of every file.

    Raises:
        ValueError: not an .rcc file, of an unknown version, damaged, or compressed by zstandard.
    """
    data = path.read_bytes()
    if data[:4] != b"qres":
        raise ValueError(f"{path}: expected a Qt resource file, which begins with 'qres'; given {data[:4]!r}")
    try:
        version, tree, contents, names = struct.unpack_from(">IIII", data, 4)
        if not 1 <= version <= 3:
            raise ValueError(f"{path}: version {version} of Qt's resource format; expected 1, 2 or 3")
        yield from _walk(data, (tree, contents, names, 14 if version == 1 else 22), 0, "")
    except (struct.error, zlib.error, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _walk(data: bytes, layout: tuple[int, int, int, int], node: int, parent: str) -> Iterator[tuple[str, bytes]]:
    tree, contents, names, size = layout
    at = tree + node * size
    name_at, flags = struct.unpack_from(">IH", data, at)
    path = f"{parent}/{_name(data, names + name_at)}" if node else ""
    if flags & DIRECTORY:
        count, first = struct.unpack_from(">II", data, at + 6)
        for child in range(first, first + count):
            yield from _walk(data, layout, child, path)
        return
    start = contents + struct.unpack_from(">I", data, at + 10)[0]  # after country and language
    length = struct.unpack_from(">I", data, start)[0]
    content = data[start + 4 : start + 4 + length]
    if flags & COMPRESSED_ZSTD:
        raise ValueError(f"{path} is compressed by zstandard, which is not supported; expected zlib or none")
    yield path, zlib.decompress(content[4:]) if flags & COMPRESSED else content


def _name(data: bytes, at: int) -> str:
    length = struct.unpack_from(">H", data, at)[0]
    return data[at + 6 : at + 6 + 2 * length].decode("utf-16-be")  # after a hash of the name
