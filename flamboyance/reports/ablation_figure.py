"""Scores with changed demonstrations as bars, a panel for each task, way of choosing and number of shots."""

from __future__ import annotations

import math
from typing import Any

from flamboyance.evaluation import changes
from flamboyance.figure_style import COLORS, INK, new_figure, style_axes
from flamboyance.reports.ablation import Ablation, title
from flamboyance.reports.evaluation_run import EvaluationRun
from flamboyance.reports.report import Report

MOST = 12  # panels of a figure
WHOLE, CHANGED_IMAGES, CHANGED_TEXTS, WITHOUT = COLORS[0], COLORS[1], COLORS[4], "#999999"


def ablation_figures(report: Report) -> list[Any]:
    """Figures of up to `MOST` panels; none without changed demonstrations. Error bars are the paired 95 % intervals of
    the change."""
    runs = zip(report.runs, report.ablations, strict=False)
    found = [(run, one) for run, some in runs for one in some if one.why_not is None]
    return [_figure(report, found[start : start + MOST]) for start in range(0, len(found), MOST)]


def _figure(report: Report, found: list[tuple[EvaluationRun, Ablation]]) -> Any:
    columns = min(len(found), 3)
    rows = math.ceil(len(found) / columns)
    tall = max(len(one.parts) + len(one.baselines) for _, one in found) + 2
    figure = new_figure(max(6.0, 4.6 * columns), (0.9 + 0.27 * tall) * rows)
    for place, (run, one) in enumerate(found, 1):
        axes = figure.add_subplot(rows, columns, place)
        shown = f"{report.heading(run, one.task)}, {one.mode}, {one.shots} shots"
        style_axes(axes, shown, report.metric(one.task), grid="x")
        bars: list[tuple[str, float, tuple[float, float] | None, str]] = [("as they are", one.whole, None, WHOLE)]
        for part in (*one.parts, *one.baselines):
            ends = (one.whole + part.interval[0], one.whole + part.interval[1])
            color = CHANGED_IMAGES if part.name in changes.IMAGES else CHANGED_TEXTS
            bars.append((title(part.name), part.score, ends, color if part in one.parts else WITHOUT))
        bars.append(("none: 0 shots", one.zero, None, WITHOUT))
        for height, (_, score, ends, color) in enumerate(reversed(bars)):
            around = None if ends is None else [[max(0.0, score - ends[0])], [max(0.0, ends[1] - score)]]
            axes.barh(height, score, 0.72, xerr=around, color=color, ecolor=INK, capsize=2)
        axes.axvline(one.whole, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.set_yticks(range(len(bars)), [name for name, *_ in reversed(bars)])
    return figure
