"""Run by every rank: some steps of contrastive training on batches that are drawn from numbers alone."""

from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertModel

from flamboyance.data.pairs import PairBatch
from flamboyance.model.dual_encoder import DualEncoder
from flamboyance.model.vision import VisionTower, tower_spec
from flamboyance.processes import World
from flamboyance.training.contrastive import ContrastiveStepper
from flamboyance.training.optimizer import make_optimizer
from flamboyance.training.parallel import Parallel
from flamboyance.training.schedule import learning_rate_at
from tests.training.batches import SOURCES, normalized, training
from tests.training.worker import one_thread

SIDE, TOKENS, VOCABULARY = 16, 7, 30
CLIP = {"model_type": "clip_vision_model", "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2}
CLIP |= {"num_attention_heads": 2, "image_size": SIDE, "patch_size": 8}
TOWERS: dict[str, dict[str, Any]] = {
    "clip": {"library": "transformers", "config": CLIP},
    "nfnet": tower_spec("timm/test_nfnet"),
}


def bert(**options: Any) -> Any:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return BertModel(BertConfig(vocab_size=VOCABULARY, **sizes, **options))


def made(tower: str) -> DualEncoder:
    torch.manual_seed(0)
    return DualEncoder(
        VisionTower.from_config(TOWERS[tower]), bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0), 12
    )


def pairs(number: int, side: int = SIDE) -> PairBatch:
    """The number-th batch: three pairs, whose texts have different lengths."""
    random = torch.Generator().manual_seed(number)
    images = torch.randint(0, 256, (3, 3, side, side), dtype=torch.uint8, generator=random)
    ids = torch.randint(1, VOCABULARY, (3, TOKENS), generator=random)
    mask = (torch.arange(TOKENS) < torch.tensor([[TOKENS], [3 + number % 3], [5]])).long()
    return PairBatch(images, ids * mask, mask)


def joined(first: PairBatch, second: PairBatch) -> PairBatch:
    return PairBatch(*(torch.cat([getattr(one, n) for one in (first, second)]) for n in vars(first)))


def run(here: World, tower: str, steps: int, accumulated: int = 1) -> dict[str, Any]:
    """Two batches of each source a micro-step: joined in one process, one in each of two."""
    config = training(gradient_accumulation_steps=accumulated)
    model = made(tower)
    side = model.vision.image_size
    parallel = Parallel(model.train(), config, here)
    optimizer = make_optimizer(model.trained_parameters(), config, decays=lambda _: True)
    stepper = ContrastiveStepper(parallel, optimizer, config, normalized, smoothing=0.1)
    found: dict[str, Any] = {"loss": [], "norm": [], "accuracy": []}

    def batch(number: int) -> PairBatch:
        both = [pairs(2 * number + rank, side) for rank in range(2)]
        return joined(*both) if here.size == 1 else both[here.rank]

    for step in range(steps):
        micro = range(step * accumulated, (step + 1) * accumulated)
        items = [{name: batch(100 * j + n % 2) for j, name in enumerate(SOURCES)} for n in micro]
        result = stepper(items, learning_rate_at(step, config))
        found["loss"].append(result.loss)
        found["norm"].append(result.gradient_norm)
        found["accuracy"].append(result.accuracy)
    found["parameters"] = {name: p.detach().clone() for name, p in model.trained_parameters().items()}
    return found


def main(path: str, steps: int, *ways: tuple[str, int]) -> None:
    with one_thread() as here:
        found = {way: run(here, way[0], steps, way[1]) for way in ways}
        if here.first:
            torch.save(found, Path(path))
