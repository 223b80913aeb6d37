"""A user's own data as a task: a CSV, TSV or JSONL file with these columns, or a folder of images.

    image,label             a choice among the labels of the file, by accuracy
    image,question,label    the same, with a question for each image
    image,text              captions, by CIDEr; a line of JSONL may have a list of `captions`
    image,question,answer   answers, by exact match; a line of JSONL may have a list of `answers`. If all lines have ten
                            of them, they are measured by VQA accuracy
    image,answer            the same without a question

A line of JSONL may have several `images` instead of one `image`; then all have equally many.

A line of JSONL may have its own `demonstrations`, a list of objects with the columns of a line; then all lines have
them. The first n are shown as n demonstrations, in this order.

The columns `answer_type` and `question_type` may name groups of questions, whose scores are reported separately.

In a folder each image has its text beside it (`cat.jpg`, `cat.txt`), or the images of a label are in a folder of that
name (`cat/1.jpg`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

from flamboyance import templates
from flamboyance.evaluation import metrics
from flamboyance.evaluation.task import Choose, Example, Task
from flamboyance.evaluation.tasks import vqa
from flamboyance.evaluation.tasks.official_files import Record, check, value
from flamboyance.evaluation.tasks.protocols import check_protocol, separator, shown_answer
from flamboyance.images.listing import Row, image_rows
from flamboyance.templates import IMAGE_TOKEN, Template

LONGEST_ANSWER = 20  # tokens
COLUMNS = "image,label or image,text or image,answer or image,question,answer"


def load(
    path: Path | str,
    support: Path | str | None = None,
    template: Template | None = None,
    protocol: str = "papers",
    outside: bool = False,
) -> Task:
    """The task of a file or folder, named after it.

    Args:
        path: the queries.
        support: the examples to choose demonstrations from; default: the queries' own demonstrations, or the queries,
            of which a query is never shown its own image.
        template: default: by the columns. The last field is the answer, the others are columns of the data.
        outside: images may be outside of the file's folder: absolute paths, `..`, links that lead out of it.

    Raises:
        ValueError: a line of a file is wrong. The message names the file and the line.
        FileNotFoundError: the file or an image does not exist.
    """
    check_protocol(protocol)
    path = Path(path)
    name = Path(os.path.abspath(path)).stem
    shown = None if support is None else (Path(support), _read(Path(support), outside))
    return from_rows(name, (path, _read(path, outside)), shown, template, protocol)


def from_rows(
    name: str,
    asked: tuple[Path, list[Row]],
    support: tuple[Path, list[Row]] | None,
    template: Template | None,
    protocol: str,
) -> Task:
    """As `load`, of rows that are read already, each list with the place that it comes from, for messages."""
    path, rows = asked
    kind = _kind(rows[0], path)
    own = [row for query in rows for row in query.demonstrations]
    if own:
        _check_own(rows, path, support is not None)
        support = (path, own)
    given = template
    template = _with_images(given or _template(kind, rows[0]), [*rows, *(support[1] if support else [])])
    queries = _examples(rows, kind, template, protocol, path, "queries")
    shown = queries
    if support is not None:
        place, shown_rows = support
        if any(_kind(row, place) != kind for row in (shown_rows if own else shown_rows[:1])):
            raise ValueError(f"{place} has no column {kind!r}, and {path} has one; the two files must be of one kind")
        shown = _examples(shown_rows, kind, template, protocol, place, "support")
    if given is None and kind != "label":
        template = template.keeping([text for one in (*shown, *queries) for text in (one.answer, *one.references)])
    task = _task(name, path, kind, template, shown, queries, protocol)
    task = replace(task, folder=path if path.is_dir() else path.parent)
    return replace(task, choose=_own(task, rows)) if own else task


def _task(
    name: str,
    path: Path,
    kind: str,
    template: Template,
    shown: Sequence[Example],
    queries: Sequence[Example],
    protocol: str,
) -> Task:
    if kind == "label":
        return _classification(name, path, template, shown, queries, protocol)
    ten = all(len(one.references) == 10 for one in queries)
    exact = kind == "answer" and not ten
    commas = any(", " in text for one in (*shown, *queries) for text in (one.answer, *one.references))
    return Task(
        name,
        name,
        template,
        shown,
        queries,
        metrics.CIDER if kind == "text" else metrics.EXACT_MATCH if exact else vqa.accuracy(protocol),
        max_new_tokens=LONGEST_ANSWER if kind == "text" or exact else vqa.MAX_NEW_TOKENS,
        separator=separator(protocol),
        post_process=str.strip if kind == "text" or exact or commas else vqa.first_part,
    )


def _classification(
    name: str, path: Path, template: Template, support: Sequence[Example], queries: Sequence[Example], protocol: str
) -> Task:
    labels = sorted({one.answer for one in (*support, *queries)})
    if len(labels) < 2:
        raise ValueError(f"{path} has only the label {labels[0]!r}; expected two or more to choose from")
    return Task(
        name,
        name,
        template,
        support,
        queries,
        metrics.TOP_1,
        labels=tuple(labels),
        separator=separator(protocol) if len(template.fields) > 1 else "",
    )


def _check_own(rows: Sequence[Row], path: Path, support: bool) -> None:
    """Checks the queries' own demonstrations.

    Raises:
        ValueError: a query has none, or a support set is given beside them.
    """
    if support:
        raise ValueError(f"the lines of {path} have their own demonstrations: leave out the support set (--support)")
    without = next((row.place for row in rows if not row.demonstrations), None)
    if without:
        raise ValueError(f"{without} has no demonstrations, and other lines have; give all lines their own, or none")


def _own(task: Task, rows: Sequence[Row]) -> Choose:
    """A function that chooses a query's own demonstrations, the first of them for few shots."""
    ends = [*accumulate(len(row.demonstrations) for row in rows)]
    places = {
        query.id: range(end - len(row.demonstrations), end)
        for query, row, end in zip(task.queries, rows, ends, strict=True)
    }

    def choose(query: Example, shots: int, seed: int) -> tuple[int, ...]:
        mine = places[query.id]
        if shots > len(mine):
            raise ValueError(
                f"{task.name}, query {query.id!r} has {len(mine)} demonstrations, and {shots} shots were requested"
            )
        return tuple(mine[:shots])

    return choose


