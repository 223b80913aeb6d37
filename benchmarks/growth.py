"""How time and memory grow with shots, images, batch and new tokens: a table and curves in benchmarks/results/.

    python -m benchmarks.growth [--repeats 5] [--env DIR] [--threads N] [--clock processor] [--precision bf16]

Greedy captions by a model of random weights. All points are measured in turns. Two things are to be seen: what a decode
step takes does not depend on the number of images; and a further shot needs the memory of its latents and cache alone.
"""

from __future__ import annotations

import argparse
import os
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import reference, results
from benchmarks.parts import NAMES
from benchmarks.processes import CLOCKS, Worker
from benchmarks.sizes import OPT_125M
from benchmarks.works import NEW_TOKENS, QUERIES, SHOTS, WORDS, caption, write_images
from flamboyance.figure_style import new_figure, save, style_axes

TEXT = 512  # tokens of all demonstrations together, where images alone grow
KEPT = (8, 32)  # shots between which the memory of a further one is measured
COLORS = {"vision": "#0072B2", "resampler": "#56B4E9", "prefill": "#009E73", "decoding": "#D55E00", "rest": "#999999"}


@dataclass(frozen=True)
class Point:
    """A prompt: demonstrations of some words each, queries at a time, and tokens to be generated."""

    axis: str
    shots: int = 4
    queries: int = 1
    new_tokens: int = NEW_TOKENS
    words: int = WORDS

    @property
    def x(self) -> int:
        return {"shots": self.shots, "images": self.shots + 1, "batch": self.queries}.get(self.axis, self.new_tokens)

    @property
    def tokens(self) -> int:
        return self.shots * (self.words + 4) + 3

    def asked(self) -> dict[str, Any]:
        """As `Work.asked`; the same few images come again and again, and are computed every time."""
        return {
            "demonstrations": [caption(number, self.words) for number in range(self.shots)],
            "images": [[*(i % SHOTS for i in range(self.shots)), SHOTS + q % QUERIES] for q in range(self.queries)],
            "generation": {"max_new_tokens": self.new_tokens, "min_new_tokens": self.new_tokens},
            "candidates": [],
            "batch_size": self.queries,
        }


