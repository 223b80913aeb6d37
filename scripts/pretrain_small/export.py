"""Writes flamingo-small, as the package ships it, from the model of a training run.

    python -m scripts.pretrain_small.export --model runs/mixed/model --vision runs/lite0 --table measured.md

What is trained and the tower are stored in 16 bits; the tower comes from its own directory, because a run in bfloat16
writes it in that precision. The language model is named, not copied. The card has the table of
`scripts.pretrain_small.measure`.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import load_file, save_file

from flamboyance import names
from flamboyance.files import write_text
from flamboyance.model.vision_libraries import TIMM_WEIGHTS
from scripts.pretrain_mini.export import halve

MOST_BYTES = 21_000_000  # of weights: with the tokenizer, 25 MB
CARD = Path(__file__).with_name("card.md")


def export(model: Path, table: str, target: Path, vision: Path | None = None) -> int:
    """Replaces `target` by the model and its card; returns its bytes.

    Raises:
        ValueError: the weights are too large to be shipped.
    """
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        shutil.copytree(model, part)
        if vision is not None:
            tower, source = part / "vision" / TIMM_WEIGHTS, load_file(vision / TIMM_WEIGHTS)
            save_file({name: source[name] for name in load_file(tower)}, tower, metadata={"format": "pt"})
        halve(part, MOST_BYTES)
        write_text(part / "README.md", CARD.read_text(encoding="utf-8").replace("{table}", table.strip()))
        shutil.rmtree(target, ignore_errors=True)
        part.rename(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return sum(file.stat().st_size for file in target.rglob("*") if file.is_file())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="the model's directory, of the last run")
    parser.add_argument("--vision", type=Path, help="what scripts.efficientnet_lite0 wrote")
    parser.add_argument("--table", type=Path, required=True, help="the Markdown that measure.py wrote")
    target = names.WEIGHTS / names.EMBEDDED[names.SMALL]
    parser.add_argument("--target", type=Path, default=target, help="(default: %(default)s)")
    given = parser.parse_args(arguments)
    size = export(given.model, given.table.read_text(encoding="utf-8"), given.target, given.vision)
    print(f"{given.target}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
