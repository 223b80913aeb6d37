"""Tables of one or more evaluations: scores beside published ones, differences between two runs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from flamboyance.evaluation.results import Cell
from flamboyance.reports import published
from flamboyance.reports.evaluation_run import EvaluationRun, TableRow, finite, shown
from flamboyance.reports.paired import Difference, compare

USUAL = "OpenFlamingo-9B"
NONE = "–"
BY_RANDOM = "†"
Key = tuple[str, str, int]  # task, mode, shots


@dataclass(frozen=True)
class Table:
    """Text in rows, as the terminal and Markdown show it.

    Attributes:
        left: columns that are words; the others are numbers.
        sections: groups of rows, with a line between them.
    """

    title: str
    columns: tuple[str, ...]
    left: int
    sections: tuple[tuple[tuple[str, ...], ...], ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """What runs say, side by side.

    Attributes:
        beside: published models whose scores stand beside the runs', as `published.models` names them.
    """

    runs: tuple[EvaluationRun, ...]
    beside: tuple[str, ...]
    lines: tuple[dict[Key, TableRow], ...]
    differences: tuple[Difference, ...] = field(default=())

    @property
    def comparable(self) -> bool:
        """Whether published scores may stand beside: the data are the benchmarks', or a published model was named."""
        return bool(self.beside) or not other_data(self.runs)

    @property
    def keys(self) -> list[Key]:
        """Of all runs' lines; tasks in the order of the first run that has them."""
        found = {key: None for lines in self.lines for key in lines}
        tasks = list(dict.fromkeys(task for task, _, _ in found))
        modes = list(dict.fromkeys(mode for _, mode, _ in found))
        return sorted(found, key=lambda key: (tasks.index(key[0]), modes.index(key[1]), key[2]))

    def title(self, task: str) -> str:
        named = [run.title(task) for run in self.runs if task in run.tasks]
        return named[0] if named else task

    def metric(self, task: str) -> str:
        """Its name; several where the runs measured by different ones."""
        return " / ".join(dict.fromkeys(name for name, _ in self.measures(task) if name))

    def measures(self, task: str) -> list[tuple[str, str]]:
        """By what the runs measured a task, each once: metric and variant."""
        return list(dict.fromkeys(run.measure(task) for run in self.runs if task in run.tasks))

    def like(self, tasks: Iterable[str]) -> list[list[str]]:
        """Tasks in groups that all runs measured alike: only such values have a mean. Other tasks are in none."""
        groups: dict[tuple[str, str], list[str]] = {}
        for task in tasks:
            measures = self.measures(task)
            if len(measures) == 1 and measures[0][0]:
                groups.setdefault(measures[0], []).append(task)
        return list(groups.values())


def build(runs: Sequence[EvaluationRun], beside: Sequence[str] | None = None) -> Report:
    """Puts runs side by side; two runs are also compared query by query.

    Args:
        beside: names of published models; None: the runs' own where they are published, else OpenFlamingo-9B, if what
            was asked are the benchmarks' own splits. Of these only those stand there that have a score of a task that
            was asked.

    Raises:
        ValueError: a name is of no published model, or a file of a run is damaged.
        OSError: a finished cell's predictions are gone, and there are two runs.
    """
    names = [published.named(name) for name in beside] if beside is not None else default_beside(runs)
    differences = compare(runs[0], runs[1]) if len(runs) == 2 else []
    lines = tuple({line.key: line for line in run.lines()} for run in runs)
    whole = Report(tuple(runs), (), lines, tuple(differences))
    there = [name for name in dict.fromkeys(names) if any(_published(name, *key) for key in whole.keys)]
    return Report(tuple(runs), tuple(there), lines, tuple(differences))


def of_cells(run: EvaluationRun, cells: Collection[Cell]) -> Report:
    """A report on these cells of a run alone, without published scores beside them."""
    mine = replace(run, cells=tuple(one for one in run.cells if one.cell in cells), unfinished=())
    return build([mine], [])


