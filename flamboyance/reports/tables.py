"""A report as tables: for the terminal, Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from flamboyance.files import replacing
from flamboyance.reports import ablation as ablations
from flamboyance.reports import published
from flamboyance.reports.curves import curves as curves_of
from flamboyance.reports.evaluation_run import TableRow, finite, printable
from flamboyance.reports.inspection import Group
from flamboyance.reports.report import USUAL, Report, Share, other_data, shares_of_flamingo

MARKDOWN, CSV = "report.md", "scores.csv"
NONE = "–"
BY_RANDOM = "†"
_COLUMNS = (
    *("run", "model", "task", "title", "metric", "mode", "shots", "seeds", "mean", "std", "low", "high"),
    *("fewest_queries", "most_queries", "dropped"),
)


@dataclass(frozen=True)
class Table:
    """Text in rows, as the terminal and Markdown show it.

    Attributes:
        left: number of leading columns that hold text, aligned left; the others hold numbers.
        sections: groups of rows, with a line between them.
    """

    title: str
    columns: tuple[str, ...]
    left: int
    sections: tuple[tuple[tuple[str, ...], ...], ...]
    notes: tuple[str, ...] = ()


def scores(report: Report) -> Table:
    """Tasks × modes × shots: every run's mean (deviation) over seeds and interval, and the published scores."""
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
    """Each further run minus the first; None for one run."""
    if len(report.runs) < 2:
        return None
    first, *others = report.runs
    two = len(others) == 1
    columns = ("task", "demonstrations", "shots", first.name, others[0].name if two else "the other run")
    columns += ("difference", "95 %", "queries", "")
    sections: dict[tuple[str, str, str], list[tuple[str, ...]]] = {}
    for other, found in zip(others, report.differences, strict=True):
        for one in found:
            rows = sections.setdefault((other.name, one.task, one.mode), [])
            name = report.title(one.task) if two else f"{other.name}: {report.title(one.task)}"
            head = (name, one.mode) if not rows else ("", "")
            sure = one.interval is not None and (one.interval[0] > 0 or one.interval[1] < 0)
            remark = one.why_not or ("" if sure else "not clear")
            change = NONE if one.difference is None else f"{round(one.difference, 1) + 0.0:+.1f}"
            numbers = (_number(one.first), _number(one.second), change, _interval(one.interval, "+.1f"))
            rows.append((*head, str(one.shots), *numbers, f"{one.queries:,}", remark))
    what = others[0].name if two else "each other run"
    note = (
        f"Difference: {what} minus {first.name}, on the same queries, with the paired bootstrap's 95 % interval "
        "over queries. Not clear: the interval contains 0."
    )
    if not any(report.differences):
        note = "The runs have no task in common with the same number of demonstrations, chosen in the same way."
    return Table("Difference", columns, 2, tuple(map(tuple, sections.values())), (note,))


def gains(report: Report) -> Table | None:
    """What demonstrations add to each run's fewest shots, and whether that is clear; None if there is nothing to
    compare."""
    columns = ("task", "demonstrations", "shots", "score", "gain", "95 %", "queries", "verdict")
    sections: list[tuple[tuple[str, ...], ...]] = []
    for run, found in zip(report.runs, report.gains, strict=False):
        rows = []
        for one in found:
            name = report.heading(run, one.task)
            fewest = min(line.shots for line in run.lines() if (line.task, line.mode) == (one.task, one.mode))
            change = NONE if one.difference is None else f"{round(one.difference, 1) + 0.0:+.1f}"
            rows.append((
                name, one.mode, f"{one.shots} instead of {fewest}", _number(one.second), change,
                _interval(one.interval, "+.1f"), f"{one.queries:,}", one.why_not or _verdict(one.interval),
            ))  # fmt: skip
        sections += [tuple(rows)] if rows else []
    note = (
        "Gain over the fewest shots, on the same queries, with the paired bootstrap's 95 % interval over queries. No "
        "clear effect: the interval contains 0."
    )
    if any(_shows_texts(line) for run in report.runs for line in run.lines() if line.shots == 0):
        note += " With 0 shots, two demonstrations are shown without their images."
    return Table("What demonstrations add", columns, 2, tuple(sections), (note,)) if sections else None


def _shows_texts(line: TableRow) -> bool:
    """Whether prompts have demonstrations; with 0 shots, a task that brings its own shows none."""
    return any(row.get("demonstrations") for row in islice(line.cells[0].rows(), 1))


