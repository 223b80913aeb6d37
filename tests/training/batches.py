"""Batches drawn from a number alone, and tiny models to train on them: for tests of steps and of parallelism."""

from dataclasses import dataclass

import torch

from flamboyance.data.batch import TrainingExample, collate
from flamboyance.data.documents import Source
from flamboyance.training.config import TrainingConfig
from flamboyance.training.step import Item
from tests.model.families import EOC, IMAGE, PAD, PIXELS, prompt


@dataclass(frozen=True, kw_only=True)
class NoSource(Source):
    """Stands where a source is asked for its weight alone."""


SOURCES = {"pairs": NoSource(shards="", batch_size=3, weight=0.2), "documents": NoSource(shards="", batch_size=2)}


def normalized(levels: torch.Tensor) -> torch.Tensor:
    return levels.float() / 128 - 1


def training(**options) -> TrainingConfig:
    return TrainingConfig(output="", sources=SOURCES, steps=50, **{"learning_rate": 3e-3, "warmup_steps": 5, **options})


def example(*segments: int, seed: int) -> TrainingExample:
    """An interleaved document; its images are its own."""
    ids = torch.tensor([*prompt(*segments, seed=seed), EOC])
    seen = (ids == IMAGE).cumsum(0)
    random = torch.Generator().manual_seed(seed)
    levels = torch.randint(0, 256, (len(segments), 3, PIXELS, PIXELS), dtype=torch.uint8, generator=random)
    return TrainingExample(ids, ids.masked_fill(ids == IMAGE, -100), seen, levels)


def item(number: int) -> Item:
    """The number-th micro-step's batches; their lengths and counts of images differ."""
    seed, width = 1000 * number, number % 4
    pairs = [example(2 + width + i, seed=seed + i) for i in range(3)]
    documents = [example(3, 2 + width, seed=seed + 10), example(2, 4, 3 + width, seed=seed + 11)]
    return {"pairs": collate(pairs, PAD), "documents": collate(documents, PAD)}
