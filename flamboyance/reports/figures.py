"""The figures of OpenFlamingo's paper (arXiv 2308.01390) for one's own runs, as PNG and SVG.

figure-1-share-of-flamingo   Figure 1: bars, scores as a share of the corresponding Flamingo's, averaged over tasks and
                             numbers of shots; error bars are deviations over these settings.
figure-6-shots-random        Figure 6: a panel per task, score against shots with random demonstrations; error bars are
                             deviations over seeds. The last panels are averages over the tasks that all series have,
                             one per metric that several of these tasks share.
figure-6-shots-rices         the same with RICES, its Figure 10; Flamingo's scores are with random demonstrations.
figure-7-share-of-fine-tuned Figure 7: bars, scores as a share of the fine-tuned state of the art (Table 8), by task.
ablation                     bars of the scores with changed demonstrations (ablation_figure.py).
random-against-rices         what Tables 9, 11 and 12 compare: a panel per task, both ways of choosing demonstrations.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flamboyance.figure_style import COLORS, INK, add_legend, new_figure, save, style_axes
from flamboyance.reports import published
from flamboyance.reports.ablation_figure import ablation_figures
from flamboyance.reports.report import USUAL, Report, shares_of_flamingo

MARKERS = "osD^vPX*"
HATCHES = ("", "//", "..", "xx")
AVERAGE = "average"
Values = dict[tuple[str, int], tuple[float, float | None]]  # (task, shots): mean, deviation


@dataclass(frozen=True)
class Series:
    """What has one color: a run, or a published model, with one way of choosing demonstrations."""

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
    """The runs, then the published models beside them, then the Flamingos that these are compared with."""
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


def mode_label(mode: str) -> str:
    """A way of choosing demonstrations, as legends name it."""
    return {"random": "random demonstrations", "rices": "RICES"}.get(mode, mode)


# ---- figures ----


def draw(report: Report, folder: Path) -> list[tuple[str, str]]:
    """Writes every figure that there are scores for. Returns (PNG's name, title); each has an SVG beside it.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib import rc_context
    except ImportError as error:
        raise ImportError("figures need matplotlib: pip install matplotlib") from error
    with rc_context({"text.parse_math": False}):  # a task's name may have a dollar sign
        return _draw(report, folder)


def _draw(report: Report, folder: Path) -> list[tuple[str, str]]:
    series = series_of(report)
    modes = list(dict.fromkeys(one.mode for one in series if not one.published))
    made: list[tuple[str, str, Any]] = [("figure-1-share-of-flamingo", *share_of_flamingo(report, series))]
    for mode in modes:
        shown = [one for one in series if one.mode == mode or (one.published and _alone(one, series))]
        title = f"Score against shots: {mode_label(mode)}"
        made.append((f"figure-6-shots-{mode}", title, _panels(report, shown, title)))
    made.append(("figure-7-share-of-fine-tuned", *share_of_fine_tuned(report, series)))
    if {"random", "rices"} <= set(modes):
        both = {one.name for one in series if one.mode == "rices"}
        shown = [one for one in series if one.name in both]
        title = "Score against shots: random demonstrations (dashed) and RICES"
        made.append(("random-against-rices", title, _panels(report, shown, title, by_mode=True)))
    for number, figure in enumerate(ablation_figures(report), 1):
        made.append((f"ablation-{number}" if number > 1 else "ablation", "Scores with changed demonstrations", figure))
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, title, figure in made:
        if figure is not None:
            for suffix in ("png", "svg"):
                save(figure, folder / f"{name}.{suffix}")
            written.append((f"{name}.png", title))
    return written


def _alone(one: Series, series: Sequence[Series]) -> bool:
    """Whether a model is published with random demonstrations only: then every mode's figure shows it."""
    return sum(other.name == one.name for other in series) == 1


# ---- panels ----


def _panels(report: Report, series: list[Series], title: str, by_mode: bool = False) -> Any:
    """A panel per task, then one per metric: the average over the tasks that are measured by it."""
    runs = [one for one in series if not one.published]
    tasks = [task for task in dict.fromkeys(t for t, _, _ in report.keys) if any(_has(one, task) for one in runs)]
    if by_mode:  # where a run has both ways
        ways = {task: {one.mode for one in series if not one.published and _has(one, task)} for task in tasks}
        tasks = [task for task in tasks if len(ways[task]) > 1]
    if not tasks:
        return None
    common = [task for task in tasks if all(_has(one, task) for one in series)]
    panels = [[task] for task in tasks] + [group for group in report.like(common) if _averages(runs, group)]
    columns = min(len(panels), 4 if len(panels) > 6 else 3)
    rows = math.ceil(len(panels) / columns)
    figure = new_figure(max(3.3 * columns, 5.2), 2.8 * rows + 0.9)
    for place, group in enumerate(panels, 1):
        axes = figure.add_subplot(rows, columns, place)
        task = group[0] if len(group) == 1 else AVERAGE
        shots = sorted({number for one in runs for name, number in one.values if name in group})
        titles = [report.title(one) for one in group]
        several = f"Average of {' and '.join(titles) if len(group) == 2 else f'{len(group)} tasks'}"
        xlabel = "shots" if place > len(panels) - columns else ""
        style_axes(axes, titles[0] if len(group) == 1 else several, xlabel, report.metric(group[0]))
        for number, one in enumerate(series):
            values = _averaged(one, group, shots) if task == AVERAGE else one.values
            _line(axes, one, values, task, shots, 0.05 * (number - (len(series) - 1) / 2), by_mode)
        axes.set_xticks(range(len(shots)), [str(one) for one in shots])
        axes.set_xlim(-0.35, len(shots) - 0.65)
    figure.suptitle(title, x=0.01, ha="left", color=INK, fontsize=12)
    handles: dict[str, Any] = {}  # of every panel, for a series may have points in some alone
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    add_legend(figure, list(handles.values()), list(handles))
    return figure


def _has(one: Series, task: str) -> bool:
    return any(name == task for name, _ in one.values)


def _averages(runs: Sequence[Series], tasks: Sequence[str]) -> bool:
    """Whether an average of tasks says more than they do: several, at numbers of shots that they have in common."""
    numbers = [{n for one in runs for name, n in one.values if name == task} for task in tasks]
    return len(tasks) > 1 and len(set.intersection(*numbers)) >= min(2, *map(len, numbers))


def _averaged(one: Series, tasks: Sequence[str], shots: Sequence[int]) -> Values:
    whole = [number for number in shots if all((task, number) in one.values for task in tasks)]
    return {(AVERAGE, n): (statistics.fmean(one.values[task, n][0] for task in tasks), None) for n in whole}


def _line(axes: Any, one: Series, values: Values, task: str, shots: Sequence[int], aside: float, by_mode: bool) -> None:
    places = [place for place, number in enumerate(shots) if (task, number) in values]
    if not places:
        return
    found = [values[task, shots[place]] for place in places]
    dashed = one.mode == "random" if by_mode else one.published
    axes.errorbar(
        [place + aside for place in places],  # so that error bars stand side by side
        [mean for mean, _ in found],
        yerr=[deviation or 0 for _, deviation in found] if any(deviation for _, deviation in found) else None,
        label=f"{one.label}: {mode_label(one.mode)}" if by_mode else one.label,
        color=one.color,
        marker=one.marker,
        markersize=5 if not one.published else 4,
        linewidth=2 if not one.published else 1.3,
        linestyle=(0, (4, 2)) if dashed else "-",
        markerfacecolor="white" if dashed else one.color,
        capsize=2.5,
        elinewidth=1,
    )


# ---- bars ----


def share_of_flamingo(report: Report, series: list[Series]) -> tuple[str, Any]:
    """(title, figure): `shares_of_flamingo` as bars; without a figure where there are none."""
    shares = shares_of_flamingo(report)
    if not shares:
        return "", None
    counts = {min(one.settings for one in shares), max(one.settings for one in shares)}
    settings = " to ".join(map(str, sorted(counts)))
    title = f"Average share of Flamingo's score ({settings} settings, their deviation)"
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
    style_axes(axes, title, ylabel="% of Flamingo's score")
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
    shared = [n for n in numbers if all((t, n) in one.values for one in own for t in tasks if _has(one, t))]
    title = f"Share of the fine-tuned state of the art, {max(shared, default=0)} shots"
    if not shared or not tasks:
        return title, None
    number = max(shared)
    shown = [one for one in series if (one in own or one.published) and any((t, number) in one.values for t in tasks)]
    figure = new_figure(max(6.5, 1.1 + 0.21 * len(shown) * (len(tasks) + 1) + 0.5 * len(tasks)), 4.4)
    axes = figure.add_subplot()
    style_axes(axes, title, ylabel="% of the fine-tuned state of the art")
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
    from matplotlib.patches import Patch  # optional dependency

    handles = [
        Patch(facecolor=one.color, hatch=hatch, edgecolor="white") for one, hatch in zip(shown, hatches, strict=True)
    ]
    add_legend(figure, handles, [f"{one.label}: {mode_label(one.mode)}" for one in shown])
    return title, figure


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
    """Groups of bars: (member, group, height, deviation, color); the members of a group are side by side."""
    width = 0.8 / members
    for member, group, height, deviation, color in bars:
        x = group + width * (member - (members - 1) / 2)
        hatch = hatches[member] if hatches else HATCHES[member % len(HATCHES)]
        axes.bar(x, height, 0.94 * width, yerr=deviation, color=color, hatch=hatch, edgecolor="white", capsize=3)
        if numbers:
            aside = 0.08 * width if deviation else 0
            axes.annotate(
                f"{height:.0f}",
                (x + aside, height),
                (2 if deviation else 0, 2),
                textcoords="offset points",
                ha="left" if deviation else "center",
                fontsize=8,
                color=INK,
            )
    axes.set_xticks(range(len(names)), names)


def _mode_legend(figure: Any, modes: Sequence[str]) -> None:
    if len(modes) > 1:
        from matplotlib.patches import Patch  # optional dependency

        hatches = [HATCHES[i % len(HATCHES)] for i in range(len(modes))]
        patches = [Patch(facecolor="#999999", hatch=hatch, edgecolor="white") for hatch in hatches]
        add_legend(figure, patches, [mode_label(mode) for mode in modes])


def _wrapped(name: str) -> str:
    """A long name in lines of at most 24 characters, broken after spaces, slashes, hyphens and underscores."""
    lines = [""]
    for piece in re.findall(r"[^\s_/-]+[\s_/-]*", name) or [name]:
        if lines[-1] and len(lines[-1] + piece.rstrip()) > 24:
            lines.append("")
        lines[-1] += piece
    return "\n".join(line.strip() for line in lines)
