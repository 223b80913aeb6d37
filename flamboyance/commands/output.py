"""Rows that are appended to a JSONL or CSV file one by one, and what a file already holds."""

import csv
import io
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

Row = dict[str, Any]


class RowFile:
    """A file of results that an interrupted run can go on with.

    Opening it reads what is there. A last line that was cut off in writing is removed, so its row is missing
    and will be made again. Each row is written out at once.

    Args:
        path: a `.jsonl` or a `.csv` file; made where it does not exist.
        columns: the keys of a row, in the order of the CSV file's columns; `a.b` is key b of the dict
            under a. A row may lack some.
        keys: the columns that tell rows apart.

    Raises:
        ValueError: another suffix, or the file holds rows of another kind.
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path | str, columns: Sequence[str], keys: Sequence[str] = ("image",)) -> None:
        self.path, self.columns, self.keys = Path(path), list(columns), list(keys)
        self._outer = {column.partition(".")[0] for column in columns}
        self.is_csv = self.path.suffix.lower() == ".csv"
        if not self.is_csv and self.path.suffix.lower() != ".jsonl":
            raise ValueError(f"--output is a .jsonl or a .csv file; {self.path} is neither")
        # Opened before it is read: a file that cannot be written is found out before any work is done.
        self._file: TextIO = self.path.open("a", newline="", encoding="utf-8")
        try:
            self._done = self._resume()
        except ValueError:
            self._file.close()
            raise

    def __contains__(self, row: Row) -> bool:
        """Whether a row with the same keys is in the file."""
        return self._key(row) in self._done

    def append(self, row: Row) -> None:
        """Write one row, and let it reach the file."""
        if self.is_csv:
            flat = flatten(row)
            self._write(_csv_line([flat.get(column, "") for column in self.columns]))
        else:
            self._write(json.dumps(row, ensure_ascii=False) + "\n")
        self._done.add(self._key(row))

    def __enter__(self) -> "RowFile":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def _resume(self) -> set[tuple[str, ...]]:
        """Read what the file holds, then cut off an incomplete last line; a new CSV file gets its header."""
        written = self.path.read_bytes()
        whole = complete_lines(written, quoted=self.is_csv)
        rows = self._read(whole.decode(), written[len(whole) :].decode(errors="replace"))
        self._file.truncate(len(whole))
        if self.is_csv and not whole:
            self._write(_csv_line(self.columns))
        return {self._key(row) for row in rows}

    def _key(self, row: Row) -> tuple[str, ...]:
        return tuple(str(row[key]) for key in self.keys)

    def _write(self, line: str) -> None:
        self._file.write(line)
        self._file.flush()

    def _read(self, text: str, rest: str) -> list[Row]:
        """The rows of the file's complete lines. Nothing of the file is touched if it is not one of ours."""
        if not text:  # at most the beginning of a first line
            first = _csv_line(self.columns) if self.is_csv else "{"
            if not (first.startswith(rest) or (not self.is_csv and rest.startswith(first))):
                raise self._of_another_kind([rest[:40]])
            return []
        if self.is_csv:
            reader = csv.DictReader(io.StringIO(text, newline=""))
            rows = list(reader)
            if list(reader.fieldnames or []) != self.columns:
                raise self._of_another_kind(reader.fieldnames or [])
            return rows
        return [self._parse(number, line) for number, line in enumerate(text.split("\n")[:-1], 1)]

    def _parse(self, number: int, line: str) -> Row:
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{self.path}, line {number} is not JSON: {error}") from error
        if not isinstance(row, dict) or not set(self.keys) <= set(row) <= self._outer:
            raise self._of_another_kind(row if isinstance(row, dict) else [type(row).__name__])
        return row

    def _of_another_kind(self, found: Any) -> ValueError:
        return ValueError(
            f"{self.path} holds rows of {','.join(map(str, found))}, and this run would add rows of "
            f"{','.join(self.columns)}: give another --output"
        )


def complete_lines(data: bytes, quoted: bool) -> bytes:
    """The data up to the end of its last complete line. In CSV (`quoted`) line breaks may be quoted."""
    end = data.rfind(b"\n") + 1
    # An odd number of quotes before a line break: it stands inside a quoted value.
    while quoted and end and data.count(b'"', 0, end) % 2:
        end = data.rfind(b"\n", 0, end - 1) + 1
    return data[:end]


def flatten(row: Row) -> Row:
    """`{"a": 1, "b": {"c": 2}}` as `{"a": 1, "b.c": 2}`."""
    flat: Row = {}
    for key, value in row.items():
        flat |= {f"{key}.{inner}": v for inner, v in value.items()} if isinstance(value, dict) else {key: value}
    return flat


def _csv_line(values: Sequence[object]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(values)
    return line.getvalue()


def print_counts(output: str, counts: Counter[str]) -> int:
    """A conversion's counts, by name. Returns the exit status: 1 if it wrote nothing."""
    print(output)
    for name, count in sorted(counts.items()):
        if count:
            print(f"{count:>12,}  {name}")
    return 0 if counts["tars written"] or counts["tars already there"] else 1
