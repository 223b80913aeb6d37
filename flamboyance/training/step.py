"""One optimizer step: gradients of all sources' losses are accumulated, clipped, and applied by all ranks or none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.tensor import DTensor

from flamboyance.data.batch import Batch
from flamboyance.training.config import TrainingConfig
from flamboyance.training.parallel import Parallel

Item = dict[str, Batch]  # a batch of every source
# Tokens that a CPU multiplies about as fast as any larger number. With AVX2 alone, of 256 rows or fewer `linear` gives
# products to oneDNN, which rearranges the output head at every call.
AT_ONCE = 512
WORTH = 0.95  # of the tokens, padding included, that another part of a batch must leave: each has a cost of its own


@dataclass(frozen=True)
class StepResult:
    """The result of a step.

    Attributes:
        losses: mean cross-entropy of each source, over the tokens of all ranks and micro-steps.
        loss: their weighted sum, which is minimised.
        gradient_norm: norm before clipping; not finite if the step was skipped.
        targets, tokens, images: numbers of predicted tokens, of tokens without padding, and of images (or frames of
            videos), of all ranks.
    """

    losses: dict[str, float]
    loss: float
    gradient_norm: float
    targets: int
    tokens: int
    images: int

    @property
    def skipped(self) -> bool:
        return not torch.isfinite(torch.tensor(self.gradient_norm)).item()


def summed_loss(call: Any, batch: Batch, normalize: Any, device: torch.device) -> Tensor:
    """Cross-entropy of a batch, summed over its targets, in float32. Only targets get logits: (K, V)."""
    rows, tokens = (batch.labels[:, 1:] != -100).nonzero(as_tuple=True)
    keep = rows * batch.labels.shape[1] + tokens  # the position before each target predicts it
    target = batch.labels[rows, tokens + 1]
    seen = batch.images_seen  # stays on the CPU, where the layout of attention is computed
    batch = batch.to(device)
    if batch.images.ndim == 3:  # features (M, P, D), not pixels (M, C, H, W)
        media = {"patches": batch.images[:, None]}
    elif batch.frame_counts is None:
        media = {"pixel_values": normalize(batch.images)[:, None]}
    else:
        media = {"pixel_values": normalize(batch.images), "frame_counts": batch.frame_counts}
    logits = call(
        batch.input_ids,
        batch.attention_mask,
        **media,
        media_counts=batch.media_counts,
        images_seen=seen,
        logits_to_keep=_to_device(keep, device),
        use_cache=False,
    ).logits
    return SummedCrossEntropy.apply(logits, _to_device(target, device))


def by_length(batch: Batch, most: int = 4, least: int = AT_ONCE) -> list[Batch]:
    """The rows of a batch in a few batches of similar lengths, so that little is computed for padding.

    A row's loss does not depend on its batch, so the sum of their losses is that of the whole batch.

    Args:
        most: number of parts.
        least: tokens of a part, padding included.
    """
    lengths = batch.attention_mask.sum(1).tolist()
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])

    def padded(first: int, end: int) -> int:
        return lengths[order[first]] * (end - first)

    # The cheapest cuts of the rows in the order of their lengths, by dynamic programming over their number.
    best: dict[int, tuple[int, list[int]]] = {0: (0, [])}
    found = None
    for _ in range(most):
        longer: dict[int, tuple[int, list[int]]] = {}
        for start, (cost, cuts) in best.items():
            for end in range(start + 1, len(order) + 1):
                size = padded(start, end)
                whole = start == 0 and end == len(order)
                if (size >= least or whole) and (end not in longer or cost + size < longer[end][0]):
                    longer[end] = cost + size, [*cuts, end]
        best = longer
        if len(order) in best and (found is None or best[len(order)][0] < WORTH * found[0]):
            found = best[len(order)]
    assert found is not None
    if len(found[1]) == 1:
        return [batch]
    return [batch.rows(sorted(order[start:end])) for start, end in pairwise([0, *found[1]])]


def _to_device(table: Tensor, device: torch.device) -> Tensor:
    """Copies to the device without waiting for it."""
    return (table.pin_memory() if device.type == "cuda" else table).to(device, non_blocking=True)


class SummedCrossEntropy(torch.autograd.Function):
    """Logits (K, V), targets (K,) -> their cross-entropy, summed, in float32.

    Both passes process a few rows at a time, which fit into a processor's cache. No other tensor of the logits' size is
    allocated: no float32 copy and no probabilities, and the gradient overwrites the logits in their precision. A second
    backward pass through the same graph raises torch's error about tensors that were modified in place.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor) -> Tensor:
        ctx.save_for_backward(logits, target)
        total = torch.zeros((), device=logits.device)
        for rows, wanted in _few_rows(logits, target):
            total += F.cross_entropy(rows.float(), wanted, reduction="sum")
        return total

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, None]:
        logits, target = (t.detach() for t in ctx.saved_tensors)
        for rows, wanted in _few_rows(logits, target):
            with torch.enable_grad():
                again = rows.float().detach().requires_grad_()
                loss = F.cross_entropy(again, wanted, reduction="sum")
            rows.copy_(torch.autograd.grad(loss, again, scale)[0])
        return logits, None


