"""Operations and memory of a training step, counted on the meta device: no accelerator, no weights.

What is counted is the loop's own forward pass and loss (step.py), on batches of given sizes.
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
from flamboyance.planning.tracing import Device, Kernels, Ledger
from flamboyance.training import parallel
from flamboyance.training.step import summed_loss

PARTS = ("vision", "resampler", "cross_attention", "language_model", "head", "added_tokens")
LATER = "head"  # the loss, and what stands in no module, is counted with the output head


@dataclass(frozen=True)
class Sizes:
    """Of a batch: rows, tokens of each row, images and predicted tokens in all."""

    rows: int
    tokens: int
    images: int
    targets: int


def largest(source: Source) -> Sizes:
    """The largest batch that a source can give: what memory has to suffice for."""
    return _sizes(source, source.max_images if isinstance(source, Interleaved) else 1)


def usual(source: Source, images_per_document: float) -> Sizes:
    """A batch of full length with the mean number of images: what times are estimated with."""
    most = source.max_images if isinstance(source, Interleaved) else 1
    return _sizes(source, min(images_per_document, most))


def _sizes(source: Source, images_per_row: float) -> Sizes:
    rows = source.batch_size
    images = max(1, round(rows * images_per_row))
    # Every token but the first of a row and those that stand for images; the first is an image as a rule.
    return Sizes(rows, source.max_tokens, images, rows * source.max_tokens - images)


@dataclass(frozen=True)
class Trace:
    """What a micro-step (a batch of every source, forward and backward) takes on one device.

    Attributes:
        flops: by (part, "forward" | "backward").
        peak: most bytes beside parameters and optimizer, gradients included.
        temporary: most bytes beside parameters, optimizer and gradients: activations, logits, workspace.
    """

    flops: Counter[tuple[str, str]]
    peak: int
    temporary: int

    @property
    def total(self) -> int:
        return sum(self.flops.values())


def outlined(config: FlamingoConfig, precision: str = "fp32") -> FlamingoForConditionalGeneration:
    """The model on the meta device, in the precisions that training gives its parts."""
    with torch.device("meta"):
        model = FlamingoForConditionalGeneration(config)
    parallel.set_precision(model, precision)
    return model.train()


def trace(
    config: FlamingoConfig,
    batches: Sequence[Sizes],
    *,
    device: Device,
    precision: str = "fp32",
    checkpoint_activations: bool = False,
    sharded: bool = False,
) -> Trace:
    """Runs a forward and backward pass of each batch in turn, as one micro-step does.

    Args:
        device: whose kernels are assumed.
        sharded: parameters are gathered in the computing precision (FSDP), so autocast casts none of them.
    """
    model = outlined(config, precision)
    if sharded and precision == "bf16":
        model.to(torch.bfloat16)
    if checkpoint_activations:
        parallel.checkpoint_activations(model)
    ledger = Ledger(model, part_names(model))
    kernels = Kernels(device, torch.bfloat16 if precision == "bf16" else None, ledger.made)
    normalize = ImageProcessor.clip(model.vision.image_size).normalized
    for sizes in batches:
        batch = batch_of(sizes, model)
        ledger.hold(batch.images)
        ledger.direction, ledger.part = "forward", LATER
        with kernels, ledger:
            with kernels.autocast():
                loss = summed_loss(model, batch, normalize, torch.device("meta"))
            ledger.direction = "backward"
            kernels.backward(loss)
            del loss
    return Trace(ledger.flops, ledger.peak, ledger.temporary)


def batch_of(sizes: Sizes, model: Any) -> Batch:
    """A batch of these sizes whose images are evenly spread; pixels are on the meta device."""
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
    mask[0, -1] = 0  # without any padding, which is rare, language models take shorter ways
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
    """A function: name of a module or parameter -> one of PARTS."""
    head = next(name for name, module in model.named_modules() if module is model.get_output_embeddings())

    def part_of(name: str) -> str:
        if name == head or name.startswith(f"{head}."):
            return "head"
        first = name.partition(".")[0]
        return first if first in PARTS else LATER

    return part_of
