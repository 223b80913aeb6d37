"""One or more evaluations side by side, with the published scores that are comparable."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace

from flamboyance.evaluation.results import Cell
from flamboyance.reports import published
from flamboyance.reports.ablation import Ablation, ablations
from flamboyance.reports.evaluation_run import EvaluationRun, TableRow
from flamboyance.reports.inspection import Inspection, inspections
from flamboyance.reports.paired import Difference, compare, gains

USUAL = "OpenFlamingo-9B"
Key = tuple[str, str, int]  # task, mode, shots


@dataclass(frozen=True)
class Report:
    """Runs side by side.

    Attributes:
        beside: the published models to compare with, by their names in `published.models`.
        differences: of each run but the first, to the first, query by query.
        gains: of each run, what more shots add to the fewest.
        ablations: of each run, what of the demonstrations is used.
        inspections: of each run, scores of parts of the answers.
    """

    runs: tuple[EvaluationRun, ...]
    beside: tuple[str, ...]
    lines: tuple[dict[Key, TableRow], ...]
    differences: tuple[tuple[Difference, ...], ...] = field(default=())
    gains: tuple[tuple[Difference, ...], ...] = field(default=())
    ablations: tuple[tuple[Ablation, ...], ...] = field(default=())
    inspections: tuple[tuple[Inspection, ...], ...] = field(default=())

    @property
    def comparable(self) -> bool:
        """Whether published scores are shown: the data are the benchmarks', or a published model was named."""
        return bool(self.beside) or not other_data(self.runs)

    @property
    def keys(self) -> list[Key]:
        """The keys of all runs' rows; tasks in the order of the first run that has them."""
        found = {key: None for lines in self.lines for key in lines}
        tasks = list(dict.fromkeys(task for task, _, _ in found))
        modes = list(dict.fromkeys(mode for _, mode, _ in found))
        return sorted(found, key=lambda key: (tasks.index(key[0]), modes.index(key[1]), key[2]))

    def title(self, task: str) -> str:
        named = [run.title(task) for run in self.runs if task in run.tasks]
        return named[0] if named else task

    def heading(self, run: EvaluationRun, task: str) -> str:
        """The task's title, after the run's name where there are several."""
        return self.title(task) if len(self.runs) == 1 else f"{run.name}: {self.title(task)}"

    def metric(self, task: str) -> str:
        """Its name; several if the runs differ."""
        return " / ".join(dict.fromkeys(name for name, _ in self.measures(task) if name))

    def measures(self, task: str) -> list[tuple[str, str]]:
        """The metrics and variants by which the runs measured a task, without repetition."""
        return list(dict.fromkeys(run.measure(task) for run in self.runs if task in run.tasks))

    def like(self, tasks: Iterable[str]) -> list[list[str]]:
        """Groups of tasks that all runs measured alike, so that their mean has a meaning."""
        groups: dict[tuple[str, str], list[str]] = {}
        for task in tasks:
            measures = self.measures(task)
            if len(measures) == 1 and measures[0][0]:
                groups.setdefault(measures[0], []).append(task)
        return list(groups.values())


def build(runs: Sequence[EvaluationRun], beside: Sequence[str] | None = None, with_gains: bool = False) -> Report:
    """Puts runs side by side; the first is also compared with each other one, query by query.

    Args:
        beside: names of published models. None: the runs' own models if they are published, else OpenFlamingo-9B, if
            the queries are the benchmarks' own splits. Models without a score for any task here are left out.
        with_gains: also what is read query by query: gains of shots, changed demonstrations, parts of the answers.

    Raises:
        ValueError: no published model has a name, or a file of a run is damaged.
        OSError: a finished cell's predictions are gone, and there are several runs.
    """
    names = [published.named(name) for name in beside] if beside is not None else default_beside(runs)
    differences = tuple(tuple(compare(runs[0], other)) for other in runs[1:])
    lines = tuple({line.key: line for line in run.lines()} for run in runs)
    whole = Report(tuple(runs), (), lines, differences)
    more = tuple(tuple(gains(run)) for run in runs) if with_gains else ()
    changed = tuple(tuple(ablations(run)) for run in runs) if with_gains else ()
    seen = tuple(tuple(inspections(run)) for run in runs) if with_gains else ()
    there = [name for name in dict.fromkeys(names) if any(_has_score(name, *key) for key in whole.keys)]
    return Report(tuple(runs), tuple(there), lines, differences, more, changed, seen)


