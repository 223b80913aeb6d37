"""Trains flamingo-mini from scratch: `python -m scripts.pretrain_mini`.

Finished stages are kept, and an interrupted one is resumed.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from scripts.pretrain_mini import evaluate, export, language, tower


def main() -> None:
    """Tower, language model, Flamingo, weights, table."""
    parser = argparse.ArgumentParser(prog="python -m scripts.pretrain_mini", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/mini"), help="where stages are kept (runs/mini)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (2)")
    parser.add_argument("--trials", type=int, default=200, help="held-out trials per kind and number of shots (200)")
    parser.add_argument("--only", choices=("tower", "language", "flamingo", "evaluate"), help="one stage alone")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    for name, stage in (("tower", tower.train), ("language", language.train), ("flamingo", export.train_and_save)):
        if given.only in (None, name):
            began = time.time()
            stage(given.output)
            print(f"[{name}] {(time.time() - began) / 60:.1f} min", flush=True)
    if given.only in (None, "evaluate"):
        model, processor = export.load(given.output / "flamingo-mini")
        rows = evaluate.table(model, processor, given.trials)
        evaluate.save(rows, given.output)
        export.write_card(
            given.output / "flamingo-mini", model, evaluate.markdown(rows), "Made by `python -m scripts.pretrain_mini`."
        )
        print(evaluate.markdown(rows))


if __name__ == "__main__":
    main()
