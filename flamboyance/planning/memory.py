"""Memory of a device in training, by part and for each kind of parallelism; and traffic between devices."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, Literal

from torch import nn

from flamboyance.model.quantized_linear import layers
from flamboyance.model.trainable import is_trained
from flamboyance.planning.cost import PARTS, Trace, part_names
from flamboyance.training.hardware import Hardware
from flamboyance.training.parallel import decoder_layers

Parallelism = Literal["single", "ddp", "fsdp", "hybrid"]

FLOAT = 4  # bytes of a trainable parameter, its gradient, and each of AdamW's two moments


@dataclass(frozen=True)
class Devices:
    """The number of devices, and how the model is spread over them."""

    spread: Parallelism
    nodes: int
    per_node: int

    @property
    def count(self) -> int:
        return self.nodes * self.per_node

    @property
    def shards(self) -> int:
        """Number of devices that each parameter is sharded over."""
        return {"fsdp": self.count, "hybrid": self.per_node}.get(self.spread, 1)


@dataclass(frozen=True)
class PartSize:
    """Number of frozen and trainable parameters of a part, and bytes of the frozen ones. `whole_bytes`: of quantized
    weights, which are not sharded."""

    frozen: int
    trained: int
    frozen_bytes: int
    whole_bytes: int = 0


def parts(model: Any) -> dict[str, PartSize]:
    """The size of each part of a model; a tied output head is counted with the language model."""
    part_of = part_names(model)
    table = {name: [0, 0, 0, 0] for name in PARTS}
    quantized = dict(layers(model))
    for name, parameter in model.named_parameters():
        row, size = table[part_of(name)], parameter.numel()
        row[1 if parameter.requires_grad else 0] += size
        if not parameter.requires_grad:
            row[2] += size * parameter.element_size()
    for name, buffer in model.named_buffers():
        kind = 3 if name.rpartition(".")[0] in quantized else 2
        table[part_of(name)][kind] += buffer.numel() * buffer.element_size()
    for path, layer in quantized.items():
        table[part_of(path)][0] += layer.in_features * layer.out_features
    return {name: PartSize(*row) for name, row in table.items()}


@dataclass(frozen=True)
class ShardingUnits:
    """Bytes of the units that FSDP gathers (`parallel.shard`), in the computing precision.

    Attributes:
        twice: sum of the units that both the forward and the backward pass gather.
        once: sum of the layers of a frozen tower, which have no backward pass.
        root: the rest, which stays gathered from its first use to its last.
        largest: the largest unit except the root.
        largest_trained: number of parameters of the largest trainable unit.
    """

    twice: int
    once: int
    root: int
    largest: int
    largest_trained: int


def units(model: Any, precision: str) -> ShardingUnits:
    """Sizes of the units of `parallel.shard`."""
    width = 2 if precision == "bf16" else FLOAT

    def size(parameters: Iterable[nn.Parameter]) -> int:
        return sum(p.numel() * (width if p.requires_grad else p.element_size()) for p in parameters)

    decoder = [list(layer.parameters()) for layer in decoder_layers(model)]
    tower = next((m for m in model.vision.modules() if isinstance(m, nn.ModuleList)), ())
    towers = [list(layer.parameters()) for layer in tower]
    to_kv = [p for block in model.blocks for p in block.attention.to_kv.parameters()]
    apart = {id(p) for p in to_kv}
    blocks = [[p for p in block.parameters() if id(p) not in apart] for block in model.blocks]
    listed = [*decoder, *towers, to_kv, list(model.resampler.parameters()), *blocks]
    once = sum(map(size, towers)) if not is_trained(model.vision) else 0
    return ShardingUnits(
        twice=sum(map(size, listed)) - once,
        once=once,
        root=size(model.parameters()) - sum(map(size, listed)),
        largest=max(map(size, listed)),
        largest_trained=max(sum(p.numel() for p in unit if p.requires_grad) for unit in listed),
    )


@dataclass(frozen=True)
class Memory:
    """Peak memory of one device, in bytes.

    Attributes:
        frozen, trained: parameters.
        gradients, optimizer: of the trainable parameters.
        gathered: parameters and gradients of the units that FSDP has gathered at the same time.
        temporary: activations, logits and workspace.
        fragments: lost between the allocator's blocks.
        reserve: used by the driver and libraries.
    """

    frozen: float
    trained: float
    gradients: float
    optimizer: float
    gathered: float
    temporary: float
    fragments: float
    reserve: float

    @property
    def total(self) -> float:
        return sum(getattr(self, field.name) for field in fields(self))


def memory(
    table: dict[str, PartSize],
    gathers: ShardingUnits,
    traced: Trace,
    devices: Devices,
    *,
    passes: int,
    micro_steps: int,
    hardware: Hardware,
) -> Memory:
    """Peak memory of one device.

    Args:
        table, gathers, traced: the model's `parts` and `units`, and a micro-step of the largest batches.
        micro_steps: per optimizer step.
        passes: forward and backward passes per optimizer step (sources · micro_steps).
    """
    trained = FLOAT * sum(part.trained for part in table.values())
    gradients, temporary, gathered = float(trained), traced.temporary, 0.0
    if devices.spread == "single" and micro_steps == 1:
        # Gradients are allocated in the first backward pass; the peak may be before.
        temporary = max(traced.peak - trained, 0)
    if devices.shards > 1:
        # One unit computes while the next one arrives in a flat buffer, which is then split.
        gathered = gathers.root + 3 * gathers.largest + 2 * FLOAT * gathers.largest_trained
        if passes == 1:  # accumulated gradients are sharded only after the last pass
            gradients /= devices.shards
    frozen = sum(part.frozen_bytes / devices.shards + part.whole_bytes for part in table.values())
    parameters, moments = trained / devices.shards, 2 * trained / devices.shards
    tensors = frozen + parameters + moments + gradients + gathered + temporary
    return Memory(
        frozen=frozen,
        trained=parameters,
        gradients=gradients,
        optimizer=moments,
        gathered=gathered,
        temporary=temporary,
        fragments=hardware.fragments * tensors,
        reserve=hardware.reserve,
    )


@dataclass(frozen=True)
class Traffic:
    """Bytes that one device receives per optimizer step: within its node, and from other nodes."""

    link: float
    network: float


def traffic(table: dict[str, PartSize], gathers: ShardingUnits, devices: Devices, passes: int) -> Traffic:
    """Traffic of hierarchical collectives: each device receives its share of a tensor from other nodes, and the devices
    of a node exchange their shares."""
    gradients = FLOAT * sum(part.trained for part in table.values())
    inside, outside = 1 - 1 / devices.per_node, 1 - 1 / devices.nodes
    share = gradients / devices.per_node
    if devices.count == 1:
        return Traffic(0, 0)
    if devices.spread in ("single", "ddp"):  # an all-reduce is a reduce-scatter and an all-gather
        return Traffic(2 * gradients * inside, 2 * share * outside)
    gathered = passes * (2 * gathers.twice + gathers.once + gathers.root)
    if devices.spread == "hybrid":
        return Traffic((gathered + gradients) * inside, 2 * share * outside)
    whole = gathered + gradients
    return Traffic(whole * inside, whole / devices.per_node * outside)
