"""The figures of OpenFlamingo's paper (arXiv 2308.01390) for one's own runs, as PNG and SVG.

figure-1-share-of-flamingo   Figure 1: bars, scores as a share of the corresponding Flamingo's, averaged over tasks and
                             numbers of shots; error bars are deviations over these settings.
figure-6-shots-random        Figure 6: a panel a task, score against shots with random demonstrations; error bars are
                             deviations over seeds. The last panels are averages of the tasks that all lines have,
                             one for each metric that several of these are measured by.
figure-6-shots-rices         the same with RICES, its Figure 10; Flamingo's scores are with random demonstrations.
figure-7-share-of-fine-tuned Figure 7: bars, scores as a share of the fine-tuned state of the art (Table 8), by task.
random-against-rices         what Tables 9, 11 and 12 compare: a panel a task, both ways of choosing demonstrations.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flamboyance.files import replacing
from flamboyance.reports.figure_series import (
    AVERAGE,
    INK,
    Series,
    Values,
    dress,
    legend,
    new_figure,
    series_of,
    words,
)
from flamboyance.reports.report import Report


def draw(report: Report, folder: Path) -> list[tuple[str, str]]:
    """Writes every figure there are scores for. Returns (PNG's name, what it shows); each has an SVG beside it.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib import rc_context
    except ImportError as error:
        raise ImportError("figures need matplotlib: pip install matplotlib") from error
    with rc_context({"text.parse_math": False}):  # a dollar sign in a task's name is one
        return _draw(report, folder)


def _draw(report: Report, folder: Path) -> list[tuple[str, str]]:
    from flamboyance.reports.figure_bars import share_of_fine_tuned, share_of_flamingo  # needs matplotlib

    series = series_of(report)
    modes = list(dict.fromkeys(one.mode for one in series if not one.published))
    made: list[tuple[str, str, Any]] = [("figure-1-share-of-flamingo", *share_of_flamingo(report, series))]
    for mode in modes:
        shown = [one for one in series if one.mode == mode or (one.published and _alone(one, series))]
        title = f"Score against shots: {words(mode)}"
        made.append((f"figure-6-shots-{mode}", title, _panels(report, shown, title)))
    made.append(("figure-7-share-of-fine-tuned", *share_of_fine_tuned(report, series)))
    if {"random", "rices"} <= set(modes):
        both = {one.name for one in series if one.mode == "rices"}
        shown = [one for one in series if one.name in both]
        title = "Score against shots: random demonstrations (dashed) and RICES"
        made.append(("random-against-rices", title, _panels(report, shown, title, by_mode=True)))
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, title, figure in made:
        if figure is not None:
            for suffix in ("png", "svg"):
                _save(figure, folder / f"{name}.{suffix}")
            written.append((f"{name}.png", title))
    return written


def _save(figure: Any, file: Path) -> None:
    with replacing(file) as part:
        figure.savefig(part, format=file.suffix[1:], dpi=160)


def _alone(one: Series, series: Sequence[Series]) -> bool:
    """Whether a model is published with random demonstrations only: it then stands beside every other mode too."""
    return sum(other.name == one.name for other in series) == 1


def _panels(report: Report, series: list[Series], title: str, by_mode: bool = False) -> Any:
    """A panel per task, then one per metric: the average over the tasks that are measured by it."""
    own = [one for one in series if not one.published]
    tasks = [task for task in dict.fromkeys(t for t, _, _ in report.keys) if any(_has(one, task) for one in own)]
    shots = sorted({number for one in own for _, number in one.values})
    if by_mode:  # where a run has both ways
        ways = {task: {one.mode for one in series if not one.published and _has(one, task)} for task in tasks}
        tasks = [task for task in tasks if len(ways[task]) > 1]
    if not tasks:
        return None
    common = [task for task in tasks if all(_has(one, task) for one in series)]
    panels = [[task] for task in tasks] + [group for group in report.like(common) if len(group) > 1]
    columns = min(len(panels), 4 if len(panels) > 6 else 3)
    rows = math.ceil(len(panels) / columns)
    figure = new_figure(max(3.3 * columns, 5.2), 2.8 * rows + 0.9)
    for place, group in enumerate(panels, 1):
        axes = figure.add_subplot(rows, columns, place)
        task = group[0] if len(group) == 1 else AVERAGE
        titles = [report.title(one) for one in group]
        several = f"Average of {' and '.join(titles) if len(group) == 2 else f'{len(group)} tasks'}"
        dress(axes, titles[0] if len(group) == 1 else several, report.metric(group[0]))
        for number, one in enumerate(series):
            values = _averaged(one, group, shots) if task == AVERAGE else one.values
            _line(axes, one, values, task, shots, 0.05 * (number - (len(series) - 1) / 2), by_mode)
        axes.set_xticks(range(len(shots)), [str(one) for one in shots])
        axes.set_xlim(-0.35, len(shots) - 0.65)
        if place > len(panels) - columns:
            axes.set_xlabel("shots", color=INK)
    figure.suptitle(title, x=0.01, ha="left", color=INK, fontsize=12)
    handles: dict[str, Any] = {}  # of every panel, for a series may have points in some alone
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    legend(figure, list(handles.values()), list(handles))
    return figure


def _has(one: Series, task: str) -> bool:
    return any(name == task for name, _ in one.values)


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
        label=f"{one.label}: {words(one.mode)}" if by_mode else one.label,
        color=one.color,
        marker=one.marker,
        markersize=5 if not one.published else 4,
        linewidth=2 if not one.published else 1.3,
        linestyle=(0, (4, 2)) if dashed else "-",
        markerfacecolor="white" if dashed else one.color,
        capsize=2.5,
        elinewidth=1,
    )
