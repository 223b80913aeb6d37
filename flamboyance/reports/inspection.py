"""Parts of a run's answers: scores by type of question, of odd answers, by order of demonstrations; calibration."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from flamboyance.evaluation.metrics.intervals import interval_of_mean
from flamboyance.evaluation.results import Row, finite
from flamboyance.reports import tags
from flamboyance.reports.evaluation_run import EvaluationRun, TableRow
from flamboyance.reports.paired import shared_seeds

BINS = 10  # of equal width, for calibration


@dataclass(frozen=True)
class Group:
    """The answers of a kind.

    Attributes:
        kind, name: such as "answer type" and "yes/no"; of flags "" and the flag.
        queries: how many different ones.
        share: of all answers.
        score: their mean; None if the metric has no values of single queries.
        interval: 95 %, by the bootstrap over queries.
    """

    kind: str
    name: str
    queries: int
    share: float
    score: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Calibration:
    """How well the probabilities of labels say how often they are right.

    Attributes:
        answers: how many.
        accuracy, confidence: the share of right answers, and the mean probability of the chosen label.
        error: the expected calibration error (Guo et al., arXiv:1706.04599): the mean over answers of the difference
            between accuracy and confidence in the answer's tenth.
        bins: (mean confidence, accuracy, answers) of each tenth with answers.
    """

    answers: int
    accuracy: float
    confidence: float
    error: float
    bins: tuple[tuple[float, float, int], ...]


@dataclass(frozen=True)
class Orders:
    """The same demonstrations in several orders.

    Attributes:
        scores: of each order, means over the seeds that all orders have; the given order first.
        changed: the share of queries whose answer is not the same in all orders.
    """

    scores: tuple[float, ...]
    changed: float

    @property
    def spread(self) -> float:
        """The population's standard deviation over orders."""
        return statistics.pstdev(self.scores)


@dataclass(frozen=True)
class Inspection:
    """What is seen in the answers of a task with one number of demonstrations, chosen in one way."""

    task: str
    mode: str
    shots: int
    kinds: tuple[Group, ...]
    flags: tuple[Group, ...]
    calibration: Calibration | None
    orders: Orders | None


def inspections(run: EvaluationRun) -> list[Inspection]:
    """An inspection of each line of a run's table.

    Raises:
        ValueError: a file of predictions is damaged.
        OSError: a finished cell's predictions are gone.
    """
    changed = run.changed_lines()
    found = []
    for line in run.lines():
        others = [one for (*key, change), one in changed.items() if (*key,) == line.key and change.startswith("order_")]
        found.append(_inspected(run, line, others))
    return found


def _inspected(run: EvaluationRun, line: TableRow, others: list[TableRow]) -> Inspection:
    labels = run.labels(line.task)
    total, kinds, flags, sure = 0, defaultdict[tuple[str, str], list](list), defaultdict[str, list](list), []
    for row in (row for cell in line.cells for row in cell.rows()):
        total += 1
        brief = (row["id"], finite(row.get("score")))
        for name, kind in tags.kinds(row).items():
            kinds[name, kind].append(brief)
        for flag in tags.flags(row, labels):
            flags[flag].append(brief)
        chance = tags.confidence(row, labels)
        if chance is not None and row.get("references"):
            sure.append((chance, tags.is_right(row)))
    return Inspection(
        *line.key,
        tuple(sorted((_group(*key, some, total) for key, some in kinds.items()), key=lambda g: (g.kind, -g.queries))),
        tuple(_group("", flag, flags[flag], total) for flag in tags.FLAGS if flag in flags),
        calibration(sure) if sure else None,
        _orders(line, others) if others else None,
    )


def _group(kind: str, name: str, found: list[tuple[str, float | None]], total: int) -> Group:
    by_query = defaultdict[str, list[float]](list)
    for query, score in found:
        if score is not None:
            by_query[query].append(score)
    queries, share = len({query for query, _ in found}), len(found) / total
    if len(by_query) < queries:
        return Group(kind, name, queries, share, None, None)
    means = [statistics.fmean(scores) for scores in by_query.values()]
    return Group(kind, name, queries, share, statistics.fmean(means), interval_of_mean(means))


def calibration(answers: list[tuple[float, bool]]) -> Calibration:
    """The calibration of answers, each with the probability of its label and whether it is right."""
    chances, right = np.array([one for one, _ in answers]), np.array([one for _, one in answers], dtype=float)
    tenths = np.minimum((chances * BINS).astype(int), BINS - 1)
    bins = []
    for tenth in range(BINS):
        here = tenths == tenth
        if here.any():
            bins.append((float(chances[here].mean()), float(right[here].mean()), int(here.sum())))
    error = sum(abs(sure - good) * count for sure, good, count in bins) / len(answers)
    return Calibration(len(answers), float(right.mean()), float(chances.mean()), error, tuple(bins))


def _orders(line: TableRow, others: list[TableRow]) -> Orders | None:
    seeds = shared_seeds(line, *others)  # another seed shows other demonstrations, not another order
    cells = [[cell for cell in one.cells if cell.cell.seed in seeds] for one in (line, *others)]
    values = [[cell.value for cell in some if cell.value is not None] for some in cells]
    if not seeds or any(len(some) < len(seeds) for some in values):
        return None
    said = defaultdict[tuple[int, str], set](set)
    for cell in (cell for some in cells for cell in some):
        for query, answer in _answers(cell.rows()):
            said[cell.cell.seed, query].add(answer)
    changed = Counter(len(answers) > 1 for answers in said.values())
    return Orders(tuple(map(statistics.fmean, values)), changed[True] / max(changed.total(), 1))


def _answers(rows: Iterable[Row]) -> Iterable[tuple[str, str | None]]:
    return ((row["id"], row.get("answer")) for row in rows)
