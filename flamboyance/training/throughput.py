"""Throughput of a run, and its model FLOPs utilisation (MFU)."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from flamboyance.model.quantized_linear import QuantizedLinear
from flamboyance.model.trainable import is_trained
from flamboyance.model.vision import VisionTower
from flamboyance.processes import World
from flamboyance.training import hardware
from flamboyance.training.parallel import decoder_layers
from flamboyance.training.step import StepResult


@dataclass(frozen=True)
class ModelFlops:
    """Floating-point operations that a step cannot do without: matrix products with weights, forward and backward.

    Each weight of a frozen language model costs two operations forward and two backward (the gradient of its input),
    of a frozen tower two, and each trainable weight six. A convolution's weights are used at every place. As usual
    for model FLOPs, neither the products inside attention, a few percent at these lengths, nor the recomputing of
    activation checkpointing are counted.

    Attributes:
        token, image, target: operations per token, image and predicted token.
    """

    token: float
    image: float
    target: float

    @classmethod
    def of(cls, model: Any, cached: bool = False) -> ModelFlops:
        """The operations of a model; `cached`: its tower's features were computed before, and cost nothing."""
        resampler, head = model.resampler, model.get_output_embeddings()
        latents, (tower, patches) = len(resampler.latents), tower_cost(model.vision)
        of_patches = [layer.attention.to_kv for layer in resampler.layers]
        to_kv = weights(of_patches if resampler.projection is None else [*of_patches, resampler.projection])
        keys_values = weights(block.attention.to_kv for block in model.blocks)
        image = 0 if cached else 3 * tower if is_trained(model.vision) else tower
        image += 6 * (weights(resampler.layers) * latents + to_kv * patches + keys_values * latents)
        layers = decoder_layers(model)
        token = _each(layers) * weights(layers) + 6 * (weights(model.blocks) - keys_values)
        return cls(token, image, _each(head) * sum(p.numel() for p in head.parameters() if p.ndim > 1))


def _each(module: nn.Module) -> int:
    """Operations of each weight of the language model, forward and backward."""
    return 6 if is_trained(module) else 4


def tower_cost(vision: VisionTower) -> tuple[int, int]:
    """The operations and the number of patches of one image."""
    if vision.patches is not None:
        return 2 * weights([vision]) * vision.patches, vision.patches
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        tower = VisionTower.from_config(vision.spec)
        patches = tower(torch.zeros(1, 3, vision.image_size, vision.image_size)).shape[1]
    return counter.get_total_flops(), patches


def weights(modules: Iterable[nn.Module]) -> int:
    """Number of elements of the matrices in the modules, without embeddings."""
    layers = [layer for module in modules for layer in module.modules() if not isinstance(layer, nn.Embedding)]
    plain = sum(p.numel() for layer in layers for p in layer.parameters(recurse=False) if p.ndim > 1)
    return plain + sum(q.in_features * q.out_features for q in layers if isinstance(q, QuantizedLinear))


class Meter:
    """Times each step, from `begin` to `figures`.

    Attributes:
        waited: seconds of this step spent waiting for data; the loop adds to it.
    """

    def __init__(self, flops: ModelFlops, here: World, precision: str):
        self.device = here.device
        self.flops = flops
        self.peak = peak_flops(here.device, precision) * here.size
        self.waited = 0.0

    def begin(self) -> None:
        self.began, self.waited = time.perf_counter(), 0.0

    def figures(self, result: StepResult) -> dict[str, float | None]:
        """Seconds, rates over all ranks, MFU, and the memory of this rank in GB."""
        seconds, each = time.perf_counter() - self.began, self.flops
        done = result.tokens * each.token + result.images * each.image + result.targets * each.target
        return {
            "step_s": seconds,
            "data_wait_s": self.waited,
            "tokens": result.tokens,
            "images": result.images,
            "targets": result.targets,
            "tokens_per_s": result.tokens / seconds,
            "images_per_s": result.images / seconds,
            "tflops": done / seconds / 1e12,
            "mfu": done / seconds / self.peak if self.peak else None,
            "memory_gb": peak_memory(self.device) / 1e9,
        }


def peak_flops(device: torch.device, precision: str) -> float:
    """Operations per second by the device's data sheet; 0 for a CPU, and for an accelerator that is not listed."""
    if device.type != "cuda":
        return 0.0
    name, memory = torch.cuda.get_device_name(device), torch.cuda.get_device_properties(device).total_memory
    known = [kind for kind in hardware.KINDS.values() if kind.name.split("-")[0] in name.replace(" ", "")]
    return min(known, key=lambda kind: abs(kind.memory - memory)).peak(precision) if known else 0.0


def peak_memory(device: torch.device) -> int:
    """Most bytes held so far: of the device's memory, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # missing on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
