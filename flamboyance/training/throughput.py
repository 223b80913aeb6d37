"""How fast a run is, and how much of the machine it uses."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from flamboyance.processes import World
from flamboyance.training import hardware
from flamboyance.training.parallel import decoder_layers
from flamboyance.training.step import Outcome


@dataclass(frozen=True)
class Operations:
    """Floating-point operations of matrix products with weights, forward and backward, that a step cannot do without.

    What is frozen costs two a weight forward and two backward (the gradient of its input alone); the tower, which
    nothing behind it learns, two; what trains, six. Attention's own products, a few per cent at these lengths, and
    computing again for activation checkpointing are not counted (the usual model FLOPs).

    Attributes:
        token, image, target: of one each.
    """

    token: float
    image: float
    target: float

    @classmethod
    def of(cls, model: Any) -> Operations:
        resampler, head = model.resampler, model.get_output_embeddings()
        latents, patches = len(resampler.latents), model.vision.patches or 0
        to_kv = _weights(layer.attention.to_kv for layer in resampler.layers)
        keys_values = _weights(block.attention.to_kv for block in model.blocks)
        image = 2 * _weights([model.vision]) * patches
        image += 6 * (_weights([resampler]) * latents + to_kv * patches + keys_values * latents)
        token = 4 * _weights(decoder_layers(model)) + 6 * (_weights(model.blocks) - keys_values)
        return cls(token, image, 4 * sum(p.numel() for p in head.parameters() if p.ndim > 1))


def _weights(modules: Iterable[nn.Module]) -> int:
    """Elements of the matrices in some modules, embeddings aside."""
    layers = [layer for module in modules for layer in module.modules() if not isinstance(layer, nn.Embedding)]
    return sum(p.numel() for layer in layers for p in layer.parameters(recurse=False) if p.ndim > 1)


class Meter:
    """Times steps: from `begin` to `figures`.

    Attributes:
        waited: seconds of this step that were spent waiting for data; added to by the loop.
    """

    def __init__(self, model: Any, here: World, precision: str):
        self.device = here.device
        self.operations = Operations.of(model)
        peak = peak_rate(here.device, precision)
        self.peak = peak * here.size if peak else None
        self.waited = 0.0

    def begin(self) -> None:
        self.began, self.waited = time.perf_counter(), 0.0

    def figures(self, outcome: Outcome) -> dict[str, float | None]:
        """Seconds, rates over all ranks, model FLOPs utilisation, and the memory of this rank in GB."""
        seconds, each = time.perf_counter() - self.began, self.operations
        done = outcome.tokens * each.token + outcome.images * each.image + outcome.targets * each.target
        return {
            "step_s": seconds,
            "data_wait_s": self.waited,
            "tokens": outcome.tokens,
            "images": outcome.images,
            "targets": outcome.targets,
            "tokens_per_s": outcome.tokens / seconds,
            "images_per_s": outcome.images / seconds,
            "tflops": done / seconds / 1e12,
            "mfu": done / seconds / self.peak if self.peak else None,
            "memory_gb": peak_memory(self.device) / 1e9,
        }


def peak_rate(device: torch.device, precision: str) -> float | None:
    """Operations a second that the device can do: by its data sheet, or on a CPU by a product of 1024 x 1024 matrices,
    measured now. None for an accelerator that is not known."""
    if device.type == "cuda":
        name, memory = torch.cuda.get_device_name(device), torch.cuda.get_device_properties(device).total_memory
        known = [kind for kind in hardware.KINDS.values() if kind.name.split("-")[0] in name.replace(" ", "")]
        return min(known, key=lambda kind: abs(kind.memory - memory)).peak(precision) if known else None
    matrix = torch.ones(1024, 1024, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    seconds = []
    for _ in range(4):
        began = time.perf_counter()
        matrix @ matrix
        seconds.append(time.perf_counter() - began)
    return 2 * 1024**3 / min(seconds)


def peak_memory(device: torch.device) -> int:
    """Most bytes held so far: of the device's memory, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
