"""Reads results directories back: their cells, finished or not, and means over seeds."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flamboyance.evaluation.results import Cell, Row, each_row, finite, over_seeds, read_object

ABOUT, SCORE = "run.json", "score.json"
MODES = ("random", "rices", "balanced", "fixed")  # their order in tables; others come after
_CELL = re.compile(r"(\d+)-([A-Za-z_]+)-(-?\d+)(?:-([a-z0-9_]+))?")


@dataclass(frozen=True)
class CellResult:
    """A cell of a results directory: one task, number of shots, mode and seed.

    Attributes:
        score: score.json's content; None while the cell is unfinished: its process was killed, or is still running.
    """

    cell: Cell
    folder: Path
    score: Row | None

    @property
    def value(self) -> float | None:
        """None for unfinished cells, and for splits whose references only a test server has."""
        return None if self.score is None else finite(self.score.get("value"))

    @property
    def interval(self) -> tuple[float, float] | None:
        ends = (self.score or {}).get("interval")
        low, high = map(finite, ends) if isinstance(ends, list) and len(ends) == 2 else (None, None)
        return None if low is None or high is None else (low, high)

    def rows(self) -> Iterator[Row]:
        """Its predictions so far, one at a time.

        Raises:
            ValueError: a line is damaged; names file and line.
            OSError: a finished cell's predictions are gone.
        """
        if self.score is not None:
            yield from each_row(self.folder / "predictions.jsonl")
            return
        seen = set()  # a row may be in two processes' files if the number of processes has changed
        for row in (row for file in self._parts() for row in each_row(file)):
            if row["id"] not in seen:
                seen.add(row["id"])
                yield row

    def count(self) -> int:
        """Number of its predictions so far."""
        if self.score is not None:
            return int(finite(self.score.get("queries")) or 0)
        return sum(file.read_bytes().count(b"\n") for file in self._parts())

    def _parts(self) -> list[Path]:
        return sorted(self.folder.glob("predictions*.jsonl"))


@dataclass(frozen=True)
class TableRow:
    """A row of a table: a task's cells that differ in the seed alone.

    Attributes:
        measured: number of cells with a value; the mean is over these.
        mean, std: over seeds; the deviation is of the population, as in the papers' code, and None for a single seed.
        interval: 95 % confidence over queries: the mean of the seeds' intervals, as all seeds ask the same queries.
        queries: the fewest and the most that a cell answered.
    """

    task: str
    mode: str
    shots: int
    cells: tuple[CellResult, ...]
    mean: float | None
    std: float | None
    interval: tuple[float, float] | None
    queries: tuple[int, int]
    measured: int

    @property
    def seeds(self) -> str:
        """The number of seeds, such as "2 of 3" if one has no value."""
        there = len(self.cells)
        return str(there) if self.measured in (0, there) else f"{self.measured} of {there}"

    @property
    def key(self) -> tuple[str, str, int]:
        return self.task, self.mode, self.shots


@dataclass(frozen=True)
class EvaluationRun:
    """An evaluation of one model, read back from its results directory.

    Attributes:
        model: its name on the hub, or its path.
        name: the last part of that name, with the run's folder if several runs have the same.
        about: run.json's content.
        cells: the finished ones, in the order of tables.
        unfinished: cells without score.json; no score includes them.
        changed: the finished ones with changed demonstrations, and those of baselines, which `cells` lacks.
    """

    folder: Path
    model: str
    name: str
    about: Row
    cells: tuple[CellResult, ...]
    unfinished: tuple[CellResult, ...]
    changed: tuple[CellResult, ...] = ()

    def title(self, task: str) -> str:
        return printable(self._about_task(task).get("title") or task)

    def metric(self, task: str) -> str:
        named = [one.score.get("metric") for one in self.cells if one.cell.task == task and one.score]
        return printable(self._about_task(task).get("metric") or (named[0] if named else "") or "")

    def measure(self, task: str) -> tuple[str, str]:
        """The metric and its variant; values of different measures are not compared."""
        return self.metric(task), str(self._about_task(task).get("variant") or "")

    def labels(self, task: str) -> list[str] | None:
        labels = self._about_task(task).get("labels")
        good = isinstance(labels, list) and all(isinstance(one, str) for one in labels)
        return labels if good else None

    def asked(self, task: str) -> int | None:
        """Number of queries of the task, if run.json has it."""
        number = self._about_task(task).get("queries")
        return number if isinstance(number, int) and not isinstance(number, bool) else None

    def _about_task(self, task: str) -> Row:
        tasks = self.about.get("tasks")
        found = tasks.get(task) if isinstance(tasks, dict) else None
        return found if isinstance(found, dict) else {}

    @property
    def tasks(self) -> list[str]:
        """The tasks that have cells, in run.json's order."""
        return list(dict.fromkeys(one.cell.task for one in (*self.cells, *self.unfinished)))

    @property
    def named(self) -> list[str]:
        """The tasks that run.json names."""
        tasks = self.about.get("tasks")
        return list(tasks) if isinstance(tasks, dict) else []

    def lines(self) -> list[TableRow]:
        """The finished cells over seeds, a line for each task, mode and number of shots."""
        return [line for (*_, change), line in _lines(self.cells).items() if not change]

    def changed_lines(self) -> dict[tuple[str, str, int, str], TableRow]:
        """The finished cells with changed demonstrations over seeds, by task, mode, number of shots and change."""
        return _lines(self.changed)


