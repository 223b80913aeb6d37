"""Accuracy against shots, as a PNG for light pages and one for dark ones."""

from pathlib import Path
from typing import Any

from flamboyance.demo.results import Results
from flamboyance.files import replacing

LIGHT, DARK = "accuracy.png", "accuracy-dark.png"
_MARKERS = "osD^"
_INKS = {
    LIGHT: ("#ffffff", "#2b2326", "#d9d2d4", ("#0b7285", "#b8621b", "#5f3dc4", "#d6336c")),
    DARK: ("#211a1d", "#efe7e9", "#4a4044", ("#3bc9db", "#ffa94d", "#b197fc", "#ff8fb1")),
}


def write_plots(results: Results, folder: Path) -> None:
    """Writes `accuracy.png` and `accuracy-dark.png`."""
    for name in _INKS:
        with replacing(folder / name) as part:
            _draw(results, name).savefig(part, format="png", dpi=160)


def _draw(results: Results, name: str) -> Any:
    # A figure of its own, without pyplot: no display and no state of the process is touched.
    from matplotlib.figure import Figure

    paper, ink, line, colors = _INKS[name]
    figure = Figure(figsize=(7.2, 4.4), layout="constrained", facecolor=paper)
    axes = figure.add_subplot(facecolor=paper)
    places = range(len(results.shots))
    for number, task in enumerate(results.tasks):
        cells = [task.cell(shots) for shots in results.shots]
        shares = [100 * cell.accuracy for cell in cells]
        ends = [(100 * low, 100 * high) for low, high in (cell.interval for cell in cells)]
        # At 0 and 100 % rounding can put the share outside its interval by a hair.
        below = [max(share - low, 0) for share, (low, _) in zip(shares, ends, strict=True)]
        above = [max(high - share, 0) for share, (_, high) in zip(shares, ends, strict=True)]
        aside = 0.05 * (number - (len(results.tasks) - 1) / 2)  # so that error bars stand side by side
        axes.errorbar(
            [place + aside for place in places],
            shares,
            yerr=[below, above],
            label=task.task.title,
            color=colors[number % len(colors)],
            marker=_MARKERS[number % len(_MARKERS)],
            linewidth=2,
            capsize=3,
            elinewidth=1.2,
        )
        if task.task.chance is not None:
            axes.axhline(
                100 * task.task.chance,
                color=colors[number % len(colors)],
                linestyle=(0, (4, 3)),
                linewidth=1,
                zorder=0,
                label=f"{task.task.title}: chance",
            )
    axes.set_title(f"{results.model}: accuracy on held-out pictures", color=ink, loc="left")
    axes.set_xlabel("shots (demonstrations before the query)", color=ink)
    axes.set_ylabel("right answers, % (95 % interval)", color=ink)
    axes.set_xticks(list(places), [str(shots) for shots in results.shots])
    axes.set_ylim(-3, 103)
    axes.tick_params(colors=ink)
    axes.grid(axis="y", color=line, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(line)
    handles, labels = axes.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda i: labels[i].endswith(": chance"))  # chance after what it belongs to
    handles, labels = [handles[i] for i in order], [labels[i] for i in order]
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, labelcolor=ink)
    return figure
