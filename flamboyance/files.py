"""Files: atomic writes and locks; users' texts, JSON, folders, and tables (CSV, TSV, JSONL).

Everything is written in UTF-8, whatever the locale. All texts and tables of users are read here, so that every command
reads the same formats and reports the same errors, by file and line.
"""

from __future__ import annotations

import csv
import json
import os
import re
import stat
import time
import uuid
import warnings
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from flamboyance.templates import well_formed

JSONL_SUFFIXES = (".jsonl", ".ndjson")
TABLE_SUFFIXES = (".csv", ".tsv", *JSONL_SUFFIXES)
"""Suffixes of tables, in lower case. Those of files may be in upper case."""

LINE_LIMIT = 256 << 20
"""The longest line that is read, in bytes: JSONL may hold images in base64."""

VALUE_LIMIT = 16 << 20
"""The longest value of a CSV or TSV file, in characters."""

csv.field_size_limit(max(csv.field_size_limit(), VALUE_LIMIT))  # for the whole process; Python's default is 131,072

TEXT_LIMIT = 1 << 20
"""The largest text that is read as one caption, question or answer, in bytes."""

TEXT_NAMES, ANSWER_NAMES = ("text", "label", "caption", "captions"), ("answer", "label", "answers")
"""The names of an image's text, and of the answer to a question, in order of preference."""

# Names that may be written in any case in tables; others are kept as they are written.
COLUMNS = ("image", "images", "file_name", *TEXT_NAMES, "question", "answer", "answers")

Record = dict[str, Any]


def separated(text: str) -> list[str]:
    """The values of a text with commas between them, those in quotes with theirs; without empty ones."""
    found = [value.strip() for row in csv.reader(text.splitlines(), skipinitialspace=True) for value in row]
    return [value for value in found if value]


def local(path: Path | str) -> Path:
    """A path with `~` and `~user` replaced; unchanged if there is no such user, where `Path.expanduser` raises."""
    return Path(os.path.expanduser(path))


def size_of(path: Path | str) -> int | None:
    """The size of a file in bytes; None if there is none."""
    try:
        return os.stat(path).st_size
    except (OSError, ValueError):
        return None


# ---- writing --------------------------------------------------------------------------------------------------------


class replacing:
    """Writes to a temporary file beside the target, and renames it when it is complete.

    `with replacing(path) as part:` gives the name to write to. An existing file keeps its mode; a new one gets the
    umask's. If the block fails, the target is unchanged.

    Raises:
        OSError: the file cannot be written, e.g. because the disk is full; names the target.
    """

    def __init__(self, target: Path | str):
        self.target = Path(target)

    def __enter__(self) -> str:
        with naming(self.target):
            name = f".{self.target.name[:100]}.{uuid.uuid4().hex[:8]}"
            self.part = str(self.target.with_name(name))
            mode = stat.S_IMODE(self.target.stat().st_mode) if self.target.exists() else None
            try:
                # Not `tempfile`: its files have the mode 0600, and the umask cannot be read without changing it.
                handle = os.open(self.part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(self.target)) from error
            self.mode = stat.S_IMODE(os.fstat(handle).st_mode) if mode is None else mode
            os.close(handle)
            if mode is not None:
                os.chmod(self.part, mode)
        return self.part

    def __exit__(self, kind: Any, error: BaseException | None, *_: Any) -> None:
        if kind is None:
            try:
                # safetensors replaces the file by its own, of mode 0600.
                if stat.S_IMODE(os.stat(self.part).st_mode) != self.mode:
                    os.chmod(self.part, self.mode)
                os.replace(self.part, self.target)
            except OSError as failed:
                Path(self.part).unlink(missing_ok=True)
                raise OSError(failed.errno, failed.strerror, str(self.target)) from failed
            return
        Path(self.part).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and error.filename in (None, self.part):
            raise OSError(error.errno, error.strerror, str(self.target)) from error
        # safetensors reports what the system said in its own exception.
        if error is not None and (found := re.search(r"\(os error (\d+)\)", str(error))):
            raise OSError(int(found[1]), os.strerror(int(found[1])), str(self.target)) from error


