"""A training step beside open_flamingo 2.0.1's: OPT-125M + ViT-B/32, the same weights, the same batches.

    python -m benchmarks.training_step [--repeats 5] [--json FILE] [--env DIR] [--threads N] [--clock processor]

A step is an optimizer step on two batches, as the OpenFlamingo recipe takes it: 8 pairs of an image and 32 tokens, and
4 documents of 256 tokens with 2 images each, for which the reference encodes 6 image slots. Each way runs in a process
of its own, kept alive; they take turns. Their losses are compared before anything is timed. The reference trains in
fp32 on a CPU (its bf16 is for CUDA), so our bf16 is compared with that.

On a shared machine, `--threads 1 --clock processor` counts processor time, which other work changes little.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from benchmarks import reference, results
from benchmarks.processes import CLOCKS, Worker
from flamboyance.images import ImageProcessor

EOC, IMAGE, EOS, SIDE = reference.WORDS, reference.WORDS + 1, 2, 224
LOSS_WEIGHTS = {"pairs": 0.2, "documents": 1.0}
RATE = 1e-4
CHECKED = 2  # steps whose losses are compared; the second depends on gradients
SLOTS = 6


def text(tokens: int, images: list[int], random: torch.Generator) -> torch.Tensor:
    """Ids (tokens,) with an `<image>` at each of the places, its text closed by `<|endofchunk|>`."""
    ids = torch.randint(3, reference.WORDS, (tokens,), generator=random)
    for place in images:
        ids[place] = IMAGE
        if place and place != images[0]:
            ids[place - 1] = EOC
    ids[-2:] = torch.tensor([EOC, EOS])
    return ids


def batch(name: str, tokens: int, places: list[list[int]], random: torch.Generator) -> dict[str, Any]:
    """The fields of a Batch, labelled as the reference labels pairs or documents."""
    ids = torch.stack([text(tokens, row, random) for row in places])
    seen = (ids == IMAGE).cumsum(1)
    labels = ids.masked_fill(ids == IMAGE, -100)
    if name == "documents":
        closed = (ids == EOC).cumsum(1) - (ids == EOC).long()  # endings before each token
        labels = labels.masked_fill((seen == 0) | (closed >= seen), -100)
    counts = tuple(len(row) for row in places)
    levels = torch.randint(0, 256, (sum(counts), 3, SIDE, SIDE), dtype=torch.uint8, generator=random)
    return {
        "input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels, "images_seen": seen,
        "images": levels, "media_counts": counts,
    }  # fmt: skip


def batches() -> dict[str, dict[str, Any]]:
    random = torch.Generator().manual_seed(0)
    places = [[0, 90], [6, 141], [0, 128], [19, 175]]
    return {"pairs": batch("pairs", 32, [[0]] * 8, random), "documents": batch("documents", 256, places, random)}


def write_batches(directory: Path) -> dict[str, str]:
    """A file for each side: uint8 pictures packed, or normalised ones in padded slots, as the reference loads them."""
    files = {side: str(directory / f"training_step_{side}.pt") for side in ("ours", "reference")}
    ours, theirs = batches(), {}
    for name, fields in ours.items():
        pixels = ImageProcessor.clip(SIDE).normalized(fields["images"]).split(fields["media_counts"])
        slots = torch.zeros(len(pixels), 1 if name == "pairs" else SLOTS, 3, SIDE, SIDE)
        for row, images in zip(slots, pixels, strict=True):
            row[: len(images)] = images
        theirs[name] = {"ids": fields["input_ids"], "mask": fields["attention_mask"], "slots": slots}
    torch.save(ours, files["ours"])
    torch.save(theirs, files["reference"])
    return files


def compare(ways: dict[str, Worker]) -> dict[str, float]:
    """Takes the first steps; the largest relative difference of each way's losses from the reference's.

    Raises:
        RuntimeError: fp32 differs by more than 1e-4.
    """
    steps = {name: [way("step")["losses"] for _ in range(CHECKED)] for name, way in ways.items()}
    wanted = [loss for losses in steps["reference"] for loss in losses.values()]
    differences = {}
    for name, found in steps.items():
        values = [loss for losses in found for loss in losses.values()]
        differences[name] = max(abs(a / b - 1) for a, b in zip(values, wanted, strict=True))
    if differences["fp32"] > 1e-4:
        raise RuntimeError(f"losses differ by {differences['fp32']:.1e}, more than 1e-4: {steps}")
    return differences


def row(ways: dict[str, Worker], repeats: int, clock: str) -> list[dict[str, Any]]:
    """Times of all ways, in turns; one result for each of ours."""
    differences = compare(ways)
    taken: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
    for turn in range(repeats):
        for name in list(ways)[turn % len(ways) :] + list(ways)[: turn % len(ways)]:
            time.sleep(0.3)  # the one before stops spinning
            taken[name].append(ways[name]("step"))
    peaks = {name: way("peak_memory") / 1e9 for name, way in ways.items()}
    seconds = {name: [step[CLOCKS[clock]] for step in steps] for name, steps in taken.items()}
    medians = {name: statistics.median(s) for name, s in seconds.items()}
    tokens = sum(b["input_ids"].numel() for b in batches().values())
    return [
        {
            "work": "f: training step", "peer": "open_flamingo 2.0.1", "dtype": name,
            "peer_seconds": medians["reference"], "seconds": medians[name],
            "ratio": medians["reference"] / medians[name],
            "peer_peak_gb": peaks["reference"], "peak_gb": peaks[name],
            "peer_tokens_per_s": tokens / medians["reference"], "tokens_per_s": tokens / medians[name],
            "loss_difference": differences[name],
            "peer_all_seconds": seconds["reference"], "all_seconds": seconds[name],
        }
        for name in ways if name != "reference"
    ]  # fmt: skip


def measure(
    directory: Path, repeats: int, threads: int, clock: str, checkpoint_activations: bool
) -> list[dict[str, Any]]:
    python = reference.environment(directory)
    weights = reference.weights(directory, python)
    files = write_batches(directory)
    common = {"rate": RATE, "weights": LOSS_WEIGHTS, "checkpoint_activations": checkpoint_activations}
    with ExitStack() as stack:
        theirs = stack.enter_context(reference.worker(python, directory / "reference.log"))
        theirs("load", paths=weights.paths, threads=threads, checkpoint=True)
        theirs("prepare", batches=files["reference"], **common)
        ways = {"reference": theirs}
        for precision in ("fp32", *(["bf16"] if results.has_bf16() else [])):
            ours = stack.enter_context(reference.own_worker(directory / f"ours_{precision}.log"))
            ours("load", paths=weights.paths, threads=threads)
            ours("prepare", batches=files["ours"], precision=precision, **common)
            ways[precision] = ours
        rows = row(ways, repeats, clock)
        for found in rows:
            ours = ways[found["dtype"]]
            ceiling = ours("matrix_rate", precision=found["dtype"], threads=threads, clock=clock)
            found["checkpoint_activations"] = checkpoint_activations
            found["gflop"] = ours("operations") / 1e9
            found["ceiling_gflops"] = ceiling / 1e9
            found["achieved_of_ceiling"] = found["gflop"] / found["seconds"] / found["ceiling_gflops"]
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    head = (
        "| activations | ours in | reference, s | ours, s | times as fast | tokens/s | reference, GB | ours, GB "
        "| memory | of the machine's products | losses differ |"
    )
    lines = [head, "|---|---|" + "---:|" * 9]
    for r in rows:
        kept = "checkpointed" if r["checkpoint_activations"] else "kept"
        lines.append(
            f"| {kept} | {r['dtype']} | {r['peer_seconds']:.2f} | {r['seconds']:.2f} | {r['ratio']:.2f} "
            f"| {r['tokens_per_s']:.0f} | {r['peer_peak_gb']:.2f} | {r['peak_gb']:.2f} "
            f"| {r['peak_gb'] / r['peer_peak_gb']:.2f} | {r['achieved_of_ceiling']:.2f} | {r['loss_difference']:.0e} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5, help="timed steps of each way (default: 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    parser.add_argument("--env", type=Path, default=reference.DEFAULT, help="where the reference is kept")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of each process")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="what is counted as time (default: wall)")
    arguments = parser.parse_args()
    before = os.getloadavg()[0]
    rows = [
        found
        for checkpoint in (False, True)
        for found in measure(arguments.env, arguments.repeats, arguments.threads, arguments.clock, checkpoint)
    ]
    print(table(rows))
    about = {
        "threads": arguments.threads, "clock": arguments.clock, "repeats": arguments.repeats,
        "load": [before, os.getloadavg()[0]],
    }  # fmt: skip
    note = (
        f"OPT-125M + ViT-B/32. Median of {arguments.repeats} optimizer steps (8 pairs of 32 tokens, 4 documents of 256 "
        f"tokens with 2 images), the reference in fp32, in turns in one run, {arguments.threads} thread(s), "
        f"{arguments.clock} time; the machine's load was {before:.1f} at the start. GB: the most that was resident. "
        "Of the machine's products: operations a second, of those of a large matrix product in the same precision."
    )
    results.write("training_step", rows, table(rows) + "\n\n" + note, about, arguments.json)


if __name__ == "__main__":
    main()