def as_json(report: Report) -> dict[str, Any]:
    """A report on one run for programs: a row per task, way of choosing demonstrations and number of shots; what has no
    value is null.
    """
    (run,), (lines,) = report.runs, report.lines
    rows = []
    for task, mode, shots in report.keys:
        line = lines[task, mode, shots]
        metric, variant = run.measure(task)
        seeds = {
            str(one.cell.seed): {
                "value": one.value,
                "interval": one.interval,
                "queries": one.count(),
                "dropped": int(finite((one.score or {}).get("dropped")) or 0),
            }
            for one in line.cells
        }
        rows.append(
            {
                "task": task,
                "title": run.title(task),
                "metric": metric,
                "variant": variant or None,
                "demonstrations": mode,
                "shots": shots,
                "mean": line.mean,
                "std": line.std,
                "interval": line.interval,
                "seeds": seeds,
            }
        )
    return {
        "output": str(run.folder),
        "model": run.model,
        "protocol": run.about.get("protocol"),
        "scores": rows,
    }


def default_beside(runs: Sequence[EvaluationRun]) -> list[str]:
    if other_data(runs):
        return []
    return [name for run in runs if (name := published.find(run.model))] or [USUAL]


def other_data(runs: Sequence[EvaluationRun]) -> list[str]:
    """A sentence for each task that bears a benchmark's name and has another number of queries than its split, or
    another metric."""
    told: dict[str, str] = {}
    for run in runs:
        for task in run.named:
            whole, asked = published.QUERIES.get(task), run.asked(task)
            if whole and asked and asked not in whole:
                told[task] = f"{run.title(task)} has {asked:,} queries here, the benchmark {whole[0]:,}"
            usual, metric = published.metric(task), run.metric(task)
            if usual and metric and not usual.startswith(metric):
                told.setdefault(task, f"{run.title(task)} is measured by {metric} here, in the papers by {usual}")
    return list(told.values())


def scores(report: Report) -> Table:
    """Tasks × modes × shots: every run's mean (deviation) over seeds and interval, and what is published."""
    columns = ["task", "demonstrations", "shots"]
    for run in report.runs:
        columns += [run.name if len(report.runs) > 1 else "score", "95 %"]
    columns += ["seeds", "queries", *(f"{name} (paper)" for name in report.beside)]
    sections: dict[tuple[str, str], list[tuple[str, ...]]] = {}
    for task, mode, shots in report.keys:
        rows = sections.setdefault((task, mode), [])
        first = not rows
        found = [lines.get((task, mode, shots)) for lines in report.lines]
        row = [f"{report.title(task)}, {report.metric(task)}" if first else "", mode if first else "", str(shots)]
        for line in found:
            row += [_mean(line), _interval(None if line is None else line.interval)]
        row += [_same(line.seeds for line in found if line), _same(_count(line) for line in found if line)]
        sections[task, mode].append((*row, *(_published(name, task, mode, shots) or NONE for name in report.beside)))
    return Table("Scores", tuple(columns), 2, tuple(map(tuple, sections.values())), tuple(_notes(report)))


def differences(report: Report) -> Table | None:
    """The second run less the first; None unless there are two."""
    if len(report.runs) != 2:
        return None
    first, second = report.runs
    columns = ("task", "demonstrations", "shots", first.name, second.name, "difference", "95 %", "queries", "")
    sections: dict[tuple[str, str], list[tuple[str, ...]]] = {}
    for one in report.differences:
        rows = sections.setdefault((one.task, one.mode), [])
        head = (report.title(one.task), one.mode) if not rows else ("", "")
        sure = one.interval is not None and (one.interval[0] > 0 or one.interval[1] < 0)
        told = one.why_not or ("" if sure else "not clear")
        change = NONE if one.difference is None else f"{round(one.difference, 1) + 0.0:+.1f}"
        numbers = (_number(one.first), _number(one.second), change, _interval(one.interval, "+.1f"))
        rows.append((*head, str(one.shots), *numbers, f"{one.queries:,}", told))
    note = (
        f"Difference: {second.name} less {first.name}, on the same queries, with the paired bootstrap's 95 % interval "
        "over queries. Not clear: the interval holds 0."
    )
    if not report.differences:
        note = "The runs have no task in common that was asked with as many demonstrations, chosen in the same way."
    return Table("Difference", columns, 2, tuple(map(tuple, sections.values())), (note,))


