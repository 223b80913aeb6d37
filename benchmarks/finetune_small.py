"""What a newcomer's fine-tune of flamingo-small learns from 40 pictures with captions in a style of their own.

    python -m benchmarks.finetune_small runs/style

The pictures are those of the package that flamingo-small was not trained on: drawings by the held-out artist, and
held-out photographs. 40 of them, chosen at random, get captions such as "LOOK! a dog :)", and are trained on by
`flamboyance train finetune`. The others are captioned without demonstrations, before and after. Two shares are
counted: captions in the style, whatever they name, and captions that hold the thing's name.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import time
from pathlib import Path

import numpy as np

import flamboyance as fl
from flamboyance import catalog, cli
from flamboyance.evaluation.metrics.intervals import wilson
from flamboyance.files import read_json_lines, write_text
from flamboyance.small.benchmarks import ARTIST, HOME

TRAINED = 40
STYLE = re.compile(r"LOOK! .+ :\)")


def pictures() -> list[dict]:
    """The rows of pictures.jsonl that no training has seen, one for each thing and artist."""
    rows = [row for _, row in read_json_lines(HOME / "pictures.jsonl")]
    return [row for row in rows if row["variant"] == 0 and row["collection"] in (ARTIST, "gcompris")]


def caption(row: dict) -> str:
    return f"LOOK! {row['phrase']} :)"


def write_photos(folder: Path, rows: list[dict]) -> None:
    """A folder of images, each with its text beside it."""
    folder.mkdir(parents=True)
    for row in rows:
        image = HOME / row["file"]
        shutil.copyfile(image, folder / image.name)
        write_text(folder / f"{image.stem}.txt", caption(row) + "\n")


def counted(model: str, rows: list[dict]) -> tuple[int, int, list[str]]:
    """How many captions are in the style, how many hold the thing's name, and the captions."""
    task = fl.FewShotTask(*catalog.resolve(model).open())
    said = task([HOME / row["file"] for row in rows])
    style = sum(STYLE.fullmatch(text) is not None for text in said)
    named = sum(
        re.search(rf"\b{re.escape(row['concept'].lower())}\b", text.lower()) is not None
        for row, text in zip(rows, said, strict=True)
    )
    return style, named, said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="a new folder, for the pictures and the run")
    parser.add_argument("--steps", type=int, default=60, help="default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--learning-rate", type=float, help="default: the recipe's")
    given = parser.parse_args()
    rows = pictures()
    order = np.random.default_rng(0).permutation(len(rows))
    trained, asked = [rows[i] for i in order[:TRAINED]], [rows[i] for i in order[TRAINED:]]
    write_photos(given.folder / "photos", trained)
    before = counted("small", asked)
    run, began, computed = given.folder / "run", time.monotonic(), time.process_time()
    settings = [f"steps={given.steps}", f"batch_size={given.batch_size}", "held_out=0"]
    settings += [] if given.learning_rate is None else [f"learning_rate={given.learning_rate:g}"]
    status = cli.main(
        ["train", "finetune", f"data={given.folder / 'photos'}", "model=small", f"output={run}", *settings]
    )
    if status:
        raise SystemExit(status)
    took, processor = time.monotonic() - began, time.process_time() - computed
    after = counted(str(run / "model"), asked)
    print(f"\ntrained in {took:.0f} s ({processor:.0f} s of the processor)")
    print(f"\n| {len(asked)} held-out pictures | before | after |\n|---|---:|---:|")
    for name, old, new in zip(("in the style", "with the thing's name"), before, after, strict=False):
        print(f"| {name} | {_share(old, len(asked))} | {_share(new, len(asked))} |")
    print("\n| thing | before | after |\n|---|---|---|")
    for row, old, new in list(zip(asked, before[2], after[2], strict=True))[:8]:
        print(f"| {row['phrase']} | {old} | {new} |")
    write_text(given.folder / "captions.json", json.dumps({"before": before[2], "after": after[2]}, indent=1))


def _share(right: int, total: int) -> str:
    low, high = wilson(right, total)
    return f"{right / total:.0%} ({low:.0%}–{high:.0%})"


if __name__ == "__main__":
    main()
