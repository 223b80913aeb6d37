"""A user's own data: a CSV or JSONL file, or a folder of images, becomes a task.

    image,label             a choice among the labels that occur; share that is right
    image,question,label    the same, and each image has its question
    image,text              captions, by CIDEr; a line of JSONL may have a list of `captions`
    image,question,answer   answers, by exact match; a line of JSONL may have a list of `answers`, which is measured by
                            VQA accuracy where all have ten

In a folder each image has its text beside it (`cat.jpg`, `cat.txt`), or the images of a label are in a folder of that
name (`cat/1.jpg`).
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from flamboyance import templates
from flamboyance.evaluation import metrics
from flamboyance.evaluation.task import Example, Task
from flamboyance.evaluation.tasks import vqa
from flamboyance.evaluation.tasks.protocols import check_protocol, separator, shown_answer
from flamboyance.evaluation.tasks.reading import IMAGE_SUFFIXES, Record, check, read_json_lines, value
from flamboyance.templates import Template

LONGEST_ANSWER = 20  # tokens
COLUMNS = "image,label or image,text or image,question,answer"


@dataclass(frozen=True)
class _Row:
    place: str
    image: Path
    record: Record


def load(
    path: Path | str,
    support: Path | str | None = None,
    template: Template | None = None,
    protocol: str = "papers",
    outside: bool = False,
) -> Task:
    """The task of a file or folder, named after it.

    Args:
        path: what is asked.
        support: what demonstrations are taken from; without it the queries themselves: those who choose demonstrations
            never show a query's own image.
        template: another way to write it; its last field is the answer, the others are columns of the data.
        outside: images may stand outside of the file's folder: absolute paths, `..`, links that lead out.

    Raises:
        ValueError: there is something wrong in a file; names it and the line.
        FileNotFoundError: the file, or an image, does not exist.
    """
    check_protocol(protocol)
    path = Path(path)
    name = Path(os.path.abspath(path)).stem
    rows = _read(path, outside)
    kind = _kind(rows[0], path)
    template = template or _template(kind, rows[0])
    queries = _examples(rows, kind, template, protocol, path, "queries")
    shown = queries
    if support is not None:
        shown_rows = _read(Path(support), outside)
        if _kind(shown_rows[0], Path(support)) != kind:
            raise ValueError(f"{support} has no {kind!r} as {path} has; the two are one task")
        shown = _examples(shown_rows, kind, template, protocol, Path(support), "support")
    if kind == "label":
        return _classification(name, path, template, shown, queries, protocol)
    ten = all(len(one.references) == 10 for one in queries)
    exact = kind == "answer" and not ten
    return Task(
        name,
        name,
        template,
        shown,
        queries,
        metrics.CIDER if kind == "text" else metrics.EXACT_MATCH if exact else vqa.accuracy(protocol),
        max_new_tokens=LONGEST_ANSWER if kind == "text" or exact else vqa.MAX_NEW_TOKENS,
        separator=separator(protocol),
        post_process=str.strip if kind == "text" or exact else vqa.first_part,
    )


def _classification(
    name: str, path: Path, template: Template, support: Sequence[Example], queries: Sequence[Example], protocol: str
) -> Task:
    labels = sorted({one.answer for one in (*support, *queries)})
    if len(labels) < 2:
        raise ValueError(f"{path} has the label {labels[0]!r} alone; expected two or more to choose from")
    asked = template.fields[:-1]
    return Task(
        name,
        name,
        template,
        support,
        queries,
        metrics.TOP_1,
        labels=tuple(labels),
        separator=separator(protocol) if asked else "",
    )


# ---- rows -----------------------------------------------------------------------------------------------------------


def _read(path: Path, outside: bool) -> list[_Row]:
    if not path.exists():
        raise FileNotFoundError(f"no such file or folder: {path}")
    suffix = path.suffix.lower()
    if path.is_dir():
        rows = list(_read_folder(path))
    elif suffix == ".csv":
        rows = [_Row(place, _image(path, record, place, outside), record) for place, record in _read_csv(path)]
    elif suffix in (".jsonl", ".ndjson"):
        rows = [_Row(place, _image(path, record, place, outside), record) for place, record in read_json_lines(path)]
    else:
        raise ValueError(f"{path}: expected a .csv or .jsonl file with {COLUMNS}, or a folder of images")
    if not rows:
        raise ValueError(f"{path} is empty; expected {COLUMNS}")
    return rows


def _read_csv(path: Path) -> Iterator[tuple[str, Record]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, strict=True)
        try:
            columns = [name.strip() for name in next(reader, [])]
            if len(set(columns)) < len(columns):
                raise ValueError(f"{path}, line 1 names a column twice: {','.join(columns)}")
            for values in reader:
                if not values:
                    continue
                place = f"{path}, line {reader.line_num}"
                if len(values) != len(columns):
                    raise ValueError(
                        f"{place} has {len(values)} values for the {len(columns)} columns; a value with a "
                        "comma in it stands in double quotes"
                    )
                yield place, dict(zip(columns, values, strict=True))
        except csv.Error as error:
            raise ValueError(f"{path}, line {reader.line_num} is not CSV: {error}") from error
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 text after line {reader.line_num}; save it as UTF-8") from error


def _image(path: Path, record: Record, place: str, outside: bool) -> Path:
    name = _filled(record, "image", place)
    image = Path(os.path.normpath(path.parent / name))
    if not image.is_file():
        raise FileNotFoundError(f"{place} names the image {image}, which does not exist")
    if not outside and not image.resolve().is_relative_to(path.parent.resolve()):
        raise ValueError(
            f"{place}: the image {name} is outside of the folder of {path.name}; allow that with outside (--outside)"
        )
    return image


def _read_folder(folder: Path) -> Iterator[_Row]:
    images = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()
    )
    if not images:
        raise ValueError(f"the folder {folder} holds no image ({' '.join(sorted(IMAGE_SUFFIXES))})")
    texts = any(image.with_suffix(".txt").is_file() for image in images)
    for image in images:
        text = image.with_suffix(".txt")
        if texts:
            if not text.is_file():
                raise FileNotFoundError(f"{image} has no text beside it, and others have: write it to {text}")
            try:
                yield _Row(f"{text}", image, {"text": text.read_text(encoding="utf-8-sig")})
            except UnicodeDecodeError as error:
                raise ValueError(f"{text} is not UTF-8 text ({error}); save it as UTF-8") from None
        elif image.parent == folder:
            raise ValueError(f"{image} has no text beside it ({text.name}), and is in no folder named after its label")
        else:
            yield _Row(f"{image}", image, {"label": image.relative_to(folder).parts[0]})


# ---- examples -------------------------------------------------------------------------------------------------------


def _kind(row: _Row, path: Path) -> str:
    """What the data say of an image: "label", "answer" or "text"; other columns are left alone."""
    keys = row.record.keys()
    if "label" in keys:
        return "label"
    if "question" in keys and keys & {"answer", "answers"}:
        return "answer"
    if keys & {"text", "captions"}:
        return "text"
    raise ValueError(f"{path} has the columns {','.join(map(str, keys))}; expected {COLUMNS}")


def _template(kind: str, row: _Row) -> Template:
    if kind == "text":
        return templates.caption
    return templates.vqa if "question" in row.record else templates.classification


def _examples(
    rows: Sequence[_Row], kind: str, template: Template, protocol: str, path: Path, split: str
) -> list[Example]:
    made = []
    for number, row in enumerate(rows, 1):
        asked = tuple(_filled(row.record, name, row.place) for name in template.fields[:-1])
        said = _said(row, kind)
        answer = str(row.record["answer"]).strip() if row.record.get("answer") and kind == "answer" else None
        shown = said[0] if kind == "text" else answer or shown_answer(said, protocol)
        made.append(Example(f"{number}", row.image, shown, asked, said))
    check(made, template, path, split, solved=True)
    return made


def _said(row: _Row, kind: str) -> tuple[str, ...]:
    """What is right for a row: its label, its answers, its captions."""
    several = {"answer": "answers", "text": "captions"}.get(kind, "")
    if several in row.record:
        found = value(row.record, several, list, row.place)
        if not found or not all(isinstance(one, str) and one.strip() for one in found):
            raise ValueError(f"{row.place}: {several} is {found!r}; expected a list of texts")
        return tuple(one.strip() for one in found)
    return (_filled(row.record, kind, row.place),)


def _filled(record: Record, name: str, place: str) -> str:
    """A column's text; numbers of JSONL as text."""
    found = value(record, name, (str, int), place)
    text = str(found).strip()
    if not text:
        raise ValueError(f"{place}: {name} is empty; expected some text")
    return text
