"""Two runs' difference on the same queries, which has a narrower interval than the difference of two means."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

import numpy as np

from flamboyance.evaluation.metrics.intervals import RESAMPLES, interval
from flamboyance.evaluation.results import Row
from flamboyance.reports.evaluation_run import CellResult, EvaluationRun, TableRow, finite


@dataclass(frozen=True)
class Difference:
    """The second run minus the first, for one task, mode and number of shots.

    Attributes:
        first, second: means over seeds; None where the runs cannot be compared.
        interval: 95 %, by the paired bootstrap over queries.
        queries: number of queries that both asked.
        why_not: why the two cannot be compared; None if they are.
    """

    task: str
    mode: str
    shots: int
    first: float | None
    second: float | None
    interval: tuple[float, float] | None
    queries: int
    why_not: str | None = None

    @property
    def difference(self) -> float | None:
        return None if self.first is None or self.second is None else self.second - self.first


def compare(first: EvaluationRun, second: EvaluationRun, resamples: int = RESAMPLES) -> list[Difference]:
    """A difference for each task, mode and number of shots that both runs have.

    A query's value is its mean over a run's seeds. A metric without values of single queries but with two labels (ROC
    AUC) is computed for every resample.
    """
    others = {line.key: line for line in second.lines()}
    pairs = [(line, others[line.key]) for line in first.lines() if line.key in others]
    found = []
    for a, b in pairs:
        measures = [run.measure(a.task) for run in (first, second)]
        other = _named(*measures) if measures[0] != measures[1] else None
        found.append(_compared(a, b, first.labels(a.task), resamples, other))
    return found


def gains(run: EvaluationRun, resamples: int = RESAMPLES) -> list[Difference]:
    """What demonstrations add: each number of shots minus the fewest of the same task and mode, on the same queries.

    Raises:
        ValueError: a file of predictions is damaged.
        OSError: a finished cell's predictions are gone.
    """
    found, fewest = [], dict[tuple[str, str], TableRow]()
    for line in run.lines():
        base = fewest.setdefault((line.task, line.mode), line)
        if line is not base and line.mean is not None and base.mean is not None:
            one = _compared(base, line, run.labels(line.task), resamples, None)
            found.append(replace(one, shots=line.shots))
    return found


def _named(first: tuple[str, str], second: tuple[str, str]) -> str:
    """A sentence about two different measures, each a metric's name and variant."""
    names = [f"{name or 'an unknown metric'}{f' ({variant})' if variant else ''}" for name, variant in (first, second)]
    return f"other metrics: {names[0]} and {names[1]}"


def _compared(
    first: TableRow, second: TableRow, labels: list[str] | None, resamples: int, problem: str | None
) -> Difference:
    rows = [[_by_id(cell) for cell in line.cells] for line in (first, second)]
    asked = [set().union(*cells) for cells in rows]
    problem = problem or _problem(rows, asked)
    if problem:
        return Difference(*first.key, None, None, None, len(asked[0] & asked[1]), problem)
    ids = sorted(asked[0])
    values = [_values(cells, ids) for cells in rows]
    if values[0] is not None and values[1] is not None:
        a, b = values[0], values[1]
        ends = interval(len(ids), lambda drawn: (b - a)[drawn].mean(axis=1), resamples)
        return Difference(*first.key, a.mean(), b.mean(), ends, len(ids))
    curves = [[_curve(cell, ids, labels) for cell in cells] for cells in rows]
    if any(curve is None for cells in curves for curve in cells):
        return Difference(*first.key, None, None, None, len(ids), "the metric has no values of single queries")
    ones = np.ones((1, len(ids)))
    points = [float(_mean_area(cells, ones)[0]) for cells in curves]
    if not all(map(np.isfinite, points)):
        return Difference(*first.key, None, None, None, len(ids), "all queries have the same label")

    def difference(drawn: np.ndarray) -> np.ndarray:
        counts = np.stack([np.bincount(one, minlength=len(ids)) for one in drawn])
        return _mean_area(curves[1], counts) - _mean_area(curves[0], counts)

    ends = interval(len(ids), difference, resamples)
    return Difference(*first.key, points[0], points[1], ends, len(ids))


Loaded = list[dict[str, Row]]
"""Of each seed, the predictions by query."""


def loaded(line: TableRow, seeds: Collection[int]) -> Loaded:
    """What is compared of a line's predictions.

    Seeds that do not ask the same queries, as under the protocol "openflamingo", become one, with the queries of all.

    Args:
        seeds: those of the cells to take; all if the line has none of them.
    """
    some = [cell for cell in line.cells if cell.cell.seed in seeds] or list(line.cells)
    rows = {cell.cell.seed: _by_id(cell) for cell in some}
    if len({frozenset(one) for one in rows.values()}) < 2:
        return [*rows.values()]
    return [{f"{name}, seed {seed}": row for seed, one in rows.items() for name, row in one.items()}]