def curves(report: Report) -> Table | None:
    """Where each run's curve of scores over shots begins, its peak, and its efficiency; None without such curves."""
    columns = ("task", "demonstrations", "0 shots", "peak", "at shots", "ICL efficiency")
    sections = []
    for run in report.runs:
        rows = []
        for one in curves_of(run):
            name = report.heading(run, one.task)
            found = (_number(one.zero), _number(one.peak), str(one.peak_shots), _number(one.efficiency))
            rows.append((name, one.mode, *found))
        sections += [tuple(rows)] if rows else []
    note = (
        "ICL efficiency (VL-ICL Bench): the area between the curve of scores over shots and the line of 0 shots, in "
        "percent of the whole area; below 0 where demonstrations harm."
    )
    return Table("Curves over shots", columns, 2, tuple(sections), (note,)) if sections else None


def ablation(report: Report) -> Table | None:
    """What of the demonstrations each run uses, and in a note what follows; None without changed demonstrations."""
    columns = ("task", "demonstrations", "shots", "score", "change", "95 %", "of the gain", "95 %")
    sections: list[tuple[tuple[str, ...], ...]] = []
    notes = []
    for run, found in zip(report.runs, report.ablations, strict=False):
        for one in found:
            name = report.heading(run, one.task)
            if one.why_not is not None:
                notes.append(printable(f"{name}, {one.mode}, {one.shots} shots: not compared: {one.why_not}."))
                continue
            gain = f"{round(one.gain, 1) + 0.0:+.1f}", _interval(one.gain_interval, "+.1f")
            rows = [(name, f"{one.mode}, as they are", str(one.shots), _number(one.whole), "", "", "", "")]
            rows.append(("", "none: 0 shots; the gain", "0", _number(one.zero), *gain, "", ""))
            for part in (*one.parts, *one.baselines):
                share = NONE if part.share is None else f"{100 * part.share:.0f} %"
                ends = (
                    None
                    if part.share_interval is None
                    else (part.share_interval[0] * 100, part.share_interval[1] * 100)
                )
                words = ablations.title(part.name) + (", without a model" if part in one.baselines else "")
                words += f" ({part.seeds})" if part.seeds else ""
                rows.append((
                    "", words, str(one.shots), _number(part.score), f"{round(part.difference, 1) + 0.0:+.1f}",
                    _interval(part.interval, "+.1f"), share, _interval(ends, ".0f"),
                ))  # fmt: skip
            sections.append(tuple(rows))
            notes.append(printable(f"{name}, {one.mode}, {one.shots} shots: {ablations.conclusion(one)}"))
            notes += [printable(f"{name}, {one.mode}, {one.shots} shots: not compared: {why}.") for why in one.skipped]
    notes.append(
        "Change: the score with changed demonstrations minus that with these as they are, on the same queries. Of the "
        "gain: what is lost, as a share of the gain over 0 shots; the shares need not add up to 100 %. 95 %: the "
        "paired bootstrap's interval over queries."
    )
    compared = any(report.ablations)
    return Table("What in the demonstrations is used", columns, 2, tuple(sections), tuple(notes)) if compared else None


MOST_KINDS = 12  # of each kind, the most frequent ones in a table


def inspected(report: Report) -> list[Table]:
    """Scores by type of question and of odd answers; calibration; orders of demonstrations. Those that there are."""
    kinds, flags, sure, orders = [], [], [], []
    for run, found in zip(report.runs, report.inspections, strict=False):
        for one in found:
            name = report.heading(run, one.task)
            head = (name, one.mode, str(one.shots))
            for title in dict.fromkeys(group.kind for group in one.kinds):
                some = [group for group in one.kinds if group.kind == title][:MOST_KINDS]
                kinds += [(*head, printable(title), *_group(group)) for group in some]
            flags += [(*head, *_group(group)) for group in one.flags]
            if (sureness := one.calibration) is not None:
                numbers = (sureness.accuracy, sureness.confidence, sureness.error)
                sure.append((*head, *(f"{100 * number:.1f}" for number in numbers), f"{sureness.answers:,}"))
            if one.orders is not None:
                scored = one.orders.scores
                orders.append((
                    *head, str(len(scored)), _number(scored[0]), _number(min(scored)), _number(max(scored)),
                    _number(one.orders.spread), f"{100 * one.orders.changed:.0f} %",
                ))  # fmt: skip
    head, measured = ("task", "demonstrations", "shots"), ("queries", "of answers", "score", "95 %")
    tables = [
        Table(
            "By type of question", (*head, "", "type", *measured), 2, (tuple(kinds),),
            (f"As the benchmark's files say. Of each, the {MOST_KINDS} most frequent types.",),
        ),
        Table(
            "Odd answers", (*head, "answers", *measured), 2, (tuple(flags),),
            ("Cut off: at the longest length. Verbose: twice as many words as the longest reference, and three or "
             "more words longer. Counting: the question asks for a number. Copied: from a demonstration.",),
        ),
        Table(
            "Calibration of labels", (*head, "right, %", "probability, %", "error", "answers"), 2, (tuple(sure),),
            ("Probability: the mean of the chosen label's. Error: the expected calibration error over ten bins, in "
             "points.",),
        ),
        Table(
            "Order of demonstrations",
            (*head, "orders", "as given", "lowest", "highest", "deviation", "queries that change"), 2, (tuple(orders),),
            ("The same demonstrations in several orders; deviation: of the scores over orders.",),
        ),
    ]  # fmt: skip
    return [table for table in tables if table.sections[0]]


