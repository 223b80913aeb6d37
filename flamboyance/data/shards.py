"""Shards: the shards that patterns name, and the records in a shard, however damaged it is."""

from __future__ import annotations

import gzip
import io
import os
import re
import select
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from glob import glob, has_magic
from http.client import HTTPException
from typing import Any

from flamboyance.data.documents import Record
from flamboyance.data.folder import folder_records, has_images
from flamboyance.data.parquet import is_parquet, need_pyarrow, parquet_records
from flamboyance.data.tables import check_table, is_json_lines, is_separated, lines, separated
from flamboyance.data.tar import END, MEMBER_LIMIT, Bytes, ByteStream, Damage, members

PIPE = "pipe:"
RETRY_AFTER = (0.5, 2.0)
"""Seconds before a remote shard is read again, after the first and second failure without progress."""

_SILENCE = 300  # after so many seconds without a byte, a transfer has failed
_READ_AHEAD = 8 << 20
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_DAMAGED_GZIP = (gzip.BadGzipFile, zlib.error, EOFError)
_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "http": "aiohttp", "https": "aiohttp"}


def expand(patterns: str | Sequence[str]) -> list[str]:
    """The shards that patterns name, as `matching`.

    Raises:
        ValueError: a pattern matches nothing, a folder holds no images, or a CSV or TSV file has a damaged row.
        ImportError: a URL's protocol, or a Parquet file, needs a package that is not installed.
    """
    shards = matching(
        patterns,
        "paths or URLs of .tar, .jsonl, .csv, .tsv or .parquet files, or a folder of images; * and {000..099} are read",
    )
    for shard in shards:
        if is_parquet(shard) and not shard.startswith(PIPE):
            need_pyarrow(shard)
        if _is_remote(shard):
            continue
        if os.path.isdir(shard) and not has_images(shard):
            raise ValueError(f"the folder '{shard}' holds no images; for the tars in it give '{shard}/*.tar'")
        if os.path.isfile(shard) and is_separated(shard) and not shard.lower().endswith(".gz"):
            check_table(shard)
    return shards


def matching(patterns: str | Sequence[str], expected: str) -> list[str]:
    """The paths, URLs and commands that patterns name, in the patterns' order and sorted within each.

    Args:
        patterns: paths, URLs, or `pipe:command`. `{000..099}` stands for each number from the first to the last, with
            as many digits. `*` stands for any characters, except in commands.
        expected: what the patterns should name, for the error message.

    Raises:
        ValueError: a pattern matches nothing.
        ImportError: a URL's protocol needs a package that is not installed.
    """
    given = [patterns] if isinstance(patterns, (str, os.PathLike)) else list(patterns)
    if not given:
        raise ValueError(f"no shards are given; expected {expected}")
    return [name for pattern in given for name in _matching(os.fspath(pattern), expected)]


def _matching(pattern: str, expected: str) -> list[str]:
    names = _expand_ranges(pattern)
    if pattern.startswith(PIPE):
        return names
    if _is_url(pattern):
        _need_protocol(pattern)
        found = [match for name in names for match in (_remote_glob(name) if "*" in name else [name])]
    else:
        found = [match for name in names for match in _local_glob(name)]
        # Some files of a range may be missing: that is counted when they are read. All of them may not.
        found = found if any(map(os.path.exists, found)) else []
    if not found:
        folder = os.path.dirname(pattern) or "."
        exists = "" if _is_url(pattern) or os.path.isdir(folder) else ", which does not exist"
        raise ValueError(f"'{pattern}' matches nothing in '{folder}'{exists}; expected {expected}")
    return found


def _expand_ranges(pattern: str) -> list[str]:
    if not (match := _RANGE.search(pattern)):
        return [pattern]
    first, last = match.groups()
    if int(last) < int(first):
        raise ValueError(f"the range {match[0]} in '{pattern}' runs backwards; give the smaller number first")
    width = len(first) if first.startswith("0") or len(first) == len(last) else 0
    head, tail = pattern[: match.start()], pattern[match.end() :]
    rest = _expand_ranges(tail)
    return [f"{head}{number:0{width}d}{end}" for number in range(int(first), int(last) + 1) for end in rest]


def _local_glob(name: str) -> list[str]:
    name = os.path.expanduser(name)
    return sorted(glob(name, recursive=True)) if has_magic(name) and not os.path.exists(name) else [name]


def _is_url(name: str) -> bool:
    return "://" in name


def _is_remote(shard: str) -> bool:
    return shard.startswith(PIPE) or _is_url(shard)


def _need_protocol(url: str) -> None:
    import fsspec

    for part in url.split("::"):
        protocol = part.partition("://")[0]
        try:
            fsspec.get_filesystem_class(protocol)
        except ImportError as error:
            package = _PACKAGES.get(protocol, "the package in the message above")
            raise ImportError(f"shards at {protocol}:// need a package: pip install {package} (for '{url}')") from error
        except ValueError as error:
            raise ValueError(
                f"'{url}' has the protocol '{protocol}', which fsspec does not know; give s3://, gs://, http(s)://, "
                "a path, or pipe:command"
            ) from error


