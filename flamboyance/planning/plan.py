"""Estimates of the memory, time and data of a run.

Operations and memory are counted (cost.py, memory.py). Times follow from data sheets (hardware.py) and from assumptions
that are printed with the result.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any

from flamboyance.configuration import FlamingoConfig
from flamboyance.planning import cost
from flamboyance.planning.cost import BatchSizes, Trace
from flamboyance.planning.memory import (
    FLOAT,
    Devices,
    Memory,
    PartSize,
    ShardingUnits,
    Traffic,
    memory,
    parts,
    traffic,
    units,
)
from flamboyance.training.config import TrainingConfig
from flamboyance.training.hardware import Hardware
from flamboyance.training.trained_parts import TrainedParts

REACHED = 0.8  # fraction of the data sheet's bandwidth that long transfers reach, of a link or of memory


@dataclass(frozen=True)
class Assumptions:
    """Values that cannot be counted.

    Attributes:
        mfu: fraction of the data sheet's peak that the forward and backward passes reach, including the recomputing of
            activation checkpointing.
        images_per_document: mean of interleaved sources.
        image_bytes: mean size of a stored image.
        decoded: images that one CPU core decodes, resizes and crops per second.
    """

    mfu: float = 0.35
    images_per_document: float = 3.0
    image_bytes: float = 60e3
    decoded: float = 400.0


@dataclass(frozen=True)
class Plan:
    """A run on some devices.

    Attributes:
        parts: parameters by part.
        memory: of one device, with the largest batches of the sources.
        flops: of one device per optimizer step, by (part, direction), with typical batches.
        traffic: bytes that one device receives per optimizer step.
        batches: the typical batch of each source.
        not_counted: what the run has and the estimates lack, in words.
    """

    training: TrainingConfig
    hardware: Hardware
    devices: Devices
    assumptions: Assumptions
    parts: dict[str, PartSize]
    memory: Memory
    flops: Counter[tuple[str, str]]
    traffic: Traffic
    batches: dict[str, BatchSizes]
    not_counted: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        return self.memory.total <= self.hardware.memory

    # Seconds per optimizer step ---------------------------------------------------------------------------------

    @property
    def compute_s(self) -> float:
        speed = self.hardware.peak(self.training.precision) * self.assumptions.mfu
        return sum(self.flops.values()) / speed + self.update_s

    @property
    def update_s(self) -> float:
        """AdamW reads the parameter, the gradient and two moments, and writes all but the gradient."""
        trained = sum(part.trained for part in self.parts.values()) / self.devices.shards
        return 7 * FLOAT * trained / (REACHED * self.hardware.memory_bandwidth)

    @property
    def network_s(self) -> float:
        """Links within a node and the network between nodes transfer at the same time."""
        link, network = self.traffic.link / self.hardware.link, self.traffic.network / self.hardware.network
        return max(link, network) / REACHED

    @property
    def exposed_network_s(self) -> float:
        """Network time that does not overlap with computing. Under DDP, gradients overlap with the last backward pass;
        gathered parameters overlap with all computing."""
        if self.devices.shards > 1:
            return max(0.0, self.network_s - self.compute_s)
        passes = len(self.batches) * self.training.gradient_accumulation_steps
        backward = sum(n for (_, direction), n in self.flops.items() if direction == "backward") / passes
        hidden = backward / (self.hardware.peak(self.training.precision) * self.assumptions.mfu)
        return max(0.0, self.network_s - hidden)

    @property
    def step_s(self) -> float:
        return self.compute_s + self.exposed_network_s

    @property
    def total_s(self) -> float:
        return self.step_s * self.training.steps

    # Data of all devices per optimizer step ---------------------------------------------------------------------

    def _each_step(self, field: str) -> int:
        rounds = self.training.gradient_accumulation_steps * self.devices.count
        return sum(getattr(sizes, field) for sizes in self.batches.values()) * rounds

    @property
    def samples(self) -> int:
        return self._each_step("rows")

    @property
    def images(self) -> int:
        return self._each_step("images")

    @property
    def tokens(self) -> int:
        rounds = self.training.gradient_accumulation_steps * self.devices.count
        return sum(sizes.rows * sizes.tokens for sizes in self.batches.values()) * rounds

    @property
    def read_bytes(self) -> float:
        """Bytes read per optimizer step."""
        return self.images * self.assumptions.image_bytes

    @property
    def decoding_cores(self) -> float:
        """CPU cores per node that decoding keeps busy."""
        return self.images / self.step_s / self.assumptions.decoded / self.devices.nodes


class Planner:
    """Plans of one model; counts are cached.

    Args:
        config: the model's.
        hardware: one of `hardware.KINDS`, or this machine.
    """

    def __init__(self, config: FlamingoConfig, hardware: Hardware, assumptions: Assumptions | None = None):
        self.config, self.hardware = config, hardware
        self.assumptions = assumptions or Assumptions()
        self._traces: dict[Any, Trace] = {}
        self._models: dict[Any, tuple[dict[str, PartSize], ShardingUnits]] = {}

    def plan(self, training: TrainingConfig, gpus: int, per_node: int = 8) -> Plan:
        """A run on `gpus` devices, `per_node` in each node.

        Raises:
            ValueError: the devices do not fill the nodes, or hybrid sharding has one node only.
        """
        if gpus > per_node and gpus % per_node:
            raise ValueError(f"{gpus} devices do not fill nodes of {per_node}: give a multiple, or --per-node.")
        per_node = min(gpus, per_node)
        spread = "ddp" if training.parallel == "auto" else training.parallel
        devices = Devices(spread if gpus > 1 else "single", gpus // per_node, per_node)
        table, gathers = self._model(training)
        usual = {n: cost.typical_batch(s, self.assumptions.images_per_document) for n, s in training.sources.items()}
        largest = [cost.largest_batch(source) for source in training.sources.values()]
        passes = len(usual) * training.gradient_accumulation_steps
        once = self._trace(list(usual.values()), training, devices).flops
        return Plan(
            training=training,
            hardware=self.hardware,
            devices=devices,
            assumptions=self.assumptions,
            parts=table,
            memory=memory(
                table,
                gathers,
                self._trace(largest, training, devices),
                devices,
                passes=passes,
                micro_steps=training.gradient_accumulation_steps,
                hardware=self.hardware,
            ),
            flops=Counter({key: n * training.gradient_accumulation_steps for key, n in once.items()}),
            traffic=traffic(table, gathers, devices, passes),
            batches=usual,
            not_counted=self._not_counted(training),
        )

    def _not_counted(self, training: TrainingConfig) -> tuple[str, ...]:
        found = []
        if self.config.resampler.get("max_frames"):
            found.append(
                f"the frames of videos: each is taken for one image, and may have {self.config.resampler['max_frames']}"
            )
        if training.cache_features:
            found.append("cache_features: the tower and decoding are in every step here, not in the first pass alone")
        if training.compile:
            found.append("compile, with which steps are faster")
        return tuple(found)

    def cheaper_plans(self, plan: Plan) -> Generator[tuple[str, Plan]]:
        """(settings, plan) of changes that save memory, those that cost the least time first, each on top of the
        earlier ones."""
        training, gpus, per_node = plan.training, plan.devices.count, plan.devices.per_node
        changes: dict[str, str] = {}

        def planned(**fields: Any) -> tuple[str, Plan]:
            nonlocal training
            training = replace(training, **fields)
            return " ".join(f"{k}={v}" for k, v in changes.items()), self.plan(training, gpus, per_node)

        if plan.devices.nodes > 1 and training.parallel in ("auto", "ddp"):
            changes["parallel"] = "hybrid"
            yield planned(parallel="hybrid")
        if gpus > 1 and training.parallel != "fsdp":
            changes["parallel"] = "fsdp"
            yield planned(parallel="fsdp")
        if not training.checkpoint_activations:
            changes["checkpoint_activations"] = "true"
            yield planned(checkpoint_activations=True)
        while any(source.batch_size > 1 for source in training.sources.values()):
            sources = {n: replace(s, batch_size=max(1, s.batch_size // 2)) for n, s in training.sources.items()}
            changes |= {f"{name}.batch_size": str(source.batch_size) for name, source in sources.items()}
            changes["gradient_accumulation_steps"] = str(2 * training.gradient_accumulation_steps)
            yield planned(sources=sources, gradient_accumulation_steps=2 * training.gradient_accumulation_steps)

    def _model(self, training: TrainingConfig) -> tuple[dict[str, PartSize], ShardingUnits]:
        key = training.precision, TrainedParts.of(training)
        if key not in self._models:
            model = cost.meta_model(self.config, *key)
            self._models[key] = parts(model), units(model, training.precision)
        return self._models[key]

    def _trace(self, batches: list[BatchSizes], training: TrainingConfig, devices: Devices) -> Trace:
        trained = TrainedParts.of(training)
        key = (*batches, training.precision, training.checkpoint_activations, devices.shards > 1, trained)
        if key not in self._traces:
            self._traces[key] = cost.trace(
                self.config,
                batches,
                device="cpu" if self.hardware.is_cpu else "cuda",
                precision=training.precision,
                checkpoint_activations=training.checkpoint_activations,
                sharded=devices.shards > 1,
                trained=trained,
            )
        return self._traces[key]