def _group(group: Group) -> tuple[str, ...]:
    share = f"{100 * group.share:.1f} %"
    return printable(group.name), f"{group.queries:,}", share, _number(group.score), _interval(group.interval)


def _verdict(interval: tuple[float, float] | None) -> str:
    if interval is None or interval[0] <= 0 <= interval[1]:
        return "no clear effect"
    return "they help" if interval[0] > 0 else "they harm"


def unfinished(report: Report) -> list[str]:
    """A sentence per unfinished cell; no score includes it."""
    sentences = []
    for run in report.runs:
        for one in run.unfinished:
            asked = run.asked(one.cell.task)
            of = "" if asked is None else f" of {asked:,}"
            sentences.append(printable(f"{run.name}: {one.cell}: {one.count():,}{of} queries answered"))
    return sentences


def facts(report: Report) -> list[str]:
    """A line per run: its model, date, protocol and machine."""
    lines = []
    for run in report.runs:
        about, model = run.about, run.about.get("model")
        model = model if isinstance(model, dict) else {}
        parameters, machine = model.get("parameters"), about.get("machine")
        known = [about.get("date"), f"protocol {about['protocol']}" if about.get("protocol") else None]
        known += [f"{parameters:,} parameters" if isinstance(parameters, int) and parameters else None]
        known += [
            model.get("dtype"),
            model.get("kind"),
            *(machine.values() if isinstance(machine, dict) else [machine]),
        ]
        lines.append(printable(f"{run.model}: {', '.join(str(one) for one in known if one)} ({run.folder})"))
    return lines


def share_sentence(share: Share) -> str:
    """A share as a sentence."""
    return (
        f"{share.name}, demonstrations {share.mode}: {share.mean:.1%} of {share.reference} "
        f"({100 * share.std:.1f} points of deviation over {share.settings} settings of task and shots)"
    )


# ---- files ----


