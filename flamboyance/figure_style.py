"""How every figure looks: its colors, axes and legend."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flamboyance.files import replacing

# Okabe and Ito's palette: these colors stay distinct with any color blindness.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
INK, GRID = "#2b2326", "#dddddd"


def new_figure(width: float, height: float) -> Any:
    """An empty figure, made without pyplot: it needs no display and leaves the state of the process alone."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def style_axes(axes: Any, title: str = "", xlabel: str = "", ylabel: str = "", grid: str = "y") -> None:
    axes.set_title(title, loc="left", color=INK, fontsize=11)
    axes.set_xlabel(xlabel, color=INK)
    axes.set_ylabel(ylabel, color=INK)
    axes.grid(axis=grid, color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=9)


def add_legend(figure: Any, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """A legend below the figure, in as many columns as the longest label leaves room for."""
    longest = max((len(label) for label in labels), default=1)
    columns = max(1, min(4, int(13 * figure.get_figwidth() / (longest + 8))))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, labelcolor=INK, fontsize=9)


def save(figure: Any, file: Path) -> None:
    """Writes the figure atomically; the suffix says in which format."""
    with replacing(file) as part:
        figure.savefig(part, format=file.suffix[1:].lower(), dpi=160)