def unfinished(report: Report) -> list[str]:
    """A sentence for each cell that is not done: it counts nowhere."""
    told = []
    for run in report.runs:
        for one in run.unfinished:
            asked = run.asked(one.cell.task)
            of = "" if asked is None else f" of {asked:,}"
            told.append(shown(f"{run.name}: {one.cell}: {one.count():,}{of} queries answered"))
    return told


def facts(report: Report) -> list[str]:
    """What was run: a line for each run."""
    lines = []
    for run in report.runs:
        about, model = run.about, run.about.get("model")
        model = model if isinstance(model, dict) else {}
        parameters, machine = model.get("parameters"), about.get("machine")
        known = [about.get("date"), f"protocol {about['protocol']}" if about.get("protocol") else None]
        known += [f"{parameters:,} parameters" if isinstance(parameters, int) and parameters else None]
        known += [model.get("dtype"), *(machine.values() if isinstance(machine, dict) else [machine])]
        lines.append(shown(f"{run.model}: {', '.join(str(one) for one in known if one)} ({run.folder})"))
    return lines


def _published(name: str, task: str, mode: str, shots: int) -> str | None:
    """As the table has it. Where there is none of a mode, that of random demonstrations, marked."""
    found, mark = published.score(name, task, shots, mode), ""
    if found is None and mode != "random":
        found, mark = published.score(name, task, shots), BY_RANDOM
    if found is None:
        return None
    return f"{found[0]:.1f}{mark}" if found[1] is None else f"{found[0]:.1f} ({found[1]:.1f}){mark}"


def _notes(report: Report) -> list[str]:
    notes = [
        "Mean (standard deviation over seeds); 95 %: confidence interval over queries, by the bootstrap, "
        "the mean of the seeds' intervals."
    ]
    tasks = list(dict.fromkeys(task for task, _, _ in report.keys))
    if any(BY_RANDOM in (_published(name, *key) or "") for name in report.beside for key in report.keys):
        notes.append(f"{BY_RANDOM} With random demonstrations: nothing is published of that model with others.")
    for task in tasks:
        if len(report.measures(task)) > 1:
            named = [f"{name}{f' ({variant})' if variant else ''}" for name, variant in report.measures(task)]
            notes.append(
                f"{report.title(task)}: the runs are measured by {' and by '.join(named)}; do not compare them."
            )
    if not report.beside and (other := other_data(report.runs)):
        notes.append(f"No published scores beside: {'; '.join(other)}. --beside {USUAL} shows them all the same.")
    modes = [mode for mode in published.MODES if any(mode == m for _, m, _ in report.keys)] or ["random"]
    for name in report.beside:
        found = [one for task in tasks for mode in {*modes, "random"} if (one := published.source(name, task, mode))]
        tables = sorted({one.table for one in found})
        splits = [f"{report.title(t)} {one.split}" for t in tasks if (one := published.source(name, t))]
        notes.append(f"{name}: arXiv {found[0].arxiv}, {'; '.join(tables)}. Measured on {', '.join(splits)}.")
    return notes


def _mean(line: TableRow | None) -> str:
    if line is None or line.mean is None:
        return NONE
    return f"{line.mean:.1f}" if line.std is None else f"{line.mean:.1f} ({line.std:.1f})"


def _interval(ends: tuple[float, float] | None, form: str = ".1f") -> str:
    return NONE if ends is None else " to ".join(f"{round(end, 1) + 0.0:{form}}" for end in ends)


def _count(line: TableRow) -> str:
    fewest, most = line.queries
    return f"{fewest:,}" if fewest == most else f"{fewest:,} to {most:,}"


def _same(texts: Iterable[str]) -> str:
    return " / ".join(dict.fromkeys(texts))


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:.1f}"