def write_csv(report: Report, file: Path) -> None:
    """A line per run, task, mode and number of shots, with the published scores; all digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_COLUMNS, *(f"{name}{part}" for name in report.beside for part in ("", " std"))])
    for run, lines in zip(report.runs, report.lines, strict=True):
        for key in (key for key in report.keys if key in lines):
            line, (task, mode, shots) = lines[key], key
            dropped = sum((cell.score or {}).get("dropped") or 0 for cell in line.cells)
            beside = [published.score(name, task, shots, mode) or (None, None) for name in report.beside]
            writer.writerow(
                [*map(_cell, (run.folder, run.name, task, run.title(task), run.metric(task))), mode, shots]
                + [line.measured or len(line.cells)]
                + [_exact(value) for value in (line.mean, line.std, *(line.interval or (None, None)))]
                + [*line.queries, dropped, *(_exact(value) for pair in beside for value in pair)]
            )
    with replacing(file) as part:
        Path(part).write_text(text.getvalue(), encoding="utf-8", errors="backslashreplace")


def _cell(text: object) -> str:
    """Text that a spreadsheet does not take for a formula."""
    found = printable(text)
    return f"'{found}" if found[:1] in ("=", "+", "-", "@") else found


def write_markdown(report: Report, pictures: Sequence[tuple[str, str]], file: Path) -> None:
    """`markdown` as a file."""
    with replacing(file) as part:
        Path(part).write_text(markdown(report, pictures), encoding="utf-8", errors="backslashreplace")


def markdown(report: Report, pictures: Sequence[tuple[str, str]] = ()) -> str:
    """The report as Markdown. pictures: (file beside it, title)."""
    parts = [f"# Evaluation of {' and '.join(_plain(run.name) for run in report.runs)}"]
    parts += ["\n".join(f"- {_plain(fact)}" for fact in facts(report))]
    whole = [gains(report), curves(report), ablation(report), *inspected(report), differences(report)]
    tables = [scores(report), *filter(None, whole)]
    parts += [f"## {table.title}\n\n{_table(table)}" for table in tables]
    shares = shares_of_flamingo(report)
    if shares:
        parts.append("## Share of Flamingo\n\n" + "\n".join(f"- {_plain(share_sentence(share))}" for share in shares))
    left = unfinished(report)
    if left:
        parts.append("## Unfinished, not counted\n\n" + "\n".join(f"- {_plain(line)}" for line in left))
    if pictures:
        parts.append(
            "## Figures\n\n" + "\n\n".join(f"![{_plain(what)}]({name})\n\n{_plain(what)}" for name, what in pictures)
        )
    return "\n\n".join(parts) + "\n"


def _exact(value: float | None) -> str:
    return "" if value is None else repr(float(value))


def _plain(text: str) -> str:
    """Text with Markdown's special characters escaped."""
    flat = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;")
    return "".join(f"\\{c}" if c in "\\`*_[]|#" else c for c in flat)


def _table(table: Table) -> str:
    rows = [table.columns, tuple("---" if i < table.left else "--:" for i in range(len(table.columns)))]
    rows += [row for section in table.sections for row in section]
    lines = ["| " + " | ".join(c if i == 1 else _plain(c) for c in row) + " |" for i, row in enumerate(rows)]
    return "\n".join(lines) + "".join(f"\n\n{_plain(note)}" for note in table.notes)


def as_json(report: Report) -> dict[str, Any]:
    """A report on one run: a row per task, mode and number of shots; a missing value is null."""
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


# ---- cells ----


def _published(name: str, task: str, mode: str, shots: int) -> str | None:
    """A published score with its deviation; if there is none for this mode, that of random demonstrations, marked."""
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
        notes.append(f"{BY_RANDOM} With random demonstrations: the model has no published scores with others.")
    for task in tasks:
        if len(report.measures(task)) > 1:
            named = [f"{name}{f' ({variant})' if variant else ''}" for name, variant in report.measures(task)]
            notes.append(
                f"{report.title(task)}: the runs are measured by {' and by '.join(named)}; do not compare them."
            )
    notes += _label_notes(report)
    if not report.beside and (other := other_data(report.runs)):
        notes.append(f"Published scores are not comparable: {'; '.join(other)}. --beside {USUAL} shows them anyway.")
    modes = [mode for mode in published.MODES if any(mode == m for _, m, _ in report.keys)] or ["random"]
    for name in report.beside:
        found = [one for task in tasks for mode in {*modes, "random"} if (one := published.source(name, task, mode))]
        tables = sorted({one.table for one in found})
        splits = [f"{report.title(t)} {one.split}" for t in tasks if (one := published.source(name, t))]
        notes.append(f"{name}: arXiv {found[0].arxiv}, {'; '.join(tables)}. Measured on {', '.join(splits)}.")
    return notes


_WAYS = {
    "logprobs": "by the server's log-probabilities of the tokens in which labels differ",
    "schema": "by an answer confined to the labels by a JSON schema",
    "text": "by the label in the answer's text, if there is one",
    "scores": "by the function's scores of the labels",
}


def _label_notes(report: Report) -> list[str]:
    """How the labels of each run and task were chosen, if not by the log-probability of each whole label."""
    notes = []
    for run in report.runs:
        ways: dict[str, Counter[str]] = {}
        for one in run.cells:
            found = (one.score or {}).get("labels_by")
            if isinstance(found, dict):
                counts = {str(way): int(finite(number) or 0) for way, number in found.items()}
                ways.setdefault(one.cell.task, Counter()).update(counts)
        for task, counts in ways.items():
            times = [f"{_WAYS.get(way, way)} ({count:,})" for way, count in counts.most_common()]
            notes.append(printable(f"{run.name}, {report.title(task)}: labels were chosen {', '.join(times)}."))
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
