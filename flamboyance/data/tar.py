"""Reads tars from a stream, also damaged ones.

Python's tarfile stops at the first damaged header, allocates the size that a header states, and creates an object with
thirty attributes per member. Here a damaged header costs the members up to the next valid header.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

MEMBER_LIMIT = 256 << 20
"""Largest member that is read, in bytes."""

_BLOCK = 512
_RECORD = 20 * _BLOCK  # most writers pad a tar with zeros to a multiple of this
_CHUNK = 1 << 20
_EXTENSION_LIMIT = 1 << 20  # size of a long name or an extended header
_SCAN_LIMIT = 1 << 30  # after so many bytes without a header, the rest of a stream is skipped
_REGULAR, _NO_DATA, _EXTENSIONS = b"0\x007", b"123456", b"LKxXg"
_IN_PIECES = b"SM"  # the stored bytes are not the file: a sparse file, or the rest of one from another volume


@dataclass(frozen=True)
class Damage:
    """Stored data that gave no record. `reason` is a few words, the same for all data that is lost for it."""

    reason: str


END = ("", b"")
"""What `members` yields at the end of a tar."""


class Bytes(Protocol):
    """Anything that is read from its start to its end. A short read is not the end."""

    def read(self, size: int, /) -> bytes: ...


class ByteStream:
    """Reads exactly `size` bytes, fewer only at the end, and takes bytes back."""

    def __init__(self, file: Bytes) -> None:
        self._file = file
        self._ahead = io.BytesIO()
        self.offset = 0  # bytes read so far

    def read(self, size: int, /) -> bytes:
        data = self._read(size)
        self.offset += len(data)
        return data

    def _read(self, size: int) -> bytes:
        data = self._ahead.read(size)
        if len(data) == size:
            return data
        parts = [data] if data else []
        missing = size - len(data)
        # In pieces, so that no more is allocated than the stream holds, whatever size a header states.
        while missing and (part := self._file.read(min(missing, 8 * _CHUNK))):
            parts.append(part)
            missing -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def give_back(self, data: bytes) -> None:
        self.offset -= len(data)
        self._ahead = io.BytesIO(data + self._ahead.read())


class _DamagedHeader(Exception):
    pass


def members(stream: ByteStream) -> Iterator[tuple[str, bytes] | Damage]:
    """(name, content) of each regular file, in stored order, and a `Damage` for each place that cannot be read.

    Blocks of zeros end a tar (`END`), but not the stream: another tar may follow, or the rest of a damaged one.
    """
    extended: dict[str, bytes] = {}
    padding, found, start = 0, False, stream.offset  # start: of the current tar
    while True:
        block = stream.read(padding + _BLOCK)[padding:]
        padding = 0
        if not block.strip(b"\0"):
            if block:
                yield END  # before the next read, which may fail
            zeros, block = _after_zeros(stream, block)
            if not block:
                if not found:
                    yield Damage("empty shard")
                elif not zeros:
                    yield Damage("truncated tar")  # at the end of a member
                return
            length = stream.offset - len(block) - start
            # A tar ends in two blocks of zeros, or is padded to whole records. Other zeros are members that are lost.
            if zeros != 2 and (length % _RECORD or zeros > _RECORD // _BLOCK + 1) and _is_header(block):
                yield Damage("zeros inside a tar")
            start += length
        try:
            name, kind, size = _header(block)
            if kind in _EXTENSIONS:
                extension = _content(stream, size, _EXTENSION_LIMIT)
                stream.read(-size % _BLOCK)
                _extend(extended, kind, extension)
                found = True
                continue
            name, sparse = extended.pop("path", name), kind in _IN_PIECES or "sparse" in extended
            size = _decimal(extended.pop("size")) if "size" in extended else size
            extended.clear()
            content = _content(stream, 0 if kind in _NO_DATA else size, MEMBER_LIMIT)
        except EOFError:
            yield Damage("truncated tar")
            return
        except _DamagedHeader as error:
            extended.clear()
            recovered = _next_header(stream)
            yield Damage(str(error) if found or recovered else "not a tar")
            if not recovered:
                return
            found = True
            continue
        padding, found = -len(content) % _BLOCK, True
        if sparse:
            yield Damage("tar member in pieces")
        elif kind in _REGULAR:
            yield name.decode("utf-8", "replace"), content


def _header(block: bytes) -> tuple[bytes, bytes, int]:
    """(name, type, size) of a header."""
    if len(block) < _BLOCK:
        raise EOFError if _may_be_header(block) else _DamagedHeader("damaged tar header")
    field = block[148:156]
    # The checksum counts its own field as blanks. Some old writers added signed bytes.
    stated, unsigned = _number(field), sum(block) - sum(field) + 8 * ord(" ")
    if stated != unsigned and stated != unsigned - 256 * sum(byte > 127 for byte in block[:148] + block[156:]):
        raise _DamagedHeader("damaged tar header")
    name = block[:100].split(b"\0", 1)[0]
    if block[257:263] == b"ustar\0" and block[345]:
        name = block[345:500].split(b"\0", 1)[0] + b"/" + name
    return name, block[156:157], _number(block[124:136])


def _after_zeros(stream: ByteStream, block: bytes) -> tuple[int, bytes]:
    """Number of blocks of zeros from this block on, and the block after them: b"" at the end of the stream."""
    zeros = 0
    while block and not block.strip(b"\0"):
        zeros += 1
        block = stream.read(_BLOCK)
    return zeros, block


def _is_header(block: bytes) -> bool:
    try:
        _header(block)
    except (_DamagedHeader, EOFError):
        return False
    return True


def _may_be_header(block: bytes) -> bool:
    """Whether the first bytes of a block may be a header's: the name is ASCII up to a zero."""
    return block[:100].split(b"\0", 1)[0].isascii() and b"\0" in block[:100]


