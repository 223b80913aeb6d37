"""Reads tars as they stream past, damaged ones too.

Python's tarfile stops for good at the first damaged header, allocates what a header claims, and makes an object of
thirty attributes for each member. Here a damaged header costs the members up to the next sound one.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

MEMBER_LIMIT = 256 << 20
"""Largest member that is read, in bytes."""

_BLOCK = 512
_RECORD = 20 * _BLOCK  # most writers fill a tar with zeros up to a multiple of this
_CHUNK = 1 << 20
_EXTENSION_LIMIT = 1 << 20  # of a long name, or of a member's extended header
_SCAN_LIMIT = 1 << 30  # a stream without any header in so many bytes is given up
_REGULAR, _NO_DATA, _EXTENSIONS = b"0\x007", b"123456", b"LKxXg"
_IN_PIECES = b"SM"  # what is stored is not the file: one with holes, or the rest of one from another volume


@dataclass(frozen=True)
class Damage:
    """Stored data that gave no record; `reason` is a few words, the same for all that is lost for it."""

    reason: str


END = ("", b"")
"""What `members` gives where a tar ends."""


class Bytes(Protocol):
    """Anything that is read from its start to its end; a short answer is not yet the end."""

    def read(self, size: int, /) -> bytes: ...


class ByteStream:
    """Reads exactly as many bytes as asked, fewer at the end only, and takes bytes back."""

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
        # In pieces, so that no more is allocated than there is, whatever a header claims.
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
    padding, found, start = 0, False, stream.offset  # of the tar that is being read
    while True:
        block = stream.read(padding + _BLOCK)[padding:]
        padding = 0
        if not block.strip(b"\0"):
            if block:
                yield END  # before more is read, which may fail
            zeros, block = _after_zeros(stream, block)
            if not block:
                if not found:
                    yield Damage("empty shard")
                elif not zeros:
                    yield Damage("truncated tar")  # at the end of a member
                return
            here = stream.offset - len(block) - start
            legal_end = zeros == 2 or (here % _RECORD == 0 and zeros <= _RECORD // _BLOCK + 1)
            if not legal_end and _is_header(block):
                yield Damage("zeros inside a tar")
            start += here
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
            sound = _next_header(stream)
            yield Damage(str(error) if found or sound else "not a tar")
            if not sound:
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
        raise EOFError if _looks_sound(block) else _DamagedHeader("damaged tar header")
    field = block[148:156]
    # The checksum is of the header with its own place as blanks; some old writers added up signed bytes.
    unsigned = sum(block) - sum(field) + 8 * ord(" ")
    if (stated := _number(field)) != unsigned:
        signed = unsigned - 256 * sum(byte > 127 for byte in block[:148] + block[156:])
        if stated != signed:
            raise _DamagedHeader("damaged tar header")
    name = block[:100].split(b"\0", 1)[0]
    if block[257:263] == b"ustar\0" and block[345]:
        name = block[345:500].split(b"\0", 1)[0] + b"/" + name
    return name, block[156:157], _number(block[124:136])


def _after_zeros(stream: ByteStream, block: bytes) -> tuple[int, bytes]:
    """Number of blocks of zeros from this one on, and the block after them; empty at the end of the stream."""
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


def _looks_sound(block: bytes) -> bool:
    """Whether the beginning of a block may be that of a header: it is printable up to the first zero."""
    return len(block) > 0 and block[:100].split(b"\0", 1)[0].isascii() and b"\0" in block[:100]


def _number(field: bytes) -> int:
    if field[0] == 0x80:  # binary, for sizes from 8 GB
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
        # The claim may be false: what follows is searched for the next header rather than left out.
        raise _DamagedHeader(f"tar member larger than {limit >> 20} MB")
    content = stream.read(size)
    if len(content) < size:
        raise EOFError
    return content


def _extend(extended: dict[str, bytes], kind: bytes, content: bytes) -> None:
    """Takes the name and size of the next member from GNU's long name or from a POSIX extended header."""
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
    """Moves to the next block that is a sound header, by its mark; False at the end of the stream."""
    for _ in range(_SCAN_LIMIT // _CHUNK):
        chunk = stream.read(_CHUNK)
        at = chunk.find(b"ustar")
        while at >= 0:
            start = at - 257
            if start >= 0 and start % _BLOCK == 0 and len(chunk) >= start + _BLOCK:
                try:
                    _header(chunk[start : start + _BLOCK])
                except _DamagedHeader:
                    pass
                else:
                    stream.give_back(chunk[start:])
                    return True
            at = chunk.find(b"ustar", at + 1)
        if len(chunk) < _CHUNK:
            return False
    return False
