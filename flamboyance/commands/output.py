"""Files of results: rows are appended to JSONL or CSV one by one, and a file can be resumed."""

import csv
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from flamboyance.commands.output_identity import Settings, describe_differences
from flamboyance.files import escaped, json_line, naming, output_lock, read_json, replacing, write_json

Row = dict[str, Any]


class RowFile:
    """A file of results that an interrupted run can resume.

    Opening locks the file and reads it. It does not change before `begin`; from then on each row is written at once. A
    last line that was cut off is removed, and its row is computed again.

    The settings of the rows are in `FILE.settings.json` beside the file, so that every CSV or JSONL reader can read the
    rows. A file with other settings is refused.

    Args:
        path: a `.jsonl` or `.csv` file; created if missing.
        columns: the keys of a row, in the order of the CSV file's columns; `a.b` is key b of the dict under a. A row
            may lack some. A row with a value under `error` failed.
        keys: the columns that identify a row.
        settings: returns the settings of the rows; called once the file is known to hold such rows.
        overwrite: start anew, whatever the file holds.

    Raises:
        ValueError: another suffix, or the file holds rows of another kind or of other settings.
        OSError: the file cannot be written, or another command is writing to it.
    """

    def __init__(
        self,
        path: Path | str,
        columns: Sequence[str],
        keys: Sequence[str] = ("image",),
        settings: Callable[[], Settings] = dict,
        overwrite: bool = False,
    ) -> None:
        # Through a link, so that it stays one.
        self.path, self.columns, self.keys = Path(os.path.realpath(path)), list(columns), list(keys)
        self.about = self.path.with_name(f"{self.path.name}.settings.json")
        self._settings = settings
        self._outer = {column.partition(".")[0] for column in columns}
        self.is_csv = self.path.suffix.lower() == ".csv"
        if not self.is_csv and self.path.suffix.lower() != ".jsonl":
            raise ValueError(f"--output is a .jsonl or a .csv file; {self.path} is neither")
        if self.path.exists() and not self.path.is_file() and not self.path.is_dir():
            raise ValueError(f"--output {self.path} is not a regular file")  # a FIFO would block
        # Opened for writing before it is read: a file that cannot be written is refused before any work.
        self._created = not self.path.exists()
        self._lock = ExitStack()
        if not self.path.is_dir():
            self._lock.enter_context(output_lock(self.path))
        self._file = open(self.path, "ab")  # noqa: SIM115  kept open
        self._done: set[tuple[str, ...]] = set()
        self._failed: set[tuple[str, ...]] = set()
        try:
            rows = [] if overwrite else self._read()
            if rows:
                self._check_settings()
        except (ValueError, OSError):
            self.close()
            raise
        self._fresh = not rows
        for row in rows:
            (self._failed if row.get("error") else self._done).add(self._key(row))

    def __contains__(self, row: Row) -> bool:
        """Whether a row with the same keys is in the file and has not failed."""
        return self._key(row) in self._done

    def begin(self, todo: Iterable[Row]) -> None:
        """Prepare the file for the rows of `todo`, by removing their failed rows.

        If the process is killed, the file is as before or as after.
        """
        if self._fresh:
            self._file.truncate(0)
            write_json(self.about, self._settings())
            self._write(_csv_line(self.columns) if self.is_csv else "")
            return
        written = self.path.read_bytes()
        if failed := self._failed & {self._key(row) for row in todo}:
            kept = "".join(self._line(row) for row in self._read() if self._key(row) not in failed)
            with replacing(self.path) as part, ExitStack() as lock:
                Path(part).write_bytes((_csv_line(self.columns) * self.is_csv + kept).encode())
                file = open(part, "ab")  # noqa: SIM115  kept open
                lock.enter_context(output_lock(Path(part)))  # before it gets the file's name
                new_lock = lock.pop_all()
            self._file.close()
            self._lock.close()
            self._file, self._lock = file, new_lock
        else:
            self._file.truncate(len(complete_lines(written, quoted=self.is_csv)))

    def append(self, row: Row) -> None:
        """Write one row to the file at once."""
        self._write(self._line(row))

    def _write(self, line: str) -> None:
        with naming(self.path):
            self._file.write(line.encode())
            self._file.flush()

    def close(self) -> None:
        if self._created and self.path.exists() and not self.path.stat().st_size:
            self.path.unlink()  # no row was written
        with naming(self.path):  # may write a rest that a full disk has refused
            self._file.close()
        self._lock.close()

    def __enter__(self) -> "RowFile":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _key(self, row: Row) -> tuple[str, ...]:
        return tuple(escaped(str(row[key])) for key in self.keys)

    def _line(self, row: Row) -> str:
        if self.is_csv:
            flat = flatten(row)
            return _csv_line([flat.get(column, "") for column in self.columns])
        return json_line(row)

    def _read(self) -> list[Row]:
        """The rows of the file's complete lines."""
        written = self.path.read_bytes()
        whole = complete_lines(written, quoted=self.is_csv)
        try:
            text = whole.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.path} is not UTF-8 text, so this command did not write it") from error
        if not text:  # at most the beginning of a first line
            rest = written.decode(errors="replace")
            first = _csv_line(self.columns) if self.is_csv else "{"
            if not (first.startswith(rest) or (not self.is_csv and rest.startswith(first))):
                raise self._of_another_kind([rest[:40]])
            return []
        if self.is_csv:
            reader = csv.DictReader(io.StringIO(text, newline=""))
            try:
                rows = list(reader)
            except csv.Error as error:
                raise ValueError(f"{self.path}, line {reader.line_num} is not CSV: {error}") from error
            if list(reader.fieldnames or []) != [escaped(column) for column in self.columns]:
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

    def _check_settings(self) -> None:
        anew = "give another --output, or --overwrite to start anew"
        if not self.about.exists():
            raise ValueError(f"{self.path} holds rows, but {self.about.name} with their settings is missing: {anew}")
        before = read_json(self.about)
        if not isinstance(before, dict):
            raise ValueError(f"{self.about} is not a JSON object of settings: {anew}")
        if differences := describe_differences(before, self._settings()):
            raise ValueError(f"{self.path} was made with other settings: {'; '.join(differences)}; {anew}")

    def _of_another_kind(self, found: Any) -> ValueError:
        return ValueError(
            f"{self.path} holds rows of {','.join(map(str, found))}, and this run would add rows of "
            f"{','.join(self.columns)}: give another --output, or --overwrite to start anew"
        )


def refuse_inputs(output: Path | str, inputs: Iterable[Path | str]) -> None:
    """
    Raises:
        ValueError: the file of results is one of the files that are read.
    """
    try:
        own = os.stat(output)
    except OSError:  # there is none yet
        return
    for one in inputs:
        with suppress(OSError):
            if os.path.samestat(own, os.stat(one)):
                raise ValueError(f"--output {output} is {one}, which is read; give another --output")


def complete_lines(data: bytes, quoted: bool) -> bytes:
    """The data up to the end of its last complete line. In CSV (`quoted`) line breaks may be quoted."""
    end = data.rfind(b"\n") + 1
    # An odd number of quotes before a line break: it is inside a quoted value.
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
    csv.writer(line).writerow(values)  # with another line end than its own, \r\n, it does not quote a \r
    return escaped(line.getvalue().removesuffix("\r\n") + "\n")


def print_counts(output: str, counts: Counter[str]) -> int:
    """Prints the counts of a conversion. Returns the exit status: 1 if it wrote nothing."""
    print(output)
    for name, count in sorted(counts.items()):
        if count:
            print(f"{count:>12,}  {name}")
    return 0 if counts["tars written"] or counts["tars already there"] else 1