def _number(field: bytes) -> int:
    if field[0] == 0x80:  # binary, for sizes of 8 GB and more
        return int.from_bytes(field[1:], "big")
    try:
        value = int(field.strip(b" \0") or b"0", 8)
    except ValueError:
        value = -1
    if value < 0:
        raise _DamagedHeader("damaged tar header")
    return value


def _decimal(value: bytes) -> int:
    if not value.isdigit() or len(value) > 20:
        raise _DamagedHeader("damaged tar header")
    return int(value)


def _content(stream: ByteStream, size: int, limit: int) -> bytes:
    if size > limit:
        # The size may be wrong, so that many bytes are not skipped: the next header is searched from here.
        raise _DamagedHeader(f"tar member larger than {limit >> 20} MB")
    content = stream.read(size)
    if len(content) < size:
        raise EOFError
    return content


def _extend(extended: dict[str, bytes], kind: bytes, content: bytes) -> None:
    """Reads the name and size of the next member from a GNU long name or a POSIX extended header."""
    if kind == b"L":
        extended["path"] = content.rstrip(b"\0")
    elif kind in b"xX":
        while content.strip(b"\0"):
            length = content.partition(b" ")[0]
            end = _decimal(length)
            key, equals, value = content[len(length) + 1 : end].rstrip(b"\n").partition(b"=")
            if end <= len(length) or end > len(content) or not equals:
                raise _DamagedHeader("damaged tar header")
            if key in (b"path", b"size"):
                extended[key.decode()] = value
            elif key.startswith(b"GNU.sparse."):
                extended["sparse"] = value
            content = content[end:]


def _next_header(stream: ByteStream) -> bool:
    """Moves to the next block that is a valid header, found by its magic number; False if there is none."""
    for _ in range(_SCAN_LIMIT // _CHUNK):
        chunk = stream.read(_CHUNK)
        for match in re.finditer(b"ustar", chunk):
            start = match.start() - 257
            if start >= 0 and start % _BLOCK == 0 and _is_header(chunk[start : start + _BLOCK]):
                stream.give_back(chunk[start:])
                return True
        if len(chunk) < _CHUNK:
            return False
    return False
