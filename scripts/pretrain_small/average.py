"""Writes the mean of two models of the same sizes: of what an earlier stage knew and what a later one learned.

    python -m scripts.pretrain_small.average runs/mixed/model runs/tasks/model --share 0.8 --output runs/mean

A later stage forgets a little of what it is not shown so often. Weights between those of both stages may keep it
(Wortsman et al. 2022, "Robust fine-tuning of zero-shot models", section 3).
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from flamboyance.checkpoints.directory import WEIGHTS


def average(earlier: Path, later: Path, share: float, output: Path) -> None:
    """Writes a copy of `later` whose trained tensors are `share` of its own and the rest of the earlier model's.

    Raises:
        ValueError: the models have other tensors or sizes.
        FileExistsError: the output is there already.
    """
    before, after = load_file(earlier / WEIGHTS), load_file(later / WEIGHTS)
    shapes = [{name: tuple(tensor.shape) for name, tensor in tensors.items()} for tensors in (before, after)]
    if different := sorted(dict(shapes[0].items() ^ shapes[1].items())):
        raise ValueError(f"{earlier} and {later} differ in {different[0]}: expected models of the same sizes")
    shutil.copytree(later, output)
    mean = {name: torch.lerp(before[name].float(), tensor.float(), share) for name, tensor in after.items()}
    with safe_open(later / WEIGHTS, "pt") as file:
        save_file(mean, output / WEIGHTS, metadata=file.metadata())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("earlier", type=Path, help="a model's directory")
    parser.add_argument("later", type=Path, help="another one, of the same sizes")
    parser.add_argument("--share", type=float, required=True, help="of the later one, from 0 to 1")
    parser.add_argument("--output", type=Path, required=True, help="a new directory")
    given = parser.parse_args(arguments)
    average(given.earlier, given.later, given.share, given.output)


if __name__ == "__main__":
    main()
