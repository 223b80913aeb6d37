"""Flamboyance beside its peers: `make bench`, which is

    python -m benchmarks.bench [--work a,b,…] [--keep] [--repeats 5] [--json FILE] [--env DIR] [--threads N]
                               [--clock processor]

open_flamingo 2.0.1 runs in an environment of its own, made when missing, with the same weights and the same prompts;
in fp32, for its bf16 is for CUDA. Transformers' Idefics has random weights of the same shape, which is all it can have.
Where the processor multiplies in bfloat16 itself, Flamboyance in bf16 stands beside both.

    a  4-shot caption, beam 3, 20 tokens        e  2 and 1,000 candidates scored
    b  the same at 32 shots                     f  a training step (benchmarks.training_step)
    c  32 shots that were computed before       g  a 32-shot evaluation, once (benchmarks.evaluation; wall time)
    d  greedy, batch of 4                       h  import and load time

Every answer has 20 tokens, whatever the model would have liked. A run of all works goes to benchmarks/results/, and the
README's tables are written from the newest on each instruction set; so does a run of some works with --keep.
"""

from __future__ import annotations

import argparse
import os
import statistics
from pathlib import Path
from typing import Any

import torch

import flamboyance
from benchmarks import answers, evaluation, reference, results, starting, table, training_step
from benchmarks.processes import CLOCKS
from benchmarks.sizes import OPT_125M
from flamboyance.mini.evaluation import evaluate

LETTERS = "abcdefgh"


def measure(given: argparse.Namespace, letters: set[str]) -> list[dict[str, Any]]:
    """Results of the works with these letters, in their order."""
    rows, how = [], (given.repeats, given.threads, given.clock)

    def keep(found: list[dict[str, Any]]) -> None:
        """An hour is long: what was measured before a power cut is not lost."""
        rows.extend(found)
        results.write_rows(rows, given.env / "bench-unfinished.json")

    if letters & set("abcde"):
        keep(answers.measure(given.env, OPT_125M, letters, *how))
    for checkpointed in (False, True) if "f" in letters else ():
        found = training_step.measure(given.env, *how, checkpoint_activations=checkpointed)
        kept = "checkpointed" if checkpointed else "kept"
        keep([{**row, "work": f"{row['work']}, activations {kept}"} for row in found])
    if "h" in letters:
        keep(starting.measure(given.env, OPT_125M, *how))
    if "g" in letters:
        keep(evaluation.measure(given.env, queries=64, support=256, shots=32, threads=given.threads))
    return sorted(rows, key=lambda row: row["work"][0])


def mini_accuracy(trials: int = 64) -> dict[str, float]:
    """What bf16 costs a model that has learned something: flamingo-mini's share of right answers, by precision."""
    found = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        model, processor = flamboyance.load_mini()
        found[name] = statistics.mean(evaluate(model.to(dtype), processor, trials).values())
    return found


NOTE = """{size}. Times are medians of {repeats} ({clock} time, {threads} threads), the ways in turns; (g) ran once.
Of the reference, 16 of 64 queries in (g), 8 of 16 in (c) and 50 of 1,000 candidates in (e) were timed once, and scaled.
The machine's load was {load:.1f} at the start. GB: peak resident memory, in brackets the part that the work added.
σ: standard deviation of the logits. In brackets after a share of time: the share of the machine's ceiling that the part
reaches. The ceiling is the time of its operations at the rate of a large matrix product, or of its bytes at the memory
rate, whichever is longer; both rates are measured in the same run."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--work", default=",".join(LETTERS), help="letters of the works (default: all)")
    parser.add_argument("--repeats", type=int, default=5, help="timed answers of each way (default: 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    parser.add_argument("--keep", action="store_true", help="keep a run of some works too, for the README's tables")
    parser.add_argument("--env", type=Path, default=reference.DEFAULT, help="where the peers are kept")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of each process")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="what is counted as time (default: wall)")
    given = parser.parse_args()
    letters = set(given.work.split(","))
    if unknown := sorted(letters - set(LETTERS)):
        parser.error(f"there is no work {unknown[0]!r}; they are {', '.join(LETTERS)}")
    about: dict[str, Any] = {"size": OPT_125M.title}
    about |= {"threads": given.threads, "clock": given.clock, "repeats": given.repeats}
    about["load"] = os.getloadavg()[0]
    rows = measure(given, letters)
    text = "\n\n".join([table.full(rows), table.parts(rows), NOTE.format(**about)])
    if results.has_bf16() and letters & set("abcd"):
        about["mini_accuracy"] = mini_accuracy()
        text += "\n" + table.MINI.format(**about["mini_accuracy"])
    print(text)
    if letters == set(LETTERS) or given.keep:
        results.write("bench", rows, text, about, given.json)
        table.main()
    elif given.json:
        results.write_rows(rows, given.json)


if __name__ == "__main__":
    main()