def shared_seeds(*lines: TableRow) -> set[int]:
    """The seeds that all lines have."""
    return set.intersection(*({cell.cell.seed for cell in line.cells} for line in lines))


def shared_queries(first: Loaded, second: Loaded) -> tuple[list[str], str | None]:
    """The queries of the first line, sorted; and why the two cannot be compared, None if they can."""
    asked = [set().union(*cells) for cells in (first, second)]
    return sorted(asked[0]), _problem([first, second], asked)


def measure_of(rows: Loaded, ids: list[str], labels: list[str] | None) -> Callable[[np.ndarray], np.ndarray] | None:
    """A function from drawn queries, as places in `ids` (resamples, queries), to a line's scores (resamples,); None
    if the metric has no values of single queries and is not the area under a ROC curve of two labels."""
    values = _values(rows, ids)
    if values is not None:
        return lambda drawn: values[drawn].mean(axis=1)
    curves = [_curve(cell, ids, labels) for cell in rows]
    if any(curve is None for curve in curves):
        return None
    return lambda drawn: _mean_area(curves, np.stack([np.bincount(one, minlength=len(ids)) for one in drawn]))


def _problem(rows: list[list[dict[str, Row]]], asked: list[set[str]]) -> str | None:
    if not asked[0] or not asked[1]:
        return "no queries"
    if any(set(cell) != ids for cells, ids in zip(rows, asked, strict=True) for cell in cells):
        return "the queries differ between seeds"
    if asked[0] != asked[1]:
        only = [len(asked[0] - asked[1]), len(asked[1] - asked[0])]
        return f"other queries: {only[0]:,} only in the first, {only[1]:,} only in the second"
    for key in ("references", "images"):
        changed = [i for i in asked[0] if rows[0][0][i].get(key) != rows[1][0][i].get(key)]
        if changed:
            return f"the {key} of {len(changed):,} queries differ, such as {min(changed)!r}"
    return None


def _by_id(cell: CellResult) -> dict[str, Row]:
    # Without prompts and demonstrations, which take most of the memory of a large run.
    return {
        row["id"]: {key: row.get(key) for key in ("score", "scores", "references")} | {"images": _names(row)}
        for row in cell.rows()
    }


def _names(row: Row) -> list[str]:
    """The names of a query's images, not their folders: runs may be of several machines."""
    return [re.split(r"[/\\]", path)[-1] for path in row.get("images") or [row.get("image") or ""]]


def _values(cells: list[dict[str, Row]], ids: list[str]) -> np.ndarray | None:
    """(queries,): means over seeds; None unless every query has a value."""
    found = [[finite(cell[i].get("score")) for i in ids] for cell in cells]
    return None if any(v is None for values in found for v in values) else np.array(found, dtype=float).mean(axis=0)


def _curve(cell: dict[str, Row], ids: list[str], labels: list[str] | None) -> tuple[np.ndarray, np.ndarray] | None:
    """Log-odds of the first of two labels and whether it is right, both (queries,). The area under the curve does not
    depend on which label counts as positive."""
    if not labels or len(labels) != 2:
        return None
    odds, right = [], []
    for row in (cell[i] for i in ids):
        scores = [finite((row.get("scores") or {}).get(label)) for label in labels]
        references = row.get("references") or []
        if scores[0] is None or scores[1] is None or not references or references[0] not in labels:
            return None
        odds.append(scores[0] - scores[1])
        right.append(references[0] == labels[0])
    return np.array(odds), np.array(right)


def _mean_area(curves: list[tuple[np.ndarray, np.ndarray] | None], counts: np.ndarray) -> np.ndarray:
    """100 × ROC AUC, mean over seeds (resamples,). counts: how often a query was drawn (resamples, queries)."""
    return np.mean([_area(*curve, counts) for curve in curves if curve is not None], axis=0)


def _area(odds: np.ndarray, right: np.ndarray, counts: np.ndarray) -> np.ndarray:
    order = np.argsort(odds, kind="stable")
    _, starts = np.unique(odds[order], return_index=True)
    good = np.add.reduceat(counts[:, order] * right[order], starts, axis=1)  # a column for each different score
    bad = np.add.reduceat(counts[:, order] * ~right[order], starts, axis=1)
    below = np.cumsum(bad, axis=1) - bad / 2  # ties count half
    with np.errstate(invalid="ignore", divide="ignore"):  # a resample with one label only has no area: NaN
        return 100 * (good * below).sum(axis=1) / (good.sum(axis=1) * bad.sum(axis=1))
