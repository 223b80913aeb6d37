"""`index.html`: every query of an evaluation with its demonstrations, answer and references; it opens offline.

Thousands of predictions stay small because each task's texts are stored once and referred to by number (a prompt is a
list of such numbers), and each cell is gzipped until the page shows it. Images are links to the original files. The
page has small copies of the first ones, but only from the results directory, from the data folders of the user's own
evaluations, and from folders that the user names: a results directory from somebody else may name any file.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import math
import os
import re
import statistics
from collections.abc import Callable, Iterator, Sequence
from html import escape as e
from importlib.metadata import version
from importlib.resources import files
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any
from urllib.parse import quote

from flamboyance.evaluation import baselines, changes
from flamboyance.evaluation.data_folders import inside, trusted
from flamboyance.evaluation.results import Cell, Row
from flamboyance.files import replacing
from flamboyance.images.loading import ImageError, load_image
from flamboyance.reports.evaluation_run import CellResult, EvaluationRun, finite
from flamboyance.reports.tags import tags
from flamboyance.videos import find_video

PAGE = "index.html"
STYLE, SCRIPTS = "browse.css", ("data.js", "cards.js", "browse.js")
ITEMS = 50_000  # predictions in a page
THUMBNAILS = 300
SIDE = 256  # pixels, of a small copy
LABELS = 10  # of which the probabilities are shown
# A prompt's pieces recur: its demonstrations' texts.
_PIECES = re.compile(r"(?<=<\|endofchunk\|>)|(?<=\n)")


def write_page(
    runs: Sequence[EvaluationRun],
    folder: Path,
    links: Sequence[tuple[str, str]] = (),
    figures: Sequence[tuple[str, str]] = (),
    note: str = "",
    items: int = ITEMS,
    thumbnails: int = THUMBNAILS,
    images: Sequence[Path] = (),
    say: Callable[[str], None] = lambda _: None,
) -> Path:
    """Writes `index.html`, which also works from a file system.

    Args:
        links: (file beside the page, text) to show at its top.
        figures: (file beside the page, title) to show below the links.
        note: a paragraph above all.
        items: the most predictions in the page; of more, the first of each cell.
        thumbnails: number of images copied into the page, for readers who do not have the originals.
        images: further folders from which images may be copied.
        say: called with a sentence if images were left out because they are in other folders.

    Raises:
        ValueError: a line of predictions is damaged; names file and line.
        OSError: predictions are gone, or the page cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    cells = [
        (number, run, done) for number, run in enumerate(runs) for done in (*run.cells, *run.changed, *run.unfinished)
    ]
    share = _share([done.count() for _, _, done in cells], items)
    tasks: dict[str, _Task] = {}
    allowed = [[run.folder.resolve(), *map(Path, trusted(run.about))] for run in runs]
    blobs: list[tuple[str, str]] = []
    about_cells = []
    for number, run, done in cells:
        name = done.cell.task
        task = tasks.setdefault(name, _Task(run, name, folder))
        task.run, task.allowed = run, allowed[number]
        rows, seen = [], _Seen()
        for row in done.rows():
            seen.add(row)
            if len(rows) < share:
                rows.append(task.row(row))
        blobs.append((f"c{len(about_cells)}", _packed(rows)))
        about_cells.append(_about_cell(number, list(tasks).index(name), done, seen, len(rows)))
    _add_thumbnails(list(tasks.values()), thumbnails, [Path(one).resolve() for one in images], say)
    blobs += [(f"t{number}", _packed(task.tables())) for number, task in enumerate(tasks.values())]
    meta = {
        "runs": [{"name": run.name, "folder": str(run.folder)} for run in runs],
        "tasks": [{"name": name, "title": task.title, "metric": task.metric} for name, task in tasks.items()],
        "cells": about_cells,
    }
    with replacing(folder / PAGE) as part, open(part, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.writelines(_document(runs, links, figures, note, meta, blobs))
    return folder / PAGE


class _Task:
    """A task's texts, images, demonstrations and queries, each stored once and referred to by its index.

    Attributes:
        run, allowed: the run whose rows are being added, and the folders from which its images may be copied.
        folders: by image, the folders from which it may be copied: those of the runs that name it.
    """

    def __init__(self, run: EvaluationRun, name: str, folder: Path) -> None:
        self.title, self.metric, self.labels = run.title(name), run.metric(name), run.labels(name)
        self.run, self.folder = run, folder
        self.allowed: list[Path] = []
        self.folders: dict[str, list[Path]] = {}
        self.texts: dict[str, int] = {}
        self.images: dict[str, list[Any]] = {}
        self.places: dict[str, int] = {}
        self.shown: dict[Any, list[Any]] = {}
        self.asked: dict[Any, list[Any]] = {}

    def row(self, row: Row) -> list[Any]:
        """A prediction as the page's script reads it: [query, prompt, demonstrations, generated, answer, value,
        probabilities, dropped, tags]."""
        query = self._example(self.asked, row, tuple(map(str, row.get("references") or ())))
        shown = [
            self._example(self.shown, one, str(one.get("answer") or "")) for one in row.get("demonstrations") or ()
        ]
        prompt = [self._text(piece) for piece in _PIECES.split(str(row.get("prompt") or "")) if piece]
        said = [None if row.get(key) is None else self._text(row[key]) for key in ("generated", "answer")]
        value = finite(row.get("score"))
        chances = self._chances(row)
        return [
            query,
            prompt,
            shown,
            *said,
            None if value is None else round(value, 2),
            chances,
            row.get("dropped") or 0,
            [self._text(tag) for tag in tags(row, self.labels)],
        ]

    def tables(self) -> dict[str, Any]:
        """The tables that rows refer to."""
        return {
            "texts": list(self.texts),
            "images": list(self.images.values()),
            "shown": [one[1:] for one in self.shown.values()],
            "asked": [one[1:] for one in self.asked.values()],
        }

    def paths(self) -> Iterator[str]:
        """Images, the queries' before the demonstrations'."""
        images = list(self.images)
        examples = chain(self.asked.values(), self.shown.values())
        yield from dict.fromkeys(images[place] for _, _, places, *_ in examples for place in places)

    def _example(self, table: dict[Any, list[Any]], one: Row, last: str | tuple[str, ...]) -> int:
        """The example's index in the table, whose rows are [index, id, images, fields, right answers]."""
        asked, image = tuple(map(str, one.get("asked") or ())), one.get("image")
        images = tuple(map(str, one.get("images") or ([] if image is None else [image])))
        key = (str(one.get("id")), images, asked, last)
        if key not in table:
            right = self._text(last) if isinstance(last, str) else [self._text(each) for each in last]
            places = [self._image(path) for path in images]
            table[key] = [len(table), self._text(key[0]), places, [self._text(each) for each in asked], right]
        return table[key][0]

    def _text(self, text: Any) -> int:
        return self.texts.setdefault("" if text is None else str(text), len(self.texts))

    def _image(self, path: str) -> int:
        file = str(_found(path, self.run))
        if file not in self.images:
            self.places[file] = len(self.images)
            self.images[file] = [_link(Path(file), self.folder), os.path.basename(path), 0]
            self.folders[file] = []
        self.folders[file] += [one for one in self.allowed if one not in self.folders[file]]
        return self.places[file]

    def _chances(self, row: Row) -> list[list[float]] | None:
        """[[label, probability]] of the likeliest and the right labels: the softmax over all labels. With many
        labels, a row has the best scores, and the log-sum-exp of all."""
        scores = {label: finite(score) for label, score in (row.get("scores") or {}).items()}
        known = {label: score for label, score in scores.items() if score is not None}
        if not known:
            return None
        most = max(known.values())
        total = finite(row.get("scores_total"))
        whole = sum(math.exp(score - most) for score in known.values()) if total is None else math.exp(total - most)
        order = sorted(known, key=lambda label: -known[label])
        # Few labels keep their order, so that bars can be compared from card to card.
        shown = list(known) if len(known) <= LABELS else order[:LABELS]
        shown += [label for label in row.get("references") or [] if label in known and label not in shown]
        return [[self._text(label), round(math.exp(known[label] - most) / whole, 4)] for label in shown]


def _share(counts: Sequence[int], items: int) -> int:
    """The most predictions per cell that fit; small cells leave room for large ones."""
    left = items
    for place, count in enumerate(sorted(counts)):
        cells = len(counts) - place
        if count * cells > left:
            return left // cells
        left -= count
    return items


class _Seen:
    """Statistics of a cell's predictions."""

    def __init__(self) -> None:
        self.queries = 0
        self.values: list[float] = []
        self.scored = self.referred = False

    def add(self, row: Row) -> None:
        self.queries += 1
        value = finite(row.get("score"))
        self.values += [] if value is None else [value]
        self.scored |= bool(row.get("scores"))
        self.referred |= bool(row.get("references"))

    def kind(self, metric: str) -> str:
        """How to show a value: "share" of 100, such as VQA accuracy; "score" without an upper limit, such as CIDEr;
        "label", right or wrong, if there are no values; "none" without references."""
        if self.values:
            return "score" if max(self.values) > 100 or "cider" in metric.lower() else "share"
        return "label" if self.scored and self.referred else "none"


def _about_cell(run: int, task: int, done: CellResult, seen: _Seen, there: int) -> dict[str, Any]:
    """What the page shows of a cell before it unpacks it."""
    cell = done.cell
    return {
        "run": run,
        "task": task,
        "mode": _mode(cell),
        "shots": cell.shots,
        "seed": cell.seed,
        "value": done.value,
        "interval": done.interval,
        "queries": seen.queries,
        "there": there,
        "finished": done.score is not None,
        "kind": seen.kind(str((done.score or {}).get("metric"))),
        "middle": statistics.median(seen.values) if seen.values else None,
    }


def _mode(cell: Cell) -> str:
    """How the page names the way of choosing demonstrations, with what is changed in them."""
    if cell.change.startswith(changes.ORDER):
        return f"{cell.mode}, other order {cell.change.removeprefix(changes.ORDER)}"
    if cell.change == baselines.BASELINE:
        return f"{baselines.TITLES.get(cell.mode, cell.mode)}, without a model"
    return f"{cell.mode}, {changes.TITLES.get(cell.change, cell.change)}" if cell.change else cell.mode


def _found(path: str, run: EvaluationRun) -> Path:
    """An image's file. A relative path is relative to the run, or else to the current directory."""
    there = run.folder / path
    return there if not os.path.isabs(path) and _is_there(there) else Path(path)


def _link(path: Path, folder: Path) -> str:
    """A URL relative to the page; "" if there is none: a name with a NUL, another drive or machine."""
    try:
        relative = os.path.relpath(path, folder)
    except ValueError:
        return ""
    return quote(os.fsencode(relative.replace(os.sep, "/")))


def _add_thumbnails(tasks: Sequence[_Task], most: int, images: Sequence[Path], say: Callable[[str], None]) -> None:
    """Puts small copies of the first images into the tables, the same number for every task."""
    turns = zip_longest(*(task.paths() for task in tasks))
    queue = [(task, path) for turn in turns for task, path in zip(tasks, turn, strict=True) if path is not None]
    outside: list[Path] = []
    for task, path in queue[:most]:
        found = Path(path)
        file = inside(found, [*task.folders[path], *images])
        if file is None:
            outside += [found] if _is_there(found) else []
            continue
        try:
            video = find_video(file)
            image = load_image(file, frame=0) if video is None else video.middle()
        except (ImageError, ImportError):
            continue  # the card says that the image is missing
        image = image.copy()
        image.thumbnail((SIDE, SIDE))
        data = io.BytesIO()
        image.save(data, "JPEG", quality=72)
        task.images[path][2] = base64.b64encode(data.getvalue()).decode()
    if outside:
        say(
            f"{len(outside)} images are linked and not copied into the page, such as {outside[0]}: they are outside of "
            f"the results directory and of the data folders of your own evaluations. If you trust the run: "
            f"--images {outside[0].parent}"
        )


def _is_there(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _packed(value: Any) -> str:
    # Deterministic, so that the same run gives the same page.
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode("utf-8", "surrogatepass"), 6, mtime=0)).decode()


