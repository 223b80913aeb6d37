"""Curves of training runs, from log.jsonl: losses as in OpenFlamingo's figure 5, gates, evaluations, gradient norms."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from flamboyance.figure_style import COLORS, INK, add_legend, new_figure, save, style_axes

LOG = "log.jsonl"
FORMATS = (".png", ".svg", ".pdf")
STYLES = ("-", "--", ":", "-.")  # runs also differ by these, once all colors are taken
AXES = {"steps": "optimizer steps", "images": "images seen", "tokens": "tokens seen"}
Against = Literal["steps", "images", "tokens"]


@dataclass(frozen=True)
class Log:
    """A run's log.

    Attributes:
        name: of the run: its path, as it was given.
        rows: an object a step, in order.
    """

    name: str
    rows: list[dict[str, Any]]

    def names(self, prefix: str) -> list[str]:
        """Fields that begin so, in order of appearance."""
        return list(dict.fromkeys(name for row in self.rows for name in row if name.startswith(prefix)))

    def series(self, name: str, against: Against = "steps") -> tuple[np.ndarray, np.ndarray]:
        """(x, y) of a field at the rows that have it; what was not finite is a gap (NaN). A list's y is (rows, n)."""
        x = self._axis(against)
        kept = [(at, row[name]) for at, row in zip(x, self.rows, strict=True) if name in row]
        return np.array([at for at, _ in kept]), np.array([value for _, value in kept], dtype=float)

    def _axis(self, against: Against) -> np.ndarray:
        if against == "steps":
            return np.array([row["step"] for row in self.rows], dtype=float)
        if not all(against in row for row in self.rows if row["step"]):
            raise ValueError(f"{self.name}: its log does not say how many {against} a step took; plot against steps.")
        # Before the first step, a model may have been evaluated.
        return np.cumsum([row[against] if row["step"] else 0 for row in self.rows], dtype=float)


def read(run: Path) -> Log:
    """Reads a run's directory, or its log.jsonl itself. A last line that is still being written is left out.

    Raises:
        OSError: there is no log.
        ValueError: the log is empty, or a line of it is damaged; says which.
    """
    path = run / LOG if run.is_dir() else run
    if not path.is_file():
        raise FileNotFoundError(f"no log to plot: {path} does not exist; give a run's directory, or its {LOG}")
    text = path.read_text(errors="replace", encoding="utf-8")
    lines = text.split("\n")
    rows = []
    for number, line in enumerate(lines[:-1] if not text.endswith("\n") else lines, 1):
        if line.strip():
            rows.append(_row(path, number, line))
    if not rows:
        raise ValueError(f"{path} is empty: the run has logged no step yet")
    return Log(str(run), rows)


def _row(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {number} is damaged: {error}; remove it to plot the rest") from error
    if not isinstance(row, dict) or not isinstance(row.get("step"), int):
        raise ValueError(f"{path}, line {number} is no step of a run: expected an object with a number as `step`")
    return row


def smoothed(values: np.ndarray, width: int) -> np.ndarray:
    """Running mean over the last `width` values, (n,) -> (n,); fewer at the start, and gaps are passed over."""
    known = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(known)])
    end = np.arange(1, len(values) + 1)
    begin = np.maximum(end - width, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (sums[end] - sums[begin]) / (counts[end] - counts[begin])


def draw(logs: Sequence[Log], output: Path, against: Against = "steps", smooth: int | None = None) -> None:
    """Writes a figure: a panel for each source's loss, then gates, evaluations and the gradient's norm.

    Args:
        output: .png, .svg or .pdf.
        smooth: steps in the running mean of losses and norms; None: a fiftieth of the run.

    Raises:
        ValueError: another suffix, or nothing was logged that can be drawn.
        ImportError: matplotlib is not installed.
    """
    if output.suffix.lower() not in FORMATS:
        raise ValueError(f"--output {output}: expected a file that ends in {', '.join(FORMATS)}")
    if smooth is not None and smooth < 1:
        raise ValueError(f"--smooth {smooth}: expected a number of steps, 1 or more")
    try:
        import matplotlib  # noqa: F401 (optional dependency)
    except ImportError as error:
        raise ImportError("plot needs matplotlib: pip install matplotlib") from error
    panels = _panels(logs)
    if not panels:
        raise ValueError(f"{', '.join(log.name for log in logs)}: no loss, gate or gradient was logged to plot")
    columns = min(len(panels), 2 if len(panels) <= 4 else 3)
    rows = math.ceil(len(panels) / columns)
    figure = new_figure(5.4 * columns, 3.5 * rows)
    for place, (title, fields) in enumerate(panels, 1):
        axes = figure.add_subplot(rows, columns, place)
        style_axes(axes, title, AXES[against], grid="both")
        axes.ticklabel_format(axis="x", style="sci", scilimits=(-3, 6), useMathText=True)
        for number, log in enumerate(logs):
            if fields[0].startswith("evaluation/"):
                _evaluations(axes, log, fields, number, against, alone=len(logs) == 1)
            else:
                _curve(axes, log, fields[0], number, against, smooth, alone=len(logs) == 1)
        _scale(axes, fields[0], logs)
    if len(logs) > 1:
        _legend(figure, logs)
    elif logs[0].names("gates/"):
        _depths(figure, logs[0])
    output.parent.mkdir(parents=True, exist_ok=True)
    save(figure, output)


def _panels(logs: Sequence[Log]) -> list[tuple[str, list[str]]]:
    """(title, fields) of what any of the runs has logged. Evaluations that differ in shots alone share a panel."""
    found: dict[str, list[str]] = {}
    for log in logs:
        sources = log.names("loss/")
        for name in sources or log.names("loss"):
            found[f"Loss: {name.removeprefix('loss/')}" if sources else "Loss"] = [name]
    for log in logs:
        for name in log.names("gates/"):
            found[f"Gates: {name.removeprefix('gates/').replace('_', '-')} (tanh)"] = [name]
    for log in logs:
        for name in log.names("evaluation/"):
            same = found.setdefault(f"Evaluation: {name.removeprefix('evaluation/').partition('@')[0]}", [])
            same += [name] * (name not in same)
    if any(log.names("gradient_norm") for log in logs):
        found["Gradient norm, before clipping"] = ["gradient_norm"]
    return list(found.items())


def _scale(axes: Any, field: str, logs: Sequence[Log]) -> None:
    if field.startswith("gates/"):
        axes.axhline(0, color=INK, linewidth=0.6)
    elif field.startswith("evaluation/"):
        low, high = axes.get_ylim()
        if low > -0.1 and high < 1.1:  # shares: the whole of 0 to 1, so that noise looks like noise
            axes.set_ylim(-0.03, 1.03)
    else:
        axes.set_ylim(_span([log.series(field)[1] for log in logs]))
    if field == "gradient_norm":
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if high < 20 * low else "")


