"""The memory that answering a prompt takes, counted on the meta device, without a GPU and without weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from flamboyance.model.cache import NAME
from flamboyance.planning.cost import OUTSIDE, part_names
from flamboyance.planning.tracing import CostLedger, Device, DeviceKernels
from flamboyance.training.hardware import Hardware

TEXT = 24  # tokens of a demonstration, and of the query with its answer


@dataclass(frozen=True)
class InferenceMemory:
    """Memory of answering one prompt, in bytes.

    Attributes:
        weights: all parameters and buffers.
        kept: the cache of the language model, and the keys and values of the images.
        working: further tensors, at the worst moment.
        fragments: lost between the allocator's blocks.
        reserve: used by the driver and libraries; on a CPU by Python, torch and transformers.
    """

    weights: float
    kept: float
    working: float
    fragments: float
    reserve: float

    @property
    def tensors(self) -> float:
        return self.weights + self.kept + self.working

    @property
    def total(self) -> float:
        return self.tensors + self.fragments + self.reserve


def inference_memory(model: Any, shots: int, hardware: Hardware) -> InferenceMemory:
    """The memory of a prompt of `shots` demonstrations and a query, greedy, with one image and TEXT tokens each.

    Args:
        model: on the meta device; unusable for anything else afterwards.
    """
    weights = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    device: Device = "cpu" if hardware.is_cpu else "cuda"
    ledger = CostLedger(model, part_names(model))
    kernels = DeviceKernels(device, None, ledger.made)
    side, images = model.vision.image_size, shots + 1
    model.train()  # else values are checked, and equal images looked for, which are not on the meta device
    seen = torch.arange(images * TEXT)[None] // TEXT + 1
    ids = torch.zeros(1, images * TEXT, dtype=torch.long, device="meta")
    pixels = torch.empty(images, 1, 3, side, side, dtype=model.vision.dtype, device="meta")
    ledger.hold(pixels)
    ledger.direction, ledger.part = "forward", OUTSIDE
    with torch.no_grad(), kernels, ledger:
        media = model.encode_media(pixels, [images])
        out = model(ids, torch.ones_like(ids), media=media, images_seen=seen, use_cache=True, logits_to_keep=1)
        cache = out[NAME]
        del pixels, out, ids
    kept = ledger.live
    del media, cache
    tensors = weights + ledger.peak
    return InferenceMemory(weights, kept, ledger.peak - kept, hardware.fragments * tensors, hardware.reserve)