def _lines(cells: Sequence[CellResult]) -> dict[tuple[str, str, int, str], TableRow]:
    together: dict[tuple[str, str, int, str], list[CellResult]] = {}
    for one in cells:
        together.setdefault((one.cell.task, one.cell.mode, one.cell.shots, one.cell.change), []).append(one)
    return {key: _line(*key[:3], some) for key, some in together.items()}


def printable(text: Any) -> str:
    """Text from a run's files as one line, without characters that control a terminal: anyone may have written it."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "\ufffd" for c in str(text))


def read_run(folder: Path) -> EvaluationRun:
    """Reads what `flamboyance evaluate` has written so far.

    Raises:
        OSError: there is no run.
        ValueError: a file of it is damaged; names it.
    """
    if not (folder / ABOUT).is_file():
        raise FileNotFoundError(
            f"{folder} is no results directory: it has no {ABOUT}; give what `flamboyance evaluate --output` wrote"
        )
    about = read_object(folder / ABOUT)
    tasks, model = about.get("tasks"), about.get("model")
    found = list(_cells(folder, list(tasks) if isinstance(tasks, dict) else []))
    name = printable((isinstance(model, dict) and model.get("name")) or folder.name)
    # The hub's organization and the model's parent folder say nothing about the model.
    short = re.split(r"[/\\]", name.rstrip("/\\"))[-1] or name
    finished = tuple(one for one in found if one.score is not None and not one.cell.change)
    changed = tuple(one for one in found if one.score is not None and one.cell.change)
    unfinished = tuple(one for one in found if one.score is None)
    return EvaluationRun(folder, name, short, about, finished, unfinished, changed)


def read_runs(folders: Sequence[Path]) -> list[EvaluationRun]:
    """Several runs; those of one model are told apart by their folders.

    Raises:
        ValueError: a folder is given twice; and as `read_run`.
    """
    for place, folder in enumerate(folders):
        if folder.resolve() in [other.resolve() for other in folders[:place]]:
            raise ValueError(f"{folder} is given twice; give other results directories to compare with")
    runs = [read_run(folder) for folder in folders]
    names = [run.name for run in runs]
    places = [run.folder.resolve() for run in runs]
    short = len({place.name for place in places}) == len(places)
    return [
        replace(run, name=f"{run.name} ({place.name if short else place})") if names.count(run.name) > 1 else run
        for run, place in zip(runs, places, strict=True)
    ]


def _cells(folder: Path, order: Sequence[str]) -> Iterator[CellResult]:
    tasks = sorted(
        (path.name for path in folder.iterdir() if path.is_dir()),
        key=lambda name: (order.index(name) if name in order else len(order), name),
    )
    home = folder.resolve()
    for task in tasks:
        cells = []
        for path in (folder / task).iterdir():
            match = _CELL.fullmatch(path.name)
            if match and path.is_dir():
                for file in (path, path / SCORE, *path.glob("predictions*.jsonl")):
                    if not file.resolve().is_relative_to(home) or (
                        file != path and file.exists() and not file.is_file()
                    ):
                        raise ValueError(f"{file} is no file of {folder}: it leads to {file.resolve()}; remove it")
                cells.append(Cell(task, int(match[1]), match[2], int(match[3]), match[4] or ""))
        for cell in sorted(cells, key=lambda one: (one.change, _rank(one.mode), one.shots, one.seed)):
            place = cell.folder(folder)
            if (place / SCORE).is_file():
                yield CellResult(cell, place, read_object(place / SCORE))
            elif any(place.glob("predictions*.jsonl")):
                yield CellResult(cell, place, None)


def _rank(mode: str) -> tuple[int, str]:
    return (MODES.index(mode) if mode in MODES else len(MODES), mode)


def _line(task: str, mode: str, shots: int, cells: list[CellResult]) -> TableRow:
    values = [one.value for one in cells if one.value is not None]
    intervals = [one.interval for one in cells if one.interval is not None]
    counts = [one.count() for one in cells]
    mean, std = over_seeds(values)
    low, high = (over_seeds([interval[end] for interval in intervals])[0] for end in (0, 1))
    interval = None if low is None or high is None else (low, high)
    queries = (min(counts), max(counts))
    return TableRow(task, mode, shots, tuple(cells), mean, std, interval, queries, len(values))