def _read(path: Path, outside: bool) -> list[Row]:
    rows = image_rows(path, outside, labels=True, several=True)
    if not rows:
        raise ValueError(f"{path} is empty; expected {COLUMNS}")
    return rows


def _kind(row: Row, path: Path) -> str:
    """The kind of the data, by the first row: "label", "answer" or "text". Other columns are ignored."""
    keys = row.record.keys()
    if "label" in keys:
        return "label"
    if "question" in keys and keys & {"answer", "answers"}:
        return "answer"
    if keys & {"text", "captions"}:
        return "text"
    if keys & {"answer", "answers"}:
        return "answer"
    raise ValueError(f"{path} has the columns {','.join(map(str, keys))}; expected {COLUMNS}")


def _template(kind: str, row: Row) -> Template:
    if kind == "text":
        return templates.caption
    return templates.vqa if "question" in row.record else templates.classification


def _with_images(template: Template, rows: Sequence[Row]) -> Template:
    """The template with an `<image>` for each image of a row, if there are several."""
    numbers = {1 + len(row.further): row.place for row in rows}
    if len(numbers) > 1:
        found = ", ".join(f"{number} ({place})" for number, place in sorted(numbers.items()))
        raise ValueError(f"rows have different numbers of images: {found}; expected the same in all")
    (number,) = numbers
    if number == 1 or template.pattern.count(IMAGE_TOKEN) == number:
        return template
    return replace(template, pattern=template.pattern.replace(IMAGE_TOKEN, IMAGE_TOKEN * number, 1))


def _examples(
    rows: Sequence[Row], kind: str, template: Template, protocol: str, path: Path, split: str
) -> list[Example]:
    examples = []
    for number, row in enumerate(rows, 1):
        asked = tuple(_filled(row.record, name, row.place) for name in template.fields[:-1])
        references = _references(row, kind)
        answer = str(row.record["answer"]).strip() if row.record.get("answer") and kind == "answer" else None
        shown = references[0] if kind == "text" else answer or shown_answer(references, protocol)
        examples.append(
            Example(f"{number}", row.image, shown, asked, references, row.further, vqa.read_kinds(row.record))
        )
    check(examples, template, path, split, solved=True)
    return examples


def _references(row: Row, kind: str) -> tuple[str, ...]:
    """The correct answers of a row: its label, answers or captions."""
    several = {"answer": "answers", "text": "captions"}.get(kind, "")
    if several in row.record:
        found = value(row.record, several, list, row.place)
        if not found or not all(isinstance(one, str) and one.strip() for one in found):
            raise ValueError(f"{row.place}: {several} is {found!r}; expected a list of texts")
        return tuple(one.strip() for one in found)
    return (_filled(row.record, kind, row.place),)


def _filled(record: Record, name: str, place: str) -> str:
    """The text of a column; in JSONL it may be a number."""
    text = str(value(record, name, (str, int), place)).strip()
    if not text:
        raise ValueError(f"{place}: {name} is empty; expected a text")
    return text
