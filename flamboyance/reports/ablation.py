"""What of the demonstrations a model uses: scores with changed ones (`evaluate --ablate`), on the same queries.

A change takes away one part of the demonstrations. What the score loses by it, as a share of the gain of these
demonstrations over zero shots, is what that part carries; the shares of several parts need not add up to the whole.
All intervals are of the paired bootstrap over queries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from flamboyance.evaluation import baselines, changes
from flamboyance.evaluation.metrics.intervals import RESAMPLES, interval
from flamboyance.reports.evaluation_run import EvaluationRun, TableRow
from flamboyance.reports.paired import Loaded, loaded, measure_of, shared_queries, shared_seeds

NEGLIGIBLE = 0.25  # of the gain: a part that carries less for sure carries next to nothing

Interval = tuple[float, float]
Measure = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Part:
    """A change of the demonstrations, or a baseline.

    Attributes:
        name: a key of changes.TITLES or baselines.TITLES.
        score: with the change.
        difference, interval: to the score of the whole demonstrations.
        share, share_interval: what is lost, as a share of the gain over zero shots; None for a baseline, and where the
            gain is not clear.
        seeds: the seeds of both, such as "1 of 3 seeds", if the change was not asked with all.
    """

    name: str
    score: float
    difference: float
    interval: Interval
    share: float | None = None
    share_interval: Interval | None = None
    seeds: str = ""

    @property
    def negligible(self) -> bool:
        """Whether the part carries next to nothing for sure."""
        return self.share_interval is not None and self.share_interval[1] < NEGLIGIBLE

    @property
    def matters(self) -> bool:
        """Whether the score is lower without the part for sure."""
        return self.share_interval is not None and self.share_interval[0] > 0 and not self.negligible


@dataclass(frozen=True)
class Ablation:
    """What the changes do to one task's score with one number of demonstrations, chosen in one way.

    Attributes:
        zero, whole: the scores with 0 shots, and with these demonstrations unchanged.
        gain_interval: of `whole - zero`.
        skipped: a sentence for each part that cannot be compared.
        why_not: why nothing can be compared, and there are no scores; None if there are.
    """

    task: str
    mode: str
    shots: int
    queries: int
    zero: float
    whole: float
    gain_interval: Interval
    parts: tuple[Part, ...]
    baselines: tuple[Part, ...]
    skipped: tuple[str, ...] = ()
    why_not: str | None = None

    @property
    def gain(self) -> float:
        return self.whole - self.zero

    def part(self, name: str) -> Part | None:
        return next((one for one in (*self.parts, *self.baselines) if one.name == name), None)


def ablations(run: EvaluationRun, resamples: int = RESAMPLES) -> list[Ablation]:
    """An ablation for each task, mode and number of shots with changed demonstrations.

    Raises:
        ValueError: a file of predictions is damaged.
        OSError: a finished cell's predictions are gone.
    """
    plain = {line.key: line for line in run.lines()}
    changed = run.changed_lines()
    found = []
    for task, mode, shots in dict.fromkeys(key[:3] for key in changed if key[3] in changes.TITLES):
        zero, whole = plain.get((task, mode, 0)), plain.get((task, mode, shots))
        if zero is not None and whole is not None:
            parts = {c: changed[task, mode, shots, c] for c in changes.TITLES if (task, mode, shots, c) in changed}
            for name, number in ((baselines.MAJORITY, 0), (baselines.NEIGHBOURS, shots)):
                if (task, name, number, baselines.BASELINE) in changed:
                    parts[name] = changed[task, name, number, baselines.BASELINE]
            found.append(_ablation(run, zero, whole, parts, resamples))
    return found


def _ablation(
    run: EvaluationRun, zero: TableRow, whole: TableRow, parts: dict[str, TableRow], resamples: int
) -> Ablation:
    labels, seeds = run.labels(whole.task), shared_seeds(zero, whole)
    plain = [loaded(line, seeds) for line in (zero, whole)]
    compared = _measured(plain, labels)
    if isinstance(compared, str):
        return Ablation(*whole.key, 0, math.nan, math.nan, (math.nan, math.nan), (), (), why_not=compared)
    ids, (none, full) = compared
    everything = np.arange(len(ids))[None]
    points = [float(measure(everything)[0]) for measure in (none, full)]
    gain = interval(len(ids), lambda drawn: full(drawn) - none(drawn), resamples)
    clear, found, skipped = gain[0] > 0, [], []
    for name, line in parts.items():
        own = shared_seeds(zero, whole, line)
        some, mine = plain, loaded(line, own)
        # A baseline's answers are the same for all seeds, if their queries are.
        if own != seeds and (name in changes.TITLES or shared_queries(some[1], mine)[1]):
            some = [loaded(one, own) for one in (zero, whole)]
        else:
            own = seeds
        three = _measured([*some, mine], labels) if own or not seeds else "no seed has both"
        if isinstance(three, str):
            skipped.append(f"{title(name)}: {three}")
            continue
        of_seeds = f"{len(own)} of {len(seeds)} seeds" if own != seeds else ""
        part = _part(name, *three, clear and name in changes.TITLES, resamples)
        found.append(replace(part, seeds=of_seeds))
    return Ablation(
        *whole.key, len(ids), points[0], points[1], gain,
        tuple(one for one in found if one.name in changes.TITLES),
        tuple(one for one in found if one.name in baselines.TITLES), tuple(skipped),
    )  # fmt: skip


def _measured(lines: Sequence[Loaded], labels: list[str] | None) -> tuple[list[str], list[Measure]] | str:
    """The queries of some lines, and the measure of each; or why they cannot be compared."""
    ids = sorted(lines[0][0])
    for other in lines[1:]:
        ids, problem = shared_queries(lines[0], other)
        if problem is not None:
            return problem
    measures = [measure for some in lines if (measure := measure_of(some, ids, labels)) is not None]
    return (ids, measures) if len(measures) == len(lines) else "the metric has no values of single queries"


def _part(name: str, ids: Sequence[str], measures: Sequence[Measure], shared: bool, resamples: int) -> Part:
    none, full, without = measures
    size, everything = len(ids), np.arange(len(ids))[None]

    def share(drawn: np.ndarray) -> np.ndarray:
        whole = full(drawn)
        gain = whole - none(drawn)
        return np.where(gain > 0, (whole - without(drawn)) / np.where(gain > 0, gain, 1.0), np.nan)

    score, whole = float(without(everything)[0]), float(full(everything)[0])
    ends = interval(size, lambda drawn: without(drawn) - full(drawn), resamples)
    if not shared:
        return Part(name, score, score - whole, ends)
    return Part(name, score, score - whole, ends, float(share(everything)[0]), interval(size, share, resamples))


def title(name: str) -> str:
    """A change or baseline in words."""
    return (changes.TITLES | baselines.TITLES)[name]


def conclusion(one: Ablation) -> str:
    """What follows, in a few sentences."""
    low, high = one.gain_interval
    if low <= 0 <= high:
        return (
            f"{one.shots} demonstrations add nothing clear to zero shots on these {one.queries:,} queries, so there is "
            f"no gain to divide.{_without_gain(one)}{_against_baselines(one)}"
        )
    if high < 0:
        return f"{one.shots} demonstrations harm, so there is no gain to divide.{_against_baselines(one)}"
    said = " ".join([*_of_images(one), *_of_answers(one), *_of_questions(one)])
    return (said + _against_baselines(one)).strip()


def _without_gain(one: Ablation) -> str:
    """A sentence on the changes that lower the score of demonstrations which add nothing: they distract then."""
    worse = [f"{title(part.name)} ({part.difference:+.1f})" for part in one.parts if part.interval[1] < 0]
    if worse:
        return f" But the score is lower with {', '.join(worse)}."
    return " No change of them lowers the score clearly." if one.parts else ""


def _parts(one: Ablation, names: Sequence[str]) -> list[Part]:
    return [part for name in names if (part := one.part(name)) is not None]


def _of_images(one: Ablation) -> list[str]:
    parts = _parts(one, changes.IMAGES)
    mattering = [part for part in parts if part.matters]
    if not parts:
        return []
    if all(part.negligible for part in parts):
        return ["The images of the demonstrations change nothing here."]
    if not mattering:
        return [f"Whether the images of the demonstrations matter is not clear with {one.queries:,} queries."]
    most = max(mattering, key=lambda part: part.share or 0.0)
    said = f"The images of the demonstrations carry {_percent(most)} of the gain ({title(most.name)})"
    mixed = one.part("shuffled_images")
    if mixed is not None and mixed.matters:
        return [f"{said}, and it matters which answer is beside which image ({title(mixed.name)}: {_percent(mixed)})."]
    if mixed is not None and mixed.negligible:
        return [f"{said}, but not which answer is beside which image."]
    return [f"{said}."]


def _of_answers(one: Ablation) -> list[str]:
    parts, drawn = _parts(one, changes.ANSWERS), one.part("random_answers")
    if not parts:
        return []
    if all(part.negligible for part in parts):
        return ["The answers may be any: the model takes their form alone."]
    mattering = [part for part in parts if part.matters]
    if not mattering:
        return ["Whether the answers must be right is not clear."]
    seen = any(part.matters for part in _parts(one, changes.IMAGES))
    most = max(mattering, key=lambda part: part.share or 0.0)
    if seen or all(not part.negligible for part in _parts(one, changes.IMAGES)):
        return [f"The answers must be right: {title(most.name)}, {_percent(most)} is lost."]
    mixed = one.part("shuffled_answers")
    if drawn in mattering and mixed is not None and mixed.negligible:
        return [
            f"The model repeats or counts the answers, whatever they belong to: random ones lose {_percent(drawn)}."
        ]
    return [f"The model copies answers without the images: {title(most.name)}, {_percent(most)} is lost."]


def _of_questions(one: Ablation) -> list[str]:
    part = one.part("no_questions")
    if part is None:
        return []
    if part.negligible:
        return ["The questions of the demonstrations change nothing."]
    return [f"The questions of the demonstrations carry {_percent(part)}."] if part.matters else []


def _against_baselines(one: Ablation) -> str:
    """A sentence if a baseline is as good as the model, or clearly worse than it."""
    said = ""
    for part in one.baselines:
        name = title(part.name)
        if part.interval[1] < 0:
            said += f" The model is better than {name} ({part.score:.1f})."
        elif part.interval[0] > 0:
            said += f" {name[0].upper()}{name[1:]}, without a model, scores more: {part.score:.1f}."
        else:
            said += f" {name[0].upper()}{name[1:]}, without a model, scores as much: {part.score:.1f}."
    return said


def _percent(part: Part | None) -> str:
    return "–" if part is None or part.share is None else f"{100 * part.share:.0f} %"