def _few_rows(*tables: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same rows of each table; the first table determines how many."""
    rows = max(1, (2**20 if tables[0].device.type == "cpu" else 2**26) // tables[0].shape[1])
    return zip(*(table.split(rows) for table in tables), strict=True)


class Stepper:
    """Takes optimizer steps.

    Args:
        normalize: (M, C, H, W) uint8 -> what the tower takes.
    """

    def __init__(self, parallel: Parallel, optimizer: torch.optim.Optimizer, config: TrainingConfig, normalize: Any):
        self.parallel = parallel
        self.optimizer = optimizer
        self.config = config
        self.normalize = normalize
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def __call__(self, items: Sequence[Item], rate: float) -> StepResult:
        """`items`: the batches of each micro-step."""
        world, names = self.parallel.world, list(self.config.sources)
        counted = [sum(item[name].targets for item in items) for name in names]
        batches = [batch for item in items for batch in item.values()]
        tokens, images = sum(int(b.attention_mask.sum()) for b in batches), sum(len(b.images) for b in batches)
        *counts, tokens, images = world.sum([*counted, tokens, images])
        sums = torch.zeros(len(names), dtype=torch.float64, device=world.device)
        for i, item in enumerate(items):
            for j, name in enumerate(names):
                # Ranks of a sharded model must call it equally often; and a GPU computes a whole batch at once.
                alone = world.size == 1 and world.device.type == "cpu"
                parts = by_length(item[name]) if alone else [item[name]]
                for k, part in enumerate(parts):
                    last = i == len(items) - 1 and j == len(names) - 1 and k == len(parts) - 1
                    with self.parallel.backward(last):
                        with self._precision():
                            loss = summed_loss(self.parallel.call, part, self.normalize, world.device)
                        # Gradients are averaged over ranks, but the loss is the mean over the tokens of all ranks.
                        scale = self.config.sources[name].weight * world.size / counts[j]
                        (loss * scale).backward()
                    sums[j] += loss.detach()
        norm = self._apply(rate)
        means = [s / c for s, c in zip(world.sum(sums.tolist()), counts, strict=True)]
        losses = dict(zip(names, means, strict=True))
        total = sum(self.config.sources[name].weight * loss for name, loss in losses.items())
        return StepResult(losses, total, norm, int(sum(counts)), int(tokens), int(images))

    def _precision(self) -> Any:
        if self.config.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.parallel.world.device.type, torch.bfloat16)

    def _apply(self, rate: float) -> float:
        """Takes one clipped step, or none if the gradient is not finite. All ranks have the same norm, so they decide
        alike without communication."""
        grads = [p.grad for p in self.parameters if p.grad is not None]
        whole = torch.nn.utils.get_total_norm(grads)
        norm = float(whole.full_tensor() if isinstance(whole, DTensor) else whole)
        if torch.isfinite(torch.tensor(norm)):
            if self.config.max_grad_norm and norm > self.config.max_grad_norm:
                torch._foreach_mul_(grads, self.config.max_grad_norm / norm)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm
