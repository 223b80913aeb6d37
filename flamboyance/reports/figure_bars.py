"""Bars: scores as shares of Flamingo's and of fine-tuned models', OpenFlamingo's Figures 1 and 7."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Sequence
from typing import Any

from matplotlib.patches import Patch

from flamboyance.reports import published
from flamboyance.reports.figure_series import AVERAGE, INK, Series, dress, legend, new_figure, words
from flamboyance.reports.report import Report
from flamboyance.reports.shares import shares_of_flamingo

HATCHES = ("", "//", "..", "xx")


def share_of_flamingo(report: Report, series: list[Series]) -> tuple[str, Any]:
    """(title, figure): `shares_of_flamingo` as bars; without a figure where there are none."""
    shares = shares_of_flamingo(report)
    title = f"Average share of Flamingo's score ({_range([one.settings for one in shares])} settings, their deviation)"
    if not shares:
        return title, None
    colors = {one.label: one.color for one in series}
    names = list(dict.fromkeys(one.name for one in shares))
    modes = list(dict.fromkeys(one.mode for one in shares))
    against = {one.name: one.reference for one in shares}
    bars = [
        (modes.index(one.mode), names.index(one.name), 100 * one.mean, 100 * one.std, colors[one.name])
        for one in shares
    ]
    longest = max(len(line) for name in names for line in _wrapped(name).split("\n"))
    figure = new_figure(max(5.0, max(1.8, 0.11 * longest) * len(names) + 1.2), 4.2)
    axes = figure.add_subplot()
    dress(axes, title, "% of Flamingo's score")
    _bars(axes, bars, len(modes), [f"{_wrapped(name)}\nof {against[name]}" for name in names])
    axes.axhline(100, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    _mode_legend(figure, modes)
    return title, figure


def share_of_fine_tuned(report: Report, series: list[Series]) -> tuple[str, Any]:
    """(title, figure): bars by task, and their average, at the largest number of shots that all runs have of each
    task; without a figure where there is none.
    """
    known = (t for t, _, _ in report.keys if report.comparable and published.fine_tuned(t))
    tasks = list(dict.fromkeys(known))
    own = [one for one in series if not one.published and any(t in tasks for t, _ in one.values)]
    numbers = {number for one in own for _, number in one.values}
    shared = [number for number in numbers if all(_has(one, tasks, number) for one in own)]
    title = f"Share of the fine-tuned state of the art, {max(shared, default=0)} shots"
    if not shared or not tasks:
        return title, None
    number = max(shared)
    shown = [one for one in series if (one in own or one.published) and any((t, number) in one.values for t in tasks)]
    figure = new_figure(max(6.5, 1.1 + 0.21 * len(shown) * (len(tasks) + 1) + 0.5 * len(tasks)), 4.4)
    axes = figure.add_subplot()
    dress(axes, title, "% of the fine-tuned state of the art")
    bars = []
    for place, one in enumerate(shown):
        found = {t: 100 * one.values[t, number][0] / _fine_tuned(t) for t in tasks if (t, number) in one.values}
        if len(found) == len(tasks) > 1:
            found[AVERAGE] = statistics.fmean(found.values())
        bars += [(place, [*tasks, AVERAGE].index(task), share, None, one.color) for task, share in found.items()]
    hatches = ["//" if one.mode != "random" else "" for one in shown]
    names = [f"{report.title(t)}\n{found.method}" for t in tasks if (found := published.fine_tuned(t))]
    _bars(
        axes,
        bars,
        len(shown),
        names + (["Average of\nthe shares"] if len(tasks) > 1 else []),
        hatches,
        numbers=len(shown) < 4,
    )
    axes.axhline(100, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    handles = [
        Patch(facecolor=one.color, hatch=hatch, edgecolor="white") for one, hatch in zip(shown, hatches, strict=True)
    ]
    legend(figure, handles, [f"{one.label}: {words(one.mode)}" for one in shown])
    return title, figure


def _has(one: Series, tasks: Sequence[str], number: int) -> bool:
    """Whether a series has this number of shots of each of the tasks that it has at all."""
    return all((task, number) in one.values for task in tasks if any(t == task for t, _ in one.values))


def _fine_tuned(task: str) -> float:
    found = published.fine_tuned(task)
    return math.nan if found is None else found.score


def _bars(
    axes: Any,
    bars: Sequence[tuple[int, int, float, float | None, str]],
    members: int,
    names: Sequence[str],
    hatches: Sequence[str] = (),
    numbers: bool = True,
) -> None:
    """Groups of bars: (member, group, height, deviation, colour); the members of a group stand side by side."""
    width = 0.8 / members
    for member, group, height, deviation, color in bars:
        at = group + width * (member - (members - 1) / 2)
        hatch = hatches[member] if hatches else HATCHES[member % len(HATCHES)]
        axes.bar(at, height, 0.94 * width, yerr=deviation, color=color, hatch=hatch, edgecolor="white", capsize=3)
        if numbers:
            aside = 0.08 * width if deviation else 0
            axes.annotate(
                f"{height:.0f}",
                (at + aside, height),
                (2 if deviation else 0, 2),
                textcoords="offset points",
                ha="left" if deviation else "center",
                fontsize=8,
                color=INK,
            )
    axes.set_xticks(range(len(names)), names)


def _mode_legend(figure: Any, modes: Sequence[str]) -> None:
    if len(modes) > 1:
        hatches = [HATCHES[i % len(HATCHES)] for i in range(len(modes))]
        patches = [Patch(facecolor="#999999", hatch=hatch, edgecolor="white") for hatch in hatches]
        legend(figure, patches, [words(mode) for mode in modes])


def _wrapped(name: str) -> str:
    """A long name in lines of at most 24 letters, broken after hyphens and blanks where it has them."""
    lines = [""]
    for piece in re.findall(r"[^\s_/-]+[\s_/-]*", name) or [name]:
        if lines[-1] and len(lines[-1] + piece.rstrip()) > 24:
            lines.append("")
        lines[-1] += piece
    return "\n".join(line.strip() for line in lines)


def _range(numbers: Sequence[int]) -> str:
    low, high = min(numbers, default=0), max(numbers, default=0)
    return str(low) if low == high else f"{low} to {high}"