@contextmanager
def naming(path: Path | str) -> Generator[None]:
    """Adds a file's name to an OSError without one, such as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def check_written_here(path: Path) -> None:
    """A file that is to be opened for writing does not exist, or is a regular one: a link may lead to any other file,
    and a FIFO would block.

    Raises:
        ValueError: it is something else.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        raise ValueError(f"{path} is {'a link' if stat.S_ISLNK(mode) else 'not a regular file'}; remove it")


_locks: set[int] = set()  # file descriptors


def _close_inherited_locks() -> None:
    while _locks:
        os.close(_locks.pop())


if hasattr(os, "register_at_fork"):
    # Forked data workers may outlive their parent for some seconds, and must not hold its locks meanwhile.
    os.register_at_fork(after_in_child=_close_inherited_locks)


@contextmanager
def output_lock(target: Path, patience: float = 0.0) -> Generator[None]:
    """Keeps other commands from writing to a file, which is made if missing, or to a directory, by a `.lock` in it. The
    lock ends with the process, however the process ends. On Windows nothing is locked.

    Raises:
        BlockingIOError: another process still holds the lock after `patience` seconds.
        ValueError: the file is a link or not a regular file.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    path = target / ".lock" if target.is_dir() else target
    check_written_here(path)
    deadline = time.monotonic() + patience
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            # Not lockf, whose lock ends when the process closes any other handle of the same file.
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            if time.monotonic() >= deadline:
                raise BlockingIOError(
                    f"another flamboyance command is writing to {target}: wait until it ends, or give another output"
                ) from None
            time.sleep(0.1)
            continue
        except OSError:  # a file system without locks
            warnings.warn(f"{target} cannot be locked; let no other command write to it", stacklevel=3)
        if path.exists() and os.path.samestat(os.fstat(handle), path.stat()):
            break
        os.close(handle)  # another process has replaced the file meanwhile
    _locks.add(handle)
    try:
        yield
    finally:
        if handle in _locks:  # not in a forked process
            _locks.discard(handle)
            os.close(handle)


def write_text(path: Path | str, text: str) -> None:
    """Writes a text file, whole or not at all. Half a surrogate pair becomes "?"."""
    with replacing(path) as part:
        Path(part).write_bytes(text.encode("utf-8", "replace"))


def write_json(path: Path | str, content: Any, indent: int | None = 1) -> None:
    """Writes a JSON file, whole or not at all. Bytes of file names that are not UTF-8 are escaped; see `escaped`."""
    write_text(path, escaped(json.dumps(content, ensure_ascii=False, indent=indent)) + "\n")


def json_line(content: Any) -> str:
    """A value as a line of JSON. The name of any file can be read back from it."""
    return escaped(json.dumps(content, ensure_ascii=False)) + "\n"


def escaped(text: str) -> str:
    """The text with the byte 0xff of a file's name that is not UTF-8 written as `\\udcff`.

    Python reads such a byte as half a surrogate pair, which no encoding can write.
    """
    return text if text.isascii() else re.sub("[\ud800-\udfff]", lambda half: f"\\u{ord(half[0]):04x}", text)


# ---- texts ----------------------------------------------------------------------------------------------------------


def local_name(name: str) -> str:
    """A file's name in a text, for a system whose encoding may not be UTF-8."""
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return os.fsdecode(name.encode("utf-8", "replace"))
    return name


def read_text(path: Path | str, limit: int | None = None) -> str:
    """A text file without its byte order mark.

    Raises:
        ValueError: it is not UTF-8, or larger than `limit` bytes; names the file and the line.
        OSError: it cannot be read, or is not a regular file.
    """
    with _opened(path) as file:
        if limit is not None and (size := os.fstat(file.fileno()).st_size) > limit:
            raise ValueError(f"{path} has {size:,} bytes; expected a text of at most {limit:,}")
        return text_of(file.read(), str(path))


def text_of(content: bytes, name: str = "the text") -> str:
    """The text of a text file's content; ValueError as in `read_text`."""
    return "".join(line for _, line in decoded(content.splitlines(keepends=True), name))


def read_lines(path: Path | str) -> list[tuple[str, str]]:
    """(place, line) of each line that is not empty, stripped; the place is "FILE, line 3"."""
    with _opened(path) as file:
        lines = decoded(raw_lines(file, str(path)), str(path))
        return [(f"{path}, line {number}", line.strip()) for number, line in lines if line.strip()]


