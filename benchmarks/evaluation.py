"""A 32-shot evaluation beside open_flamingo 2.0.1's: OPT-125M + ViT-B/32, the same weights, the same items.

    python -m benchmarks.evaluation [--queries N] [--peer-queries N] [--support N] [--shots N] [--json FILE] [--env DIR]
        [--threads N]

Captions of a data set in COCO's files, whose pictures are noise; random demonstrations, beam 3, 20 tokens, batches of
8: the reference's own defaults. The reference computes each query separately, so only its first queries are timed,
and scaled. Under its protocol the same seed draws the same demonstrations, so both answer the same prompts; their
answers are compared. Each way runs once, in a process of its own, from files to answers; loading the model is not
counted.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import reference, results
from benchmarks.processes import Worker
from flamboyance.files import write_json

HERE = Path(__file__).parent
SIDE = 256
WORDS = 10  # of a caption
SEED = 42
BATCH = 8


def write_data(folder: Path, support: int, queries: int) -> Path:
    """A data set in COCO's files; written when missing."""
    folder = folder / f"coco-{support}-{queries}"
    if (folder / "dataset_coco.json").is_file():
        return folder
    random = np.random.default_rng(0)
    images = []
    for number in range(support + queries):
        split, part = ("train", "train2014") if number < support else ("test", "val2014")
        (folder / part).mkdir(parents=True, exist_ok=True)
        name = f"COCO_{part}_{number:012d}.jpg"
        coarse = Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(folder / part / name, quality=90)
        caption = " ".join(f"w{i}" for i in random.integers(5, 20000, WORDS))
        images.append(
            {
                "filepath": part, "filename": name, "split": split, "cocoid": number, "imgid": number,
                "sentids": [number], "sentences": [{"raw": caption, "sentid": number, "imgid": number}],
            }
        )  # fmt: skip
    write_json(folder / "dataset_coco.json", {"images": images, "dataset": "coco"}, indent=None)
    return folder


def measure(
    directory: Path, queries: int, support: int, shots: int, threads: int, peer_queries: int = 16
) -> list[dict[str, Any]]:
    python = reference.environment(directory)
    weights = reference.weights(directory, python)
    asked = {"data": str(write_data(directory, support, queries)), "shots": shots, "queries": queries}
    asked |= {"support": support, "batch_size": BATCH, "seed": SEED}
    found = {}
    ways: dict[str, list[Any]] = {"reference": [python, HERE / "reference_evaluation.py"]}
    for precision in ("fp32", *(["bf16"] if results.has_bf16() else [])):
        ways[precision] = [sys.executable, "-m", "benchmarks.flamboyance_evaluation"]
    for name, command in reversed(ways.items()):
        with Worker(command, directory / f"evaluation_{name}.log") as worker:
            extra = {"checkpoint": True} if name == "reference" else {"precision": name}
            worker("load", paths=weights.paths, threads=threads, **extra)
            worker("watch_memory")
            fewer = {"most": peer_queries} if name == "reference" else {}
            found[name] = worker("evaluate", **asked, **fewer)
            found[name]["peak_gb"] = worker("peak_memory") / 1e9
            print(name, f"{found[name]['seconds']:.1f} s", found[name]["parts"], flush=True)
    theirs = found.pop("reference")
    share = len(theirs["captions"]) / queries
    theirs["seconds"] /= share
    theirs["parts"] = {part: seconds / share for part, seconds in theirs["parts"].items()}
    return [
        {
            "work": f"g: {shots}-shot evaluation, {queries} queries", "peer": "open_flamingo 2.0.1", "dtype": name,
            "peer_seconds": theirs["seconds"], "seconds": ours["seconds"],
            "ratio": theirs["seconds"] / ours["seconds"],
            "peer_peak_gb": theirs["peak_gb"], "peak_gb": ours["peak_gb"],
            "peer_parts": theirs["parts"], "parts": ours["parts"], "peer_queries": len(theirs["captions"]),
            "same_answers": float(np.mean([ours["captions"][i] == said for i, said in theirs["captions"].items()])),
        }
        for name, ours in found.items()
    ]  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| | seconds | images | prompts | decoding | peak, GB | same answers |", "|---|" + "---:|" * 6]
    first = rows[0]
    parts = [("reference", first["peer_seconds"], first["peer_parts"], first["peer_peak_gb"], 1.0)]
    parts += [(f"ours, {r['dtype']}", r["seconds"], r["parts"], r["peak_gb"], r["same_answers"]) for r in rows]
    for name, seconds, part, peak, same in parts:
        figures = " | ".join(f"{part[key]:.1f}" for key in ("media", "prompt", "decoding"))
        lines.append(f"| {name} | {seconds:.1f} | {figures} | {peak:.2f} | {same:.0%} |")
    for r in rows:
        ratios = " | ".join(f"{r['peer_parts'][k] / r['parts'][k]:.1f}" for k in ("media", "prompt", "decoding"))
        memory = r["peer_peak_gb"] / r["peak_gb"]
        lines.append(f"| times as fast, {r['dtype']} | **{r['ratio']:.1f}** | {ratios} | {memory:.1f} | |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    for name, default in (("queries", 64), ("peer-queries", 16), ("support", 256), ("shots", 32)):
        parser.add_argument(f"--{name}", type=int, default=default, help="default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    parser.add_argument("--env", type=Path, default=reference.DEFAULT, help="where the reference is kept")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of each process")
    given = parser.parse_args()
    before = os.getloadavg()[0]
    rows = measure(given.env, given.queries, given.support, given.shots, given.threads, given.peer_queries)
    print(table(rows))
    note = (
        f"OPT-125M + ViT-B/32; {given.queries} queries, {given.shots} random demonstrations each from {given.support}, "
        f"beam 3, 20 tokens, batches of {BATCH}, once each, {given.threads} threads; the reference's time is that for "
        f"{rows[0]['peer_queries']} queries, scaled. The machine's load was "
        f"{before:.1f} at the start. Images: reading, tower and "
        "resampler; prompts: the language model's pass over them. Peak: the most that was resident, models included."
    )
    about = {"threads": given.threads, "load": before}
    results.write("evaluation", rows, table(rows) + "\n\n" + note, about, given.json)


if __name__ == "__main__":
    main()