def of_cells(run: EvaluationRun, cells: Collection[Cell]) -> Report:
    """A report on some cells of a run, without published scores."""
    mine = replace(run, cells=tuple(one for one in run.cells if one.cell in cells), unfinished=(), changed=())
    return build([mine], [])


def _has_score(name: str, task: str, mode: str, shots: int) -> bool:
    """Whether a published model has a score with these demonstrations, or else with random ones."""
    return bool(published.score(name, task, shots, mode) or published.score(name, task, shots))


def default_beside(runs: Sequence[EvaluationRun]) -> list[str]:
    if other_data(runs):
        return []
    return [name for run in runs if (name := published.find(run.model))] or [USUAL]


def other_data(runs: Sequence[EvaluationRun]) -> list[str]:
    """A sentence per task that has a benchmark's name, but not its number of queries or its metric."""
    sentences: dict[str, str] = {}
    for run in runs:
        for task in run.named:
            whole, asked = published.QUERIES.get(task), run.asked(task)
            if whole and asked and asked not in whole:
                sentences[task] = f"{run.title(task)} has {asked:,} queries here, the benchmark {whole[0]:,}"
            usual, metric = published.metric(task), run.metric(task)
            if usual and metric and not usual.startswith(metric):
                sentences.setdefault(task, f"{run.title(task)} is measured by {metric} here, in the papers by {usual}")
    return list(sentences.values())


@dataclass(frozen=True)
class Share:
    """Scores divided by a reference's, averaged over settings (tasks × numbers of shots), as OpenFlamingo's Figure 1.

    Attributes:
        name: of a run, or of a published model followed by "(paper)".
        mean, std: over settings; the deviation is of the population.
        reference: the model whose scores are the divisor.
    """

    name: str
    mode: str
    mean: float
    std: float
    settings: int
    reference: str


def shares_of_flamingo(report: Report) -> list[Share]:
    """The shares of every run and of every OpenFlamingo in `beside`.

    The divisor is the counterpart Flamingo with random demonstrations, since its papers have no such scores with RICES;
    for an unpublished model it is the counterpart of the first published one. All shares of a mode are over the same
    settings: those that all runs with this mode have. Empty if the report is not comparable.
    """
    found: list[Share] = []
    if not report.comparable:
        return found
    usual = published.counterpart(report.beside[0] if report.beside else USUAL) or ""
    for mode in dict.fromkeys(mode for _, mode, _ in report.keys):
        runs = [(run, lines) for run, lines in zip(report.runs, report.lines, strict=True) if _has(lines, mode)]
        shared = [(t, n) for t, m, n in report.keys if m == mode and all(_scored(ls, (t, m, n)) for _, ls in runs)]
        series = []
        for run, lines in runs:
            own = published.counterpart(run.model) or usual
            series.append((run.name, own, {(t, n): lines[t, mode, n].mean for t, n in shared}))
        for name in report.beside:
            values = {(t, n): published.score(name, t, n, mode) for t, n in shared}
            if published.counterpart(name) != name and any(values.values()):
                series.append(
                    (f"{name} (paper)", published.counterpart(name) or "", {k: v[0] for k, v in values.items() if v})
                )
        for name, reference, values in series:
            pairs = [(values.get((t, n)), published.score(reference, t, n)) for t, n in shared]
            quotients = [value / other[0] for value, other in pairs if value is not None and other]
            if quotients:
                spread = statistics.pstdev(quotients)
                found.append(Share(name, mode, statistics.fmean(quotients), spread, len(quotients), reference))
    return found


def _has(lines: dict[Key, TableRow], mode: str) -> bool:
    return any(m == mode and line.mean is not None for (_, m, _), line in lines.items())


def _scored(lines: dict[Key, TableRow], key: Key) -> bool:
    return key in lines and lines[key].mean is not None