def decoded(lines: Iterable[bytes], name: str) -> Iterator[tuple[int, str]]:
    """(number, text) of each line of bytes, without the byte order mark; line breaks are kept."""
    for number, line in enumerate(lines, 1):
        if number == 1:
            if line[:2] in (b"\xff\xfe", b"\xfe\xff"):
                raise ValueError(f"{name} is UTF-16 text; save it as UTF-8")
            while line.startswith(b"\xef\xbb\xbf"):  # some programs add a second mark
                line = line[3:]
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{name}, line {number} is not UTF-8: byte {error.start + 1} is 0x{line[error.start]:02x}; save the "
                "file as UTF-8"
            ) from error
        if "\0" in text:
            raise ValueError(f"{name}, line {number} contains a zero byte, so it is not a text; is it the right file?")
        yield number, text


@contextmanager
def _opened(path: Path | str) -> Generator[Any]:
    if not os.path.isfile(path) and os.path.exists(path) and not os.path.isdir(path):
        raise OSError(f"{path} is not a regular file")  # a FIFO may block, a device may never end
    with open(path, "rb") as file:
        yield file


def raw_lines(file: Any, name: str) -> Iterator[bytes]:
    """Lines of a binary file with their ends: LF, CRLF or CR."""
    number = 0
    while line := file.readline(LINE_LIMIT):
        if len(line) == LINE_LIMIT:
            raise ValueError(f"{name}, line {number + 1} is longer than {LINE_LIMIT:,} bytes; is it the right file?")
        for piece in re.split(rb"(?<=\r)(?!\n)", line) if b"\r" in line else (line,):
            number += bool(piece)
            if piece:
                yield piece


# ---- JSON -----------------------------------------------------------------------------------------------------------


def read_json(path: Path | str) -> Any:
    """A JSON file's content.

    Raises:
        ValueError: it is not UTF-8 or not JSON; names line and column.
    """
    return parse_json(read_text(path), str(path), lines=True)


