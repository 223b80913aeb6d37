"""Parquet files -> a record for each row."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

from flamboyance.data.documents import Record
from flamboyance.data.tar import MEMBER_LIMIT, Damage
from flamboyance.files import TEXT_NAMES

ROWS = 16  # read at a time: rows may hold images
TEXTS = {*TEXT_NAMES, "question", "answer", "answers", "texts", "text_list"}  # some writers store these as bytes


def is_parquet(name: str) -> bool:
    """Whether a file is Parquet by its name."""
    return name.lower().endswith(".parquet")


def need_pyarrow(name: str) -> None:
    """
    Raises:
        ImportError: pyarrow, which reads Parquet, is not installed.
    """
    try:
        import pyarrow  # noqa: F401  an optional dependency
    except ImportError as error:
        raise ImportError(
            f"'{name}' is read by pyarrow: pip install 'flamboyance[datasets]', or pip install pyarrow"
        ) from error


def parquet_records(file: Any, name: str) -> Iterator[Record | Damage]:
    """The rows of a Parquet file: their values as JSON, and the bytes among them as files.

    Bytes in a column of TEXTS are a text in UTF-8. Those in another one are the record's file of that name, those in a
    list are numbered: `image`, `images.0`, `images.1`; the JSON has these names in their places. Images of Hugging
    Face's `datasets`, {"bytes": …, "path": …}, are read as their bytes, or else as their path.

    A number in a column of a ClassLabel of `datasets` is the name of its class. What Python cannot hold, such as a date
    after the year 9999, is null.

    Args:
        file: open, to read at any place.
    """
    import pyarrow
    from pyarrow.parquet import ParquetFile

    # Pyarrow also raises OSError for what is damaged; that of a failing transfer would look the same.
    damaged = (pyarrow.ArrowException, *(() if "://" in name else (OSError,)))
    folder = os.path.dirname(name) or "."
    try:
        table = ParquetFile(file)
        groups = table.num_row_groups
        classes = _classes(table.schema_arrow.metadata or {})
    except damaged:
        yield Damage("damaged parquet")
        return
    number = 0
    for group in range(groups):
        first, number = number, number + table.metadata.row_group(group).num_rows
        try:
            for batch in table.iter_batches(ROWS, row_groups=[group], use_threads=False):
                names = batch.schema.names
                columns = (_values(column, classes.get(one)) for one, column in zip(names, batch.columns, strict=True))
                for row in zip(*columns, strict=True):
                    yield _record(dict(zip(names, row, strict=True)), f"{name}:{first}", folder)
                    first += 1
        except damaged:
            yield Damage("damaged parquet")
    if not number:
        yield Damage("empty shard")


def _classes(metadata: dict[bytes, bytes]) -> dict[str, list[str]]:
    """The names of the classes of each column of numbers that stand for them, as `datasets` notes them in a file."""
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"].items()
        return {
            column: feature["names"]
            for column, feature in features
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and isinstance(feature["names"], list)
        }
    except (ValueError, LookupError, TypeError, AttributeError):  # none, or those of another writer
        return {}


def _values(column: Any, classes: list[str] | None) -> list[Any]:
    try:
        values = column.to_pylist()
    except (ArithmeticError, LookupError, ValueError):
        values = [_held(one) for one in column]
    if classes is None:
        return values
    return [classes[one] if isinstance(one, int) and 0 <= one < len(classes) else None for one in values]


def _held(one: Any) -> Any:
    """A value of pyarrow's as Python has it; None for one that it cannot hold."""
    try:
        return one.as_py()
    except (ArithmeticError, LookupError, ValueError):
        return None


def _record(row: dict[str, Any], key: str, folder: str) -> Record | Damage:
    files: dict[str, bytes] = {}
    try:
        values = {
            column: _text(value) if column.lower() in TEXTS else _value(value, column, files)
            for column, value in row.items()
        }
    except UnicodeDecodeError:
        return Damage("text is not UTF-8")
    if sum(map(len, files.values())) > MEMBER_LIMIT:
        return Damage(f"record larger than {MEMBER_LIMIT >> 20} MB")
    return Record(key, files | {"json": json.dumps(values, default=_plain).encode()}, folder)


def _text(value: Any) -> Any:
    """A text, or a list of them. Raises UnicodeDecodeError."""
    if isinstance(value, list):
        return [_text(one) for one in value]
    return value.decode() if isinstance(value, bytes) else value


def _plain(value: Any) -> str:
    """What JSON has no form for, such as a date; or bytes inside a structure, such as the text of a message."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _value(value: Any, place: str, files: dict[str, bytes]) -> Any:
    """A value as JSON has it; its bytes are added to `files`."""
    if isinstance(value, bytes):
        files[place.lower()] = value
        return place
    if isinstance(value, list):
        return [_value(one, f"{place}.{number}", files) for number, one in enumerate(value)]
    if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):
        return _value(value["bytes"], place, files)
    if isinstance(value, dict) and value.keys() == {"bytes", "path"}:
        return value["path"]
    return value
