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

import os
from collections.abc import Sequence
from pathlib import Path

from flamboyance import templates
from flamboyance.evaluation import metrics
from flamboyance.evaluation.task import Example, Task
from flamboyance.evaluation.tasks import vqa
from flamboyance.evaluation.tasks.protocols import check_protocol, separator, shown_answer
from flamboyance.evaluation.tasks.reading import Record, check, value
from flamboyance.images.listing import Row, image_rows
from flamboyance.templates import Template

LONGEST_ANSWER = 20  # tokens
COLUMNS = "image,label or image,text or image,question,answer"


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


def _read(path: Path, outside: bool) -> list[Row]:
    rows = image_rows(path, outside, labels=True)
    if not rows:
        raise ValueError(f"{path} is empty; expected {COLUMNS}")
    return rows


# ---- examples -------------------------------------------------------------------------------------------------------


def _kind(row: Row, path: Path) -> str:
    """What the data say of an image: "label", "answer" or "text"; other columns are left alone."""
    keys = row.record.keys()
    if "label" in keys:
        return "label"
    if "question" in keys and keys & {"answer", "answers"}:
        return "answer"
    if keys & {"text", "captions"}:
        return "text"
    raise ValueError(f"{path} has the columns {','.join(map(str, keys))}; expected {COLUMNS}")


def _template(kind: str, row: Row) -> Template:
    if kind == "text":
        return templates.caption
    return templates.vqa if "question" in row.record else templates.classification


def _examples(
    rows: Sequence[Row], kind: str, template: Template, protocol: str, path: Path, split: str
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


def _said(row: Row, kind: str) -> tuple[str, ...]:
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
