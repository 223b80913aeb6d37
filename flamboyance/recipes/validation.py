"""The loss of a model on documents that it is not trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from flamboyance.data.batch import collate
from flamboyance.data.documents import Document, Rejected, Source
from flamboyance.data.examples import WorkerProcessor, make_example
from flamboyance.data.shards import expand, records
from flamboyance.data.tar import Damage
from flamboyance.training.step import summed_loss

if TYPE_CHECKING:
    from flamboyance.flamingo import FlamingoForConditionalGeneration
    from flamboyance.processing import FlamingoProcessor

BATCH = 16


def losses(
    model: FlamingoForConditionalGeneration,
    processor: FlamingoProcessor,
    sources: Sequence[tuple[str, Source]],
    count: int,
) -> dict[str, float]:
    """ "loss" and "perplexity" on the first `count` documents of each source; of several sources, also "loss/NAME" and
    "perplexity/NAME", of which the former are the mean and its exponential."""
    found = {name: mean_loss(model, processor, source, first_documents(source, count)) for name, source in sources}
    mean = sum(found.values()) / len(found)
    figures = {"loss": mean, "perplexity": _perplexity(mean)}
    if len(found) > 1:
        figures |= {f"loss/{name}": loss for name, loss in found.items()}
        figures |= {f"perplexity/{name}": _perplexity(loss) for name, loss in found.items()}
    return figures


def _perplexity(loss: float) -> float:
    return math.exp(min(loss, 700.0))


@lru_cache(maxsize=8)  # called several times in a run
def first_documents(source: Source, count: int) -> list[Document]:
    """The first documents of a source, in its own order.

    Raises:
        ValueError: there are none.
    """

    def usable() -> Any:
        for shard in expand(source.shards):
            for record in records(shard, getattr(source, "outside", False)):
                if isinstance(record, Damage):
                    continue
                try:
                    yield source.document(record, np.random.default_rng(0))
                except Rejected:
                    continue

    found = list(islice(usable(), count))
    if not found:
        raise ValueError(f"{source.shards}: no document can be validated on; expected data as for training")
    return found


def undrawn(source: Source) -> Source:
    """The source without what training draws at random: images are not mirrored, documents with one image not rejected,
    windows are the start, texts attend to the image before. What training does each time, validation does too."""
    drawn: dict[str, Any] = {
        name: float(getattr(source, name) >= 1)
        for name in ("flip", "reject_single", "next_image")
        if hasattr(source, name)
    }
    return replace(source, **drawn, **({"window": "start"} if hasattr(source, "window") else {}))


@torch.no_grad()
def mean_loss(
    model: FlamingoForConditionalGeneration, processor: FlamingoProcessor, source: Source, documents: list[Document]
) -> float:
    """The mean loss per learned token, in the model's precision; NaN without any."""
    worker, examples = WorkerProcessor.of(processor, frames=model.config.resampler["max_frames"]), []
    source = undrawn(source)
    for document in documents:
        try:
            examples.append(make_example(document, source, worker, np.random.default_rng(0)))
        except Rejected:  # an image that cannot be decoded
            continue
    examples.sort(key=lambda example: len(example.input_ids))  # little padding
    total, targets = 0.0, 0
    half = model.language_model.dtype == torch.bfloat16
    for start in range(0, len(examples), BATCH):
        batch = collate(examples[start : start + BATCH], processor.pad_token_id)
        with torch.autocast(model.device.type, torch.bfloat16) if half else nullcontext():
            total += float(summed_loss(model, batch, worker.images.normalized, model.device))
        targets += batch.targets
    return total / targets if targets else float("nan")
