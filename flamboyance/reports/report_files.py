"""A report as files: report.md, and scores.csv for spreadsheets and programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from flamboyance.files import replacing
from flamboyance.reports import published
from flamboyance.reports.evaluation_run import shown
from flamboyance.reports.report import Report, Table, differences, facts, scores, unfinished
from flamboyance.reports.shares import shares_of_flamingo, told

MARKDOWN, CSV = "report.md", "scores.csv"
_COLUMNS = (
    *("run", "model", "task", "title", "metric", "mode", "shots", "seeds", "mean", "std", "low", "high"),
    *("fewest_queries", "most_queries", "dropped"),
)


def write_csv(report: Report, file: Path) -> None:
    """A line for each run, task, mode and number of shots, with the published scores beside it; all digits."""
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
    """Text that a spreadsheet takes for text, and not for a formula."""
    found = shown(text)
    return f"'{found}" if found[:1] in ("=", "+", "-", "@") else found


def write_markdown(report: Report, pictures: Sequence[tuple[str, str]], file: Path) -> None:
    """`markdown` as a file."""
    with replacing(file) as part:
        Path(part).write_text(markdown(report, pictures), encoding="utf-8", errors="backslashreplace")


def markdown(report: Report, pictures: Sequence[tuple[str, str]] = ()) -> str:
    """The report as Markdown. pictures: (file beside it, what it shows)."""
    parts = [f"# Evaluation of {' and '.join(_plain(run.name) for run in report.runs)}"]
    parts += ["\n".join(f"- {_plain(fact)}" for fact in facts(report))]
    tables = [scores(report), *filter(None, [differences(report)])]
    parts += [f"## {table.title}\n\n{_table(table)}" for table in tables]
    shares = shares_of_flamingo(report)
    if shares:
        parts.append("## Share of Flamingo\n\n" + "\n".join(f"- {_plain(told(share))}" for share in shares))
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
    """Text that Markdown takes for text."""
    flat = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;")
    return "".join(f"\\{c}" if c in "\\`*_[]|#" else c for c in flat)


def _table(table: Table) -> str:
    rows = [table.columns, tuple("---" if i < table.left else "--:" for i in range(len(table.columns)))]
    rows += [row for section in table.sections for row in section]
    lines = ["| " + " | ".join(c if i == 1 else _plain(c) for c in row) + " |" for i, row in enumerate(rows)]
    return "\n".join(lines) + "".join(f"\n\n{_plain(note)}" for note in table.notes)
