"""What VL-ICL Bench (arXiv:2403.13164) reads from a curve of scores over shots: its start, its peak, its efficiency."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flamboyance.reports.evaluation_run import EvaluationRun

UNBOUNDED = ("CIDEr",)  # metrics without a largest score, so that there is no whole area


@dataclass(frozen=True)
class Curve:
    """A task's scores, means over seeds, by the number of shots.

    Attributes:
        zero: with 0 shots.
        peak, peak_shots: the best score, and the fewest shots that reach it.
        efficiency: the area between the curve and the line of `zero`, from 0 to the most shots, in percent of the whole
            area (100 times the most shots), by trapezoids; below 0 if demonstrations harm. None if the metric has no
            largest score.
    """

    task: str
    mode: str
    zero: float
    peak: float
    peak_shots: int
    efficiency: float | None


def curves(run: EvaluationRun) -> list[Curve]:
    """A curve for each task and way of choosing that has 0 shots and more."""
    points: dict[tuple[str, str], dict[int, float]] = {}
    for line in run.lines():
        if line.mean is not None:
            points.setdefault((line.task, line.mode), {})[line.shots] = line.mean
    found = []
    for (task, mode), scores in points.items():
        if 0 in scores and len(scores) > 1:
            shots = sorted(scores)
            best = max(shots, key=lambda number: (scores[number], -number))
            bounded = run.metric(task) not in UNBOUNDED
            share = efficiency(shots, [scores[n] for n in shots]) if bounded else None
            found.append(Curve(task, mode, scores[0], scores[best], best, share))
    return found


def efficiency(shots: Sequence[int], scores: Sequence[float]) -> float:
    """The area between a curve and the line of its first score, in percent of the whole area.

    Args:
        shots: rising, from 0.
        scores: from 0 to 100.
    """
    area = 0.0
    for a, b, left, right in zip(shots, shots[1:], scores, scores[1:], strict=False):
        area += (b - a) * ((left + right) / 2 - scores[0])
    return area / (shots[-1] - shots[0])