def _curve(axes: Any, log: Log, field: str, number: int, against: Against, smooth: int | None, alone: bool) -> None:
    x, y = log.series(field, against)
    if not len(x):
        return
    color, style = COLORS[number % len(COLORS)], STYLES[number // len(COLORS) % len(STYLES)]
    if field.startswith("gates/"):
        shades = _shades(y.shape[1]) if alone else [color] * y.shape[1]
        for block, shade in enumerate(shades):
            axes.plot(x, y[:, block], color=shade, linestyle=style, linewidth=1.2 if alone else 0.8)
    else:
        width = smooth or max(1, len(y) // 50)
        if width > 1:
            axes.plot(x, y, color=color, linewidth=0.6, alpha=0.25)
        axes.plot(x, smoothed(y, width), color=color, linestyle=style, linewidth=1.8)


def _evaluations(axes: Any, log: Log, fields: list[str], number: int, against: Against, alone: bool) -> None:
    """A line for each number of shots: a colour each for a single run, a style each where runs have the colours."""
    for member, field in enumerate(fields):
        x, y = log.series(field, against)
        color = COLORS[(member if alone else number) % len(COLORS)]
        style = STYLES[0 if alone else member % len(STYLES)]
        shots = field.partition("@")[2]
        label = f"{shots} shots" if shots and number == 0 else None
        axes.plot(x, y, color=color, linestyle=style, marker="o", markersize=4, linewidth=1.6, label=label)
    if len(fields) > 1 and number == 0:
        axes.legend(frameon=False, labelcolor=INK, fontsize=9)


def _span(series: Sequence[np.ndarray]) -> tuple[float, float] | None:
    """What to show of the values of all runs: a few wild steps, as the first ones are, must not flatten the rest."""
    known = [y[np.isfinite(y)] for y in series]
    known = [y for y in known if len(y) >= 20]
    if len(known) < len(series):
        return None
    low = min(np.quantile(y, 0.002) for y in known)
    high = max(np.quantile(y, 0.99) for y in known)
    room = 0.05 * (high - low) or 0.05
    return (low - room if low > room else low * 0.95), high + room


def _shades(count: int) -> list[Any]:
    """Dark for the first block, light for the last: an order that the eye reads, also without colour."""
    from matplotlib import colormaps

    return list(colormaps["viridis"](np.linspace(0, 0.9, max(count, 1))))


def _legend(figure: Any, logs: Sequence[Log]) -> None:
    from matplotlib.lines import Line2D

    names = [log.name for log in logs]
    lines = [
        Line2D([], [], color=COLORS[i % len(COLORS)], linestyle=STYLES[i // len(COLORS) % len(STYLES)], linewidth=2)
        for i in range(len(names))
    ]
    add_legend(figure, lines, names)


def _depths(figure: Any, log: Log) -> None:
    """Which shade is which block, for the gates of a single run."""
    from matplotlib.lines import Line2D

    count = log.series(log.names("gates/")[0])[1].shape[1]
    shades = _shades(count)
    shown = sorted({0, count // 2, count - 1})
    lines = [Line2D([], [], color=shades[i], linewidth=2) for i in shown]
    names = [f"block {i + 1}" for i in shown]
    add_legend(figure, lines, names)
