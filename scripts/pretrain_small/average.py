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
from tempfile import TemporaryDirectory

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from flamboyance.checkpoints.directory import WEIGHTS, read_weights


def average(earlier: Path, later: Path, share: float, output: Path) -> None:
    """Writes a copy of `later` whose trained tensors are `share` of its own and the rest of the earlier model's.

    Raises:
        ValueError: the models have other tensors or sizes, or the share is not from 0 to 1.
        FileExistsError: the output is there already.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share={share:g}: expected a number from 0 to 1")
    if output.exists():
        raise FileExistsError(f"{output} is there already; give a new directory")
    (before, _), (after, _) = (read_weights(model / WEIGHTS) for model in (earlier, later))
    shapes = [{name: tuple(tensor.shape) for name, tensor in tensors.items()} for tensors in (before, after)]
    if different := sorted(dict(shapes[0].items() ^ shapes[1].items())):
        raise ValueError(f"{earlier} and {later} differ in {different[0]}: expected models of the same sizes")
    mean = {name: torch.lerp(before[name].float(), tensor.float(), share) for name, tensor in after.items()}
    with TemporaryDirectory(dir=output.parent) as temporary:  # a copy without the mean would pass for it
        part = Path(temporary) / output.name
        shutil.copytree(later, part)
        with safe_open(later / WEIGHTS, "pt") as file:
            save_file(mean, part / WEIGHTS, metadata=file.metadata())
        part.rename(output)


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
