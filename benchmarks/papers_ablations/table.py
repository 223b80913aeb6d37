"""The trainings' answers as a table and a figure: `docs/ablations.md`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.papers_ablations.data import NAMING, TASK, WORDS
from benchmarks.papers_ablations.variants import VARIANTS
from flamboyance.evaluation.metrics.intervals import wilson
from flamboyance.figure_style import COLORS, INK, new_figure, save, style_axes
from flamboyance.files import write_text

DOCS = Path(__file__).parents[2] / "docs"
PAGE, FIGURE = DOCS / "ablations.md", DOCS / "pictures" / "ablations.png"
BEGIN, END = "<!-- table -->", "<!-- end of the table -->"
# The columns: what a file of the world is called here, and its shots.
COLUMNS: Mapping[tuple[str, int], str] = {
    (NAMING, 0): "names, 0 shots",
    (WORDS, 4): "two words, 4",
    (TASK, 4): "which task, 4",
}
CHANCE: Mapping[tuple[str, int], float] = {
    (WORDS, 4): 1 / 2,
    (TASK, 4): 1 / 7,
}

Row = dict[str, Any]


def by_variant(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The trainings of each variant that has any, in the table's order."""
    return {name: some for name in VARIANTS if (some := [row for row in rows if row["variant"] == name])}


def answers(trainings: Sequence[Row], column: tuple[str, int]) -> list[Row]:
    """`right` and `total` of each seed's model."""
    return [one for row in trainings for one in row["rows"] if (one["task"], one["shots"]) == column]


def shares(trainings: Sequence[Row], column: tuple[str, int]) -> list[float]:
    return [one["right"] / one["total"] for one in answers(trainings, column)]


def spread(trainings: Sequence[Row], column: tuple[str, int]) -> tuple[float, float, float] | None:
    """The mean over the seeds, and an interval: the trials' 95 %, or from the lowest seed to the highest if wider. None
    if no seed was asked."""
    found, asked = shares(trainings, column), answers(trainings, column)
    if not found:
        return None
    low, high = wilson(sum(one["right"] for one in asked), sum(one["total"] for one in asked))
    return sum(found) / len(found), min(low, *found), max(high, *found)


def markdown(rows: Sequence[Row]) -> str:
    lines = [f"| | {' | '.join(COLUMNS.values())} | seeds | trained, M | TFLOP a step | the papers |"]
    lines.append(f"|---|{'---:|' * (len(COLUMNS) + 3)}---|")
    group = ""
    for name, trainings in by_variant(rows).items():
        variant = VARIANTS[name]
        if variant.group not in (group, "Baseline"):
            lines.append(f"| *{variant.group}* |{' |' * (len(COLUMNS) + 4)}")
        group = variant.group
        cells = []
        for column in COLUMNS:
            found = spread(trainings, column)
            cells.append("" if found is None else f"{found[0]:.0%} ({found[1]:.0%}–{found[2]:.0%})")
        operations = [row["tflop"] for row in trainings if "tflop" in row]  # the first trainings did not count them
        cells += [
            str(len(trainings)),
            f"{trainings[0]['trained'] / 1e6:.1f}",
            f"{sum(operations) / len(operations):.2f}" if operations else "",
            variant.paper,
        ]
        lines.append(f"| {variant.title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def figure(rows: Sequence[Row]) -> Any:
    """Bars for each variant, with a dot for each seed; the baseline as a line."""
    found = by_variant(rows)
    drawn = new_figure(3.2 * len(COLUMNS) + 2, 0.9 + 0.3 * len(found))
    axes = drawn.subplots(1, len(COLUMNS), sharey=True)
    names = list(found)[::-1]
    for (column, title), one in zip(COLUMNS.items(), axes, strict=True):
        style_axes(one, title, "% right", grid="x")
        for place, name in enumerate(names):
            if (measured := spread(found[name], column)) is None:
                continue
            mean, low, high = (100 * value for value in measured)
            around = [[mean - low], [high - mean]]
            color = COLORS[1] if name == "baseline" else COLORS[0]
            one.barh(place, mean, 0.7, color=color, alpha=0.75, xerr=around, ecolor=INK, capsize=2)
            dots = [100 * share for share in shares(found[name], column)]
            one.plot(dots, [place] * len(dots), "o", color=INK, markersize=3)
        one.set_xlim(0, 100)
        if (baseline := spread(found.get("baseline", []), column)) is not None:
            one.axvline(100 * baseline[0], color=COLORS[1], linewidth=1)
        if column in CHANCE:
            one.axvline(100 * CHANCE[column], color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
    axes[0].set_yticks(range(len(names)), [VARIANTS[name].title for name in names])
    return drawn


def write(rows: Sequence[Row]) -> None:
    """Puts the table into the page, and draws the figure."""
    text = PAGE.read_text(encoding="utf-8")
    pattern = re.compile(f"{BEGIN}.*?{END}", re.DOTALL)
    write_text(PAGE, pattern.sub(lambda _: f"{BEGIN}\n{markdown(rows)}\n{END}", text))
    save(figure(rows), FIGURE)
