"""Contrastive training of a vision tower on pairs of images and texts, over the negatives of all processes.

The loss is CLIP's, by which Flamingo's vision encoder was pretrained: for each image, the cross-entropy of its own text
among all texts of the batch; for each text, that of its image; with a learned temperature. Flamingo's is the sum of the
two, CLIP's their mean, which is minimised here. A batch is that of one source on all processes. Each process compares
its own pairs with those of all, so that none computes the whole table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from flamboyance.checkpoints.save_backbones import save_tower, write_backbone
from flamboyance.data.pairs import PairBatch
from flamboyance.model.dual_encoder import Embeddings
from flamboyance.processes import World
from flamboyance.training.loop import Trainer
from flamboyance.training.optimizer import make_optimizer
from flamboyance.training.parallel import Parallel
from flamboyance.training.run import TrainingRun
from flamboyance.training.run_directory import EXPORT
from flamboyance.training.step import Stepper, StepResult
from flamboyance.training.throughput import ModelFlops, tower_cost, weights

Item = dict[str, PairBatch]  # a batch of every source
SMOOTHING = 0.1  # of the targets; Flamingo's


class Gathered(torch.autograd.Function):
    """A tensor of the same shape on every process -> those of all, stacked, (processes, …).

    The gradient of this process's part is the sum of what all processes derive from it.
    """

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, world: World) -> Tensor:
        ctx.rank = world.rank
        found = tensor.new_empty(world.size, *tensor.shape)
        dist.all_gather(list(found.unbind()), tensor.contiguous())
        return found

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient[ctx.rank], None


def contrastive_loss(
    embeddings: Embeddings, world: World, smoothing: float = 0.0, keys: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """This process's share of the loss of the joined batch, and how many of its images have their own text as the most
    similar one. The sum of all processes' shares is the loss.

    Args:
        embeddings: of this process's pairs, as many as every other process has.
        smoothing: share of the probability that the target gives to all pairs alike.
        keys: (pairs,) of the texts, the same for equal ones: an image's own text may be another pair's, too. None: all
            texts differ.
    """
    images, texts, scale = embeddings
    every = torch.stack([images, texts])
    if world.size > 1:
        every = Gathered.apply(every, world).transpose(0, 1).flatten(1, 2)
    all_images, all_texts = every
    own = torch.arange(len(images), device=images.device) + world.rank * len(images)
    of_images, of_texts = scale * images @ all_texts.T, scale * texts @ all_images.T
    tables = torch.cat([of_images, of_texts])
    total = F.cross_entropy(tables, own.repeat(2), reduction="sum", label_smoothing=smoothing)
    chosen = of_images.argmax(1)
    if keys is not None:
        every_key = Gathered.apply(keys, world).flatten() if world.size > 1 else keys
        return total / (2 * len(all_images)), (every_key[chosen] == keys).sum()
    return total / (2 * len(all_images)), (chosen == own).sum()


def text_keys(ids: Tensor, mask: Tensor) -> Tensor:
    """A number for each text (pairs, T), which does not depend on its padding: the same for equal texts, and otherwise
    as good as never. (pairs,) int64."""
    powers = torch.full_like(ids[:1], 0x9E3779B97F4A7C1).cumprod(1)  # they wrap around
    return ((ids + 1) * mask * powers).sum(1)


@dataclass(frozen=True)
class ContrastiveResult(StepResult):
    """`targets` are pairs.

    Attributes:
        accuracy: share of the images whose own text is the most similar one of their batch.
    """

    accuracy: float


class ContrastiveStepper(Stepper):
    """Takes optimizer steps. Each micro-step has negatives of its own, and so has each source."""

    def __init__(self, *given: Any, smoothing: float = 0.0):
        super().__init__(*given)
        self.smoothing = smoothing

    def __call__(self, items: Sequence[Item], rate: float) -> ContrastiveResult:
        world, names = self.parallel.world, list(self.config.sources)
        batches = [(j, item[name]) for item in items for j, name in enumerate(names)]
        counted = [sum(int(b.attention_mask.sum()) for _, b in batches), sum(len(b.images) for _, b in batches)]
        sums = torch.zeros(len(names) + 1, dtype=torch.float64, device=world.device)
        for k, (j, batch) in enumerate(batches):
            batch = batch.to(world.device)
            with self.parallel.backward(k == len(batches) - 1):
                with self._precision():
                    pixels = self.normalize(batch.images)
                    embeddings = self.parallel.call(pixels, batch.input_ids, batch.attention_mask)
                keys = text_keys(batch.input_ids, batch.attention_mask)
                loss, correct = contrastive_loss(embeddings, world, self.smoothing, keys)
                # Gradients are averaged over ranks, but the loss is the sum of their shares.
                scale = self.config.sources[names[j]].weight * world.size / len(items)
                (loss * scale).backward()
            sums[j] += loss.detach() / len(items)
            sums[-1] += correct
        norm = self._apply(rate)
        self.parallel.model.limit_scale()
        *means, correct, tokens, images = world.sum([*sums.tolist(), *counted])
        losses = dict(zip(names, means, strict=True))
        total = sum(self.config.sources[name].weight * loss for name, loss in losses.items())
        return ContrastiveResult(losses, total, norm, int(images), int(tokens), int(images), correct / images)


class ContrastiveTrainer(Trainer):
    """Trains a `DualEncoder`, and exports its tower.

    Raises:
        ValueError: a setting of a Flamingo's training that this one does not have.
    """

    def __init__(self, run: TrainingRun, *given: Any) -> None:
        theirs = ("compile", "cache_features", "export_openflamingo", "evaluate")
        for name in (*theirs, "freeze_added_tokens", "unfreeze_vision", "unfreeze_language"):
            if getattr(run.training, name):
                raise ValueError(f"a contrastive run has no {name}; leave the setting out")
        if run.training.parallel not in ("auto", "ddp"):
            raise ValueError(f"parallel={run.training.parallel}: a contrastive run has parallel=ddp alone")
        super().__init__(run, *given)

    def parallelized(self) -> Parallel:
        if self.config.checkpoint_activations:
            self.model.checkpoint_activations()
        plain = replace(self.config, checkpoint_activations=False)
        return Parallel(self.model.float().train(), plain, self.here)

    def make_optimizer(self) -> torch.optim.Optimizer:
        return make_optimizer(self.trained, self.config, decays=lambda _: True)

    def identity(self) -> dict[str, Any]:
        vision, text = self.model.vision.spec["name"], self.model.text.config
        return {"vision": Path(str(vision)).name, "text": text.model_type, "contrastive": True}

    def reading(self) -> dict[str, Any]:
        return {}

    def make_stepper(self) -> ContrastiveStepper:
        normalized = self.processor.image_processor.normalized
        return ContrastiveStepper(self.parallel, self.optimizer, self.config, normalized, smoothing=SMOOTHING)

    def flops(self) -> ModelFlops:
        tower, _ = tower_cost(self.model.vision)
        return ModelFlops(6 * weights([self.model.text]), 3 * tower, 0)  # backward is twice as much as forward

    def extra_figures(self, result: ContrastiveResult, seldom: bool) -> dict[str, Any]:
        return {"accuracy": result.accuracy, "inverse_temperature": float(self.model.log_scale.detach().exp())}

    def export(self, step: int | None = None) -> Path:
        """Writes the tower alone, as a directory of its library, and its preprocessing."""
        directory = Path(self.config.output) / (EXPORT if step is None else f"{EXPORT}s/step-{step:08d}")
        if self.here.first:
            write_backbone(self._save, directory)
        return directory

    def _save(self, directory: Path) -> None:
        save_tower(self.model.vision, directory)
        if self.model.vision.spec["library"] == "transformers":  # timm's directories say it themselves
            self.processor.image_processor.save_pretrained(directory)
