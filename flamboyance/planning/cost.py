"""Operations and memory of a training step, counted on the meta device, without accelerator and weights.

The counted step is the training loop's own forward pass and loss (step.py), on batches of given sizes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from flamboyance.configuration import FlamingoConfig
from flamboyance.data.batch import Batch
from flamboyance.data.documents import Source
from flamboyance.data.formats.interleaved import Interleaved
from flamboyance.flamingo import FlamingoForConditionalGeneration
from flamboyance.images import ImageProcessor
from flamboyance.planning.tracing import CostLedger, Device, DeviceKernels
from flamboyance.training import parallel
from flamboyance.training.step import summed_loss
from flamboyance.training.trained_parts import FLAMINGO, TrainedParts

PARTS = ("vision", "resampler", "cross_attention", "language_model", "head", "added_tokens")
OUTSIDE = "head"  # the loss and everything outside of modules is counted with the output head


@dataclass(frozen=True)
class BatchSizes:
    """Sizes of a batch: rows, tokens per row, and images and predicted tokens of all rows."""

    rows: int
    tokens: int
    images: int
    targets: int


def largest_batch(source: Source) -> BatchSizes:
    """The largest batch of a source, which the memory is estimated with."""
    return _sizes(source, source.max_images if isinstance(source, Interleaved) else 1)


def typical_batch(source: Source, images_per_document: float) -> BatchSizes:
    """A batch of full length with the mean number of images, which times are estimated with."""
    most = source.max_images if isinstance(source, Interleaved) else 1
    return _sizes(source, min(images_per_document, most))


def _sizes(source: Source, images_per_row: float) -> BatchSizes:
    rows = source.batch_size
    images = max(1, round(rows * images_per_row))
    # Every token but the first of a row, which usually stands for an image, and the other images' tokens.
    return BatchSizes(rows, source.max_tokens, images, rows * source.max_tokens - images)


@dataclass(frozen=True)
class Trace:
    """Cost of a micro-step (a batch of every source, forward and backward) on one device.

    Attributes:
        flops: by (part, "forward" | "backward").
        peak: peak bytes without parameters and optimizer, but with gradients.
        temporary: peak bytes without parameters, optimizer and gradients: activations, logits, workspace.
    """

    flops: Counter[tuple[str, str]]
    peak: int
    temporary: int

    @property
    def total(self) -> int:
        return sum(self.flops.values())


def meta_model(
    config: FlamingoConfig, precision: str = "fp32", trained: TrainedParts = FLAMINGO
) -> FlamingoForConditionalGeneration:
    """The model on the meta device, with its parts in the precisions of training."""
    with torch.device("meta"):
        model = FlamingoForConditionalGeneration(config)
    trained.apply(model)
    parallel.set_precision(model, precision)
    return model.train()


def trace(
    config: FlamingoConfig,
    batches: Sequence[BatchSizes],
    *,
    device: Device,
    precision: str = "fp32",
    checkpoint_activations: bool = False,
    sharded: bool = False,
    trained: TrainedParts = FLAMINGO,
) -> Trace:
    """Runs a forward and backward pass of each batch in turn, as one micro-step does.

    Args:
        device: the device whose kernels are assumed.
        sharded: FSDP gathers parameters in the computing precision, so autocast casts none of them.
    """
    model = meta_model(config, precision, trained)
    if sharded and precision == "bf16":
        model.to(torch.bfloat16)
    if checkpoint_activations:
        parallel.checkpoint_activations(model)
    ledger = CostLedger(model, part_names(model))
    kernels = DeviceKernels(device, torch.bfloat16 if precision == "bf16" else None, ledger.made)
    normalize = ImageProcessor.clip(model.vision.image_size).normalized
    for sizes in batches:
        batch = batch_of(sizes, model)
        ledger.hold(batch.images)
        ledger.direction, ledger.part = "forward", OUTSIDE
        with kernels, ledger:
            with kernels.autocast():
                loss = summed_loss(model, batch, normalize, torch.device("meta"))
            ledger.direction = "backward"
            kernels.backward(loss)
            del loss
    return Trace(ledger.flops, ledger.peak, ledger.temporary)


def batch_of(sizes: BatchSizes, model: Any) -> Batch:
    """A batch of these sizes, with images spread evenly; the pixels are on the meta device."""
    counts = [sizes.images * (row + 1) // sizes.rows - sizes.images * row // sizes.rows for row in range(sizes.rows)]
    labels = torch.zeros(sizes.rows, sizes.tokens, dtype=torch.long)
    seen = torch.zeros_like(labels)
    places = torch.arange(sizes.tokens)
    for row, count in enumerate(counts):
        if count:
            starts = torch.arange(count) * sizes.tokens // count
            seen[row] = (places[:, None] >= starts).sum(1)
            labels[row, starts] = -100
    positions = (labels[:, 1:] != -100).flatten().nonzero().flatten()[sizes.targets :]
    labels[positions // (sizes.tokens - 1), positions % (sizes.tokens - 1) + 1] = -100
    mask = torch.ones_like(labels)
    mask[0, -1] = 0  # without any padding, which is rare, language models take faster paths
    side = model.vision.image_size
    return Batch(
        input_ids=torch.zeros_like(labels),
        attention_mask=mask,
        labels=labels,
        images_seen=seen,
        images=torch.empty(sizes.images, 3, side, side, dtype=torch.uint8, device="meta"),
        media_counts=tuple(counts),
    )


def part_names(model: Any) -> Any:
    """A function from the name of a module or parameter to one of PARTS."""
    head = next(name for name, module in model.named_modules() if module is model.get_output_embeddings())

    def part_of(name: str) -> str:
        if name == head or name.startswith(f"{head}."):
            return "head"
        first = name.partition(".")[0]
        return first if first in PARTS else OUTSIDE

    return part_of