def _remote(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it."""
    import fsspec

    options: dict[str, Any] = {}
    if url.startswith(("http://", "https://")):
        import aiohttp

        # aiohttp limits a whole transfer to five minutes, but it takes as long as the training that reads it.
        options["client_kwargs"] = {"timeout": aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=_SILENCE)}
    return fsspec.core.url_to_fs(url, **options)


def _remote_glob(url: str) -> list[str]:
    system, path = _remote(url)
    return sorted(system.unstrip_protocol(found) for found in system.glob(path))


def records(shard: str, outside: bool = False) -> Iterator[Record | Damage]:
    """The content of a shard, in stored order; the same each time.

    Args:
        shard: from `expand`: a folder of images; a `.jsonl`, `.csv` or `.tsv` file (also with `.gz`) or a `.parquet`
            file, with a record per row; or else a tar (or `.tar.gz`), in which files that share the name up to its
            first dot are one record.
        outside: links in a folder may lead out of it.

    Yields:
        Records; and a `Damage` for each place that cannot be read, or for the whole shard. Damaged or missing data
        raises nothing. A failed transfer is repeated, and continues where it stopped.
    """
    yielded = tries = 0
    while True:
        try:
            for number, item in enumerate(_records(shard, outside)):
                if number == yielded:
                    yielded, tries = yielded + 1, 0
                    yield item
            return
        except _transfer_errors() as error:
            if not _is_remote(shard) or tries == len(RETRY_AFTER):
                yield Damage(f"shard cannot be read: {type(error).__name__}")
                return
            time.sleep(RETRY_AFTER[tries])
            tries += 1


def _transfer_errors() -> tuple[type[BaseException], ...]:
    """The errors of failing file systems, with those of the optional libraries that are loaded."""
    names = [("aiohttp", "ClientError"), ("botocore.exceptions", "BotoCoreError"), ("gcsfs.retry", "HttpError")]
    names.append(("botocore.exceptions", "ClientError"))
    loaded = [getattr(sys.modules.get(module), name, None) for module, name in names]
    return OSError, ValueError, RuntimeError, HTTPException, *filter(None, loaded)


def _records(shard: str, outside: bool) -> Iterator[Record | Damage]:
    if not _is_remote(shard):
        if os.path.isdir(shard):
            yield from folder_records(shard, outside)
            return
        if os.path.exists(shard) and not os.path.isfile(shard):
            yield Damage("shard is no regular file")
            return
    with _opened(shard) as file:
        if is_parquet(shard) and not shard.startswith(PIPE):
            yield from parquet_records(file, shard)
            return
        stream = ByteStream(file)
        magic = stream.read(2)
        stream.give_back(magic)
        if magic == b"\x1f\x8b":
            stream = ByteStream(gzip.GzipFile(fileobj=stream))  # ty: ignore[invalid-argument-type]
        try:
            if not shard.startswith(PIPE) and is_json_lines(shard):
                yield from lines(stream, shard)
            elif not shard.startswith(PIPE) and is_separated(shard):
                yield from separated(stream, shard)
            else:
                yield from _grouped(stream)
        except _DAMAGED_GZIP:
            yield Damage("damaged gzip")


@contextmanager
def _opened(shard: str) -> Generator[Bytes]:
    if shard.startswith(PIPE):
        with _Command(shard.removeprefix(PIPE)) as command:
            yield io.BufferedReader(command, 1 << 20)
            command.finish()
    elif _is_url(shard):
        system, path = _remote(shard)
        with system.open(path, "rb", block_size=_READ_AHEAD) as file:
            yield file
    else:
        with open(shard, "rb", buffering=1 << 20) as file:
            yield file


class _Command(io.RawIOBase):
    """The output of a shell command. Reading raises OSError if the command fails or writes nothing for too long."""

    def __init__(self, command: str) -> None:
        self._command = command
        # In a new session, so that all processes of a `curl … | gunzip` can be ended together.
        self._process = subprocess.Popen(
            command, shell=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, bufsize=0, start_new_session=True
        )
        assert self._process.stdout
        self._output = self._process.stdout
        self._waiting = select.poll()
        self._waiting.register(self._output, select.POLLIN)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        if not self._waiting.poll(_SILENCE * 1000):
            raise TimeoutError(f"the command '{self._command}' wrote nothing for {_SILENCE} seconds")
        data = self._output.read(len(buffer))
        buffer[: len(data)] = data
        if not data and (status := self._process.wait()):
            raise OSError(f"the command '{self._command}' failed with status {status}")
        return len(data)

    def finish(self) -> None:
        """Reads the bytes after the end of a tar, if few, so that a command that fails at its end is noticed."""
        buffer = bytearray(1 << 16)
        for _ in range(16):
            if not self.readinto(buffer):
                return

    def close(self) -> None:
        if not self.closed:
            if self._process.poll() is None:
                os.killpg(self._process.pid, signal.SIGKILL)
            self._output.close()
            self._process.wait()
        super().close()


def _grouped(stream: ByteStream) -> Iterator[Record | Damage]:
    """The records of a tar: consecutive members that share the path up to the first dot of the file's name."""
    key, fields, size = "", {}, 0
    for member in members(stream):
        if isinstance(member, Damage):
            yield member
            continue
        name, content = member
        if member == END and fields:
            yield Record(key, fields)
            key, fields, size = "", {}, 0
        folder, slash, file = name.rpartition("/")
        stem, dot, extension = file.partition(".")
        if not stem or not dot or (stem.startswith("__") and stem.endswith("__")):
            continue  # hidden files, and notes of programs that write tars
        stem, extension = folder + slash + stem, extension.lower()
        if stem != key:
            if fields:
                yield Record(key, fields)
            key, fields, size = stem, {}, 0
        size += len(content)
        if extension in fields:
            yield Damage("two files of one name in a tar")
        elif size > MEMBER_LIMIT:
            yield Damage(f"record larger than {MEMBER_LIMIT >> 20} MB")
        else:
            fields[extension] = content
    if fields:
        yield Record(key, fields)