def parse_json(text: str, place: str, lines: bool = False) -> Any:
    """A text's JSON content; `lines`: errors name the line in the text."""
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        where = f"{place}, line {error.lineno}" if lines else place
        raise ValueError(f"{where}, column {error.colno} is not JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        raise ValueError(f"{place} is JSON that cannot be read: {error}") from error
    return without_halves(content) if r"\ud" in text.lower() else content


def without_halves(content: Any) -> Any:
    """JSON's content without halves of surrogate pairs."""
    if isinstance(content, str):
        return well_formed(content)
    if isinstance(content, list):
        return [without_halves(one) for one in content]
    if isinstance(content, dict):
        return {without_halves(key): without_halves(value) for key, value in content.items()}
    return content


# ---- folders --------------------------------------------------------------------------------------------------------


class Files(NamedTuple):
    """The content of a folder, without hidden files.

    Attributes:
        folder: its path.
        names: its regular files, sorted; also links to regular files inside the folder where the walk began.
        left_out: (name, reason) of what is not read: neither file nor folder, links that lead nowhere or out, folders
            that cannot be listed.
    """

    folder: str
    names: list[str]
    left_out: list[tuple[str, str]]


def is_inside(path: Path | str, folder: Path | str) -> bool:
    """Whether a path, with its links followed, is in a folder or in one below it."""
    try:
        return _is_below(os.path.realpath(path), os.path.realpath(folder))
    except ValueError:  # a zero byte in the name; another drive
        return False


def _is_below(path: str, folder: str) -> bool:
    return os.path.commonpath([path, folder]) == folder


def walk(folder: Path | str, outside: bool = False) -> Iterator[Files]:
    """A folder, then those below it in the order of their names.

    A link to a folder inside is skipped, as that folder is visited itself. With `outside`, links that lead out are
    followed, each folder once.
    """
    start = os.fspath(folder)
    home, seen, stack = os.path.realpath(start), set[str](), [start]
    while stack:
        here = stack.pop()
        if (real := os.path.realpath(here)) in seen:
            continue
        seen.add(real)
        names, folders, left_out = [], [], []
        try:
            with os.scandir(here or ".") as entries:
                found = sorted((one for one in entries if not one.name.startswith(".")), key=lambda one: one.name)
        except OSError as error:
            yield Files(here, [], [("", f"cannot be listed: {error.strerror}")])
            continue
        for entry in found:
            path = os.path.join(here, entry.name)
            if entry.is_symlink():
                target = os.path.realpath(path)
                if not os.path.exists(target):
                    left_out.append((entry.name, "is a link that leads nowhere"))
                elif not outside and not _is_below(target, home):
                    left_out.append((entry.name, "leads out of the folder"))
                elif os.path.isfile(target):
                    names.append(entry.name)
                elif not os.path.isdir(target):
                    left_out.append((entry.name, "is not a regular file"))
                elif outside:
                    folders.append(path)
            elif entry.is_dir(follow_symlinks=False):
                folders.append(path)
            elif entry.is_file(follow_symlinks=False):
                names.append(entry.name)
            else:
                left_out.append((entry.name, "is not a regular file"))
        yield Files(here, names, left_out)
        stack += reversed(folders)


# ---- tables ---------------------------------------------------------------------------------------------------------


def is_table(path: Path | str) -> bool:
    """Whether `read_table` reads files of this name."""
    return os.path.splitext(path)[1].lower() in TABLE_SUFFIXES


def read_table(path: Path | str) -> Iterator[tuple[str, Record]]:
    """(place, record) of each row of a CSV, TSV or JSONL file; the place is "FILE, line 3".

    CSV and TSV: the first line names the columns. Values are separated by commas, semicolons or tabs, as in the first
    line. A value that contains a separator, a quote or a line break is in double quotes. White space around names and
    before a quote is removed, and empty rows are skipped. JSONL: an object per line. Known names may be in upper case.

    Raises:
        ValueError: another suffix; a row with more or fewer values than columns; a quote that is not closed; a line
            that is not a JSON object; a text that is not UTF-8. Names the file, the line, the values and the columns.
        OSError: the file cannot be read, or is not a regular file.
    """
    if not is_table(path):
        raise ValueError(f"{path} is not a table; expected a file that ends in {', '.join(TABLE_SUFFIXES)}")
    with _opened(path) as file:
        yield from table_rows(raw_lines(file, str(path)), str(path))


def table_rows(lines: Iterable[bytes], name: str) -> Iterator[tuple[str, Record]]:
    """The rows of a table from its lines, which are already unpacked if `name` ends in `.gz`; as `read_table`."""
    suffix = os.path.splitext(re.sub(r"\.gz$", "", name, flags=re.IGNORECASE))[1].lower()
    if suffix in JSONL_SUFFIXES:
        yield from ((place, with_known_names(record)) for place, record in _objects(decoded(lines, name), name))
    else:
        yield from _separated(decoded(lines, name), name, "\t" if suffix == ".tsv" else ",")


def with_known_names(record: Record) -> Record:
    """A record with the names of COLUMNS in lower case; where it has a name in both, the other stays as it is."""
    return {
        known if (known := name.lower()) in COLUMNS and known not in record else name: value
        for name, value in record.items()
    }


def read_json_lines(path: Path | str) -> Iterator[tuple[str, Record]]:
    """(place, object) of each line of a JSONL file, whatever its suffix; as `read_table`."""
    with _opened(path) as file:
        yield from _objects(decoded(raw_lines(file, str(path)), str(path)), str(path))


def _objects(lines: Iterator[tuple[int, str]], name: str) -> Iterator[tuple[str, Record]]:
    for number, line in lines:
        if not line.strip():
            continue
        place = f"{name}, line {number}"
        record = parse_json(line.rstrip("\r\n"), place)
        if not isinstance(record, dict):
            raise ValueError(f"{place} is {_kind(record)}; expected an object")
        yield place, record


class _Line(NamedTuple):
    number: int
    values: list[str]


def _separated(lines: Iterator[tuple[int, str]], name: str, usual: str) -> Iterator[tuple[str, Record]]:
    first = next((line for line in lines if line[1].strip()), None)
    if first and (stated := re.fullmatch(r"\s*\"?sep=([,;\t])\"?\s*", first[1])):  # written by spreadsheet programs
        usual, first = stated[1], next(lines, None)
    if first is None:
        return
    separator = _separator(first[1], usual)
    columns = _columns(first, separator, name)
    image_column = next((i for i, column in enumerate(columns) if column in ("image", "file_name")), None)
    for row, end in _rows(lines, first[0], separator, name):
        if not any(value.strip() for value in row.values):
            continue
        place = f"{name}, line {row.number}"
        _check_count(row, columns, separator, place)
        if end > row.number and image_column is not None:
            _check_rows_in_quotes(row, end, columns, image_column, separator, name)
        for value, column in list(zip(row.values, columns, strict=True))[1:]:
            if not column and value.strip():
                raise ValueError(f"{place}: {value.strip()[:60]!r} is in a column without a name; name it in line 1")
        yield place, {column: value for column, value in zip(columns, row.values, strict=True) if column}


def _rows(lines: Iterator[tuple[int, str]], before: int, separator: str, name: str) -> Iterator[tuple[_Line, int]]:
    """(row, number of its last line). `row.number` is that of its first line."""
    last = before

    def texts() -> Iterator[str]:
        nonlocal last
        for number, line in lines:
            last = number
            yield line

    reader = csv.reader(texts(), delimiter=separator, skipinitialspace=True, strict=True)
    start = before + 1
    while True:
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            is_open = "end of data" in str(error) or "limit" in str(error) or last > start
            hint = "is a closing quote missing?" if is_open else 'write a quote inside a quoted value twice ("")'
            where = f"line {start}" if last <= start else f"lines {start} to {last}"
            raise ValueError(f"{name}, {where}: not CSV ({error}); {hint}") from error
        yield _Line(start, values), last
        start = last + 1


def _separator(header: str, usual: str) -> str:
    """The separator of a first line: one that gives a column of images, or else the most columns."""

    def rank(separator: str) -> tuple[bool, int]:
        names = _header(header, separator)
        return any(name in ("image", "file_name") for name in names), len(names)

    return max((usual, *(one for one in ",;\t" if one != usual)), key=rank)


def _header(line: str, separator: str) -> list[str]:
    try:
        names = next(csv.reader([line], delimiter=separator, skipinitialspace=True), [])
    except csv.Error:
        return []
    names = [name.strip() for name in names]
    return [name.lower() if name.lower() in COLUMNS else name for name in names]


def _columns(first: tuple[int, str], separator: str, name: str) -> list[str]:
    columns = _header(first[1], separator)
    twice = sorted({column for column in columns if column and columns.count(column) > 1})
    if twice:
        raise ValueError(f"{name}, line {first[0]} names columns twice: {', '.join(twice)}; expected each name once")
    return columns


def _check_count(row: _Line, columns: Sequence[str], separator: str, place: str) -> None:
    if len(row.values) == len(columns):
        return
    shown = ", ".join(repr(value if len(value) < 60 else f"{value[:57]}…") for value in row.values[:8])
    more = ", …" if len(row.values) > 8 else ""
    sign = {",": "comma", ";": "semicolon", "\t": "tab"}[separator]
    advice = (
        f"put a value that contains a {sign} in double quotes"
        if len(row.values) > len(columns)
        else f"expected one value per column, separated by {sign}s"
    )
    count = f"{len(row.values)} value" + "s" * (len(row.values) != 1)
    raise ValueError(f"{place} has {count} for the {len(columns)} columns {','.join(columns)}: {shown}{more}; {advice}")


def _check_rows_in_quotes(
    row: _Line, end: int, columns: Sequence[str], image_column: int, separator: str, name: str
) -> None:
    """Refuses a quoted value with lines that look like rows with images: the quote was closed rows too late."""
    suffix = os.path.splitext(row.values[image_column].strip())[1].lower()
    for value in row.values:
        for line in value.splitlines() if "\n" in value or "\r" in value else ():
            values = line.split(separator)
            if len(values) != len(columns):
                continue
            other = os.path.splitext(values[image_column].strip().strip('"'))[1].lower()
            if other and (other == suffix or re.fullmatch(r"\.[a-z][a-z0-9]{2,4}", other)):
                raise ValueError(
                    f"{name}, lines {row.number} to {end}: a quote that opens in line {row.number} contains other "
                    f"rows, such as {line.strip()[:60]!r}; close it, or write a quote inside a quoted value twice"
                )


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def is_web_url(name: str) -> bool:
    """Whether a name is an address of http or https, in any case; a `data:` URL may be megabytes long."""
    return name[:8].lower().startswith(("http://", "https://"))