def _document(
    runs: Sequence[EvaluationRun],
    links: Sequence[tuple[str, str]],
    figures: Sequence[tuple[str, str]],
    note: str,
    meta: dict[str, Any],
    blobs: Sequence[tuple[str, str]],
) -> Iterator[str]:
    page = files("flamboyance.reports").joinpath("page_files")
    css, *scripts = (page.joinpath(name).read_text(encoding="utf-8") for name in (STYLE, *SCRIPTS))
    names = " and ".join(run.name for run in runs)
    paragraph = f"<p>{e(note)}</p>\n" if note else ""
    pictures = "".join(
        f'<p><img class="figure" src="{e(quote(file))}" alt="{e(title)}"></p>\n' for file, title in figures
    )
    if pictures:
        pictures = f"<details><summary>Figures</summary>\n{pictures}</details>\n"
    anchors = "".join(f'<a href="{e(quote(file))}">{e(words)}</a>' for file, words in links)
    yield f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src 'self' file: data:; \
style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>{e(names)}: predictions</title>
<style>
{css}</style>
</head>
<body>
<header>
<h1><em>{e(names)}</em>, query by query</h1>
<nav>{anchors}</nav>
{paragraph}{pictures}</header>
<noscript><p>This page needs JavaScript: it holds the predictions packed. The scores are in report.md.</p></noscript>
<div id="app"></div>
<footer><p>Written by flamboyance {e(version("flamboyance"))}.</p></footer>
"""
    about = json.dumps(meta, allow_nan=False).replace("<", "\\u003c")  # a script element ends at "</", quoted or not
    yield f'<script type="application/json" id="meta">{about}</script>\n'
    for name, data in blobs:
        yield f'<script type="text/plain" id="{name}">{data}</script>\n'
    yield f"<script>\n{''.join(scripts)}</script>\n</body>\n</html>\n"