POINTS = (
    *(Point("shots", shots=n) for n in (0, 1, 2, 4, 8, 16, 32, 64)),
    *(Point("images", shots=n, words=TEXT // n - 4) for n in (1, 2, 4, 8, 16, 32, 64)),
    *(Point("batch", queries=n) for n in (1, 2, 4, 8, 16)),
    *(Point("new tokens", new_tokens=n) for n in (5, 10, 20, 40, 80)),
)


def measure(worker: Worker, images: str, repeats: int, clock: str) -> list[dict[str, Any]]:
    """A row for each point: medians of seconds, in all and by part, and of a decode step; peak memory."""
    taken: dict[Point, list[dict[str, Any]]] = {point: [] for point in POINTS}
    peaks: dict[Point, list[int]] = {point: [] for point in POINTS}
    for _ in range(repeats):
        for point in POINTS:
            worker("prepare", images=images, asked=point.asked(), known=False)
            worker("watch_memory")
            taken[point].append(worker("answer"))
            peaks[point].append(worker("peak_memory"))
        print(".", end="", flush=True)
    print()
    rows = []
    for point, answers in taken.items():
        parts = {name: statistics.median(answer["parts"][name] for answer in answers) for name in NAMES}
        step = statistics.median(answer["parts"]["decoding"] / answer["calls"]["decoding"] for answer in answers)
        rows.append(
            {
                "axis": point.axis, "x": point.x, "prompt_tokens": point.tokens, "parts": parts, "step_seconds": step,
                "seconds": statistics.median(answer[CLOCKS[clock]] for answer in answers),
                "peak_gb": statistics.median(peaks[point]) / 1e9,
            }
        )  # fmt: skip
    return rows


def shot_memory(worker: Worker, images: str, repeats: int) -> dict[str, float]:
    """Bytes of a further shot that FewShotTask keeps: measured, and of its latents, their keys and values and cache."""
    few, many = (Point("kept", shots=shots) for shots in KEPT)
    further = many.shots - few.shots
    found = [[worker("kept", images=images, asked=point.asked()) for point in (few, many)] for _ in range(repeats)]
    kept = worker("counts")["cache_bytes"]
    needed = kept["image"] + (many.tokens - few.tokens) / further * kept["token"]
    measured = statistics.median(after - before for before, after in found) / further
    return {"measured": measured, "needed": needed, "ratio": measured / needed}


def step_ratio(rows: list[dict[str, Any]], axis: str, low: int, high: int) -> float:
    """How many times as long a decode step takes at one end of an axis as at the other."""
    steps = {row["x"]: row["step_seconds"] for row in rows if row["axis"] == axis}
    return steps[high] / steps[low]


def table(rows: list[dict[str, Any]]) -> str:
    head = f"| axis | | prompt tokens | seconds | {' | '.join(NAMES)} | decode step, ms | peak, GB |"
    lines = [head, "|---|" + "---:|" * (5 + len(NAMES))]
    for r in rows:
        parts = " | ".join(f"{r['parts'][name]:.2f}" for name in NAMES)
        lines.append(
            f"| {r['axis']} | {r['x']} | {r['prompt_tokens']} | {r['seconds']:.2f} | {parts} "
            f"| {r['step_seconds'] * 1e3:.1f} | {r['peak_gb']:.2f} |"
        )
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]], title: str, file: Path) -> None:
    """Seconds by part, milliseconds of a decode step, and peak memory, against each axis."""
    axes = list(dict.fromkeys(row["axis"] for row in rows))
    figure = new_figure(3.2 * len(axes), 7.5)
    grid = figure.subplots(3, len(axes), sharey="row", squeeze=False)
    for panel in grid.flat:
        style_axes(panel, grid="both")
    for column, axis in enumerate(axes):
        points = [row for row in rows if row["axis"] == axis]
        x = [row["x"] for row in points]
        seconds, step, memory = grid[:, column]
        seconds.stackplot(x, [[row["parts"][name] for row in points] for name in NAMES], colors=COLORS.values())
        step.plot(x, [row["step_seconds"] * 1e3 for row in points], "o-", color=COLORS["decoding"])
        memory.plot(x, [row["peak_gb"] for row in points], "o-", color=COLORS["vision"])
        memory.set_xlabel(f"images, {TEXT + 3} tokens of text" if axis == "images" else axis)
    for panel, label in zip(grid[:, 0], ("seconds", "decode step, ms", "peak memory, GB"), strict=True):
        panel.set_ylabel(label)
    for panel in grid.flat:  # once everything is drawn, as the panels of a line share their limits
        panel.set_ylim(bottom=0)
        panel.locator_params(axis="x", integer=True)
    figure.legend(grid[0, 0].collections, NAMES, loc="outside upper center", ncols=len(NAMES), title=title)
    save(figure, file)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5, help="timed answers of each point (default: 5)")
    parser.add_argument("--env", type=Path, default=reference.DEFAULT, help="where the weights are kept")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="what is counted as time (default: wall)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    given = parser.parse_args()
    load, size = os.getloadavg()[0], OPT_125M
    weights = reference.weights(given.env, reference.environment(given.env), size)
    images = str(write_images(given.env))
    with reference.own_worker(given.env / "growth.log", "flamboyance_answers") as worker:
        how = {
            "cross_attn_every_n_layers": size.cross_attn_every_n_layers,
            "precision": given.precision,
            "clock": given.clock,
        }
        worker("load", paths=weights.paths, threads=given.threads, **how)
        rows = measure(worker, images, given.repeats, given.clock)
        shot = shot_memory(worker, images, given.repeats)
    note = (
        f"{size.title}, {given.precision}, greedy; medians of {given.repeats}, {given.threads} threads, {given.clock} "
        f"time; the machine's load was {load:.1f} at the start. "
        f"A decode step at 32 shots takes {step_ratio(rows, 'shots', 1, 32):.3f} times that at 1 shot, whose text is "
        f"shorter; with 33 images in the same length of text, {step_ratio(rows, 'images', 2, 33):.3f} times that with "
        f"2. A further shot of FewShotTask keeps {shot['measured'] / 1e6:.2f} MB; its latents, their keys and values "
        f"and the cache of its tokens are {shot['needed'] / 1e6:.2f} MB: {shot['ratio']:.2f} times."
    )
    text = table(rows) + "\n\n" + note
    print(text)
    about = {"threads": given.threads, "clock": given.clock, "repeats": given.repeats, "load": load, "shot": shot}
    stem = results.write(f"growth_{given.precision}", rows, text, about, None)
    draw(rows, f"{size.title}, {given.precision}", stem.with_suffix(".png"))


if __name__ == "__main__":
    main()
