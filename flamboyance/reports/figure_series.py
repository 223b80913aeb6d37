"""What the figures draw, a series for each run and published model, and how they look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flamboyance.reports import published
from flamboyance.reports.report import USUAL, Report

# Okabe and Ito's palette, which people with any colour blindness tell apart; runs first, then published models.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7f7f7f", "#000000")
MARKERS = "osD^vPX*"
INK, GRID = "#2b2326", "#dddddd"
AVERAGE = "average"
Values = dict[tuple[str, int], tuple[float, float | None]]  # (task, shots): mean, deviation


@dataclass(frozen=True)
class Series:
    """What is drawn in one colour: a run, or a published model, with one way of choosing demonstrations."""

    name: str
    mode: str
    values: Values
    color: str
    marker: str
    published: bool

    @property
    def label(self) -> str:
        return f"{self.name} (paper)" if self.published else self.name


def series_of(report: Report) -> list[Series]:
    """Runs, then what they stand beside, then the Flamingos that these are compared with."""
    tasks_and_shots = {(task, shots) for task, _, shots in report.keys}
    modes = list(dict.fromkeys(mode for _, mode, _ in report.keys))
    flamingos = [published.counterpart(name) or "" for name in (report.beside or [USUAL]) if report.comparable]
    names = list(dict.fromkeys([*report.beside, *flamingos]))
    found = []
    for number, (run, lines) in enumerate(zip(report.runs, report.lines, strict=True)):
        for mode in modes:
            of_mode = [line for (_, m, _), line in lines.items() if m == mode and line.mean is not None]
            values = {(one.task, one.shots): (one.mean or 0.0, one.std) for one in of_mode}
            if values:
                found.append(Series(run.name, mode, values, *_look(number), False))
    for number, name in enumerate(names, len(report.runs)):
        for mode in ("random", *(mode for mode in modes if mode != "random")):
            values = {key: score for key in tasks_and_shots if (score := published.score(name, key[0], key[1], mode))}
            if values:
                found.append(Series(name, mode, values, *_look(number), True))
    return found


def _look(number: int) -> tuple[str, str]:
    return COLORS[number % len(COLORS)], MARKERS[number % len(MARKERS)]


def new_figure(width: float, height: float) -> Any:
    # A figure of its own, without pyplot: no display and no state of the process is touched.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def dress(axes: Any, title: str = "", label: str = "") -> None:
    axes.set_title(title, loc="left", color=INK, fontsize=11)
    axes.set_ylabel(label, color=INK)
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=9)


def words(mode: str) -> str:
    """A way of choosing demonstrations, as legends call it."""
    return {"random": "random demonstrations", "rices": "RICES"}.get(mode, mode)


def legend(figure: Any, handles: Sequence[Any], labels: Sequence[str]) -> None:
    longest = max((len(label) for label in labels), default=1)
    columns = max(1, min(4, int(13 * figure.get_figwidth() / (longest + 8))))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, labelcolor=INK, fontsize=9)
