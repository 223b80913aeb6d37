"""Puts a model on one device, under DDP, or under FSDP2. The model itself knows nothing about parallelism.

Under `torchrun`, every process trains on its own batches; otherwise there is one process.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from flamboyance.model import adapters
from flamboyance.model.language import find_decoder_layers, rotary_frequencies
from flamboyance.model.quantized_linear import layers as quantized_layers
from flamboyance.model.trainable import checkpoint_layers, is_trained
from flamboyance.processes import World
from flamboyance.training.config import TrainingConfig


def decoder_layers(model: Any) -> nn.ModuleList:
    """The frozen language model's layers."""
    return find_decoder_layers(model.language_model, model.config.decoder_layers)[1]


def quantized(language_model: Any) -> bool:
    """Whether its weights are packed by another library. (Our own quantized weights are buffers, which stay as they are
    when a model is cast, and which FSDP leaves whole.)"""
    packed = any(not p.is_floating_point() for p in language_model.parameters())
    foreign = getattr(language_model, "is_quantized", False) and not quantized_layers(language_model)
    return packed or bool(foreign)


def set_precision(model: Any, precision: str) -> None:
    """Frozen parts get the computing precision, trainable parameters float32. Quantized weights are not changed."""
    frozen = torch.bfloat16 if precision == "bf16" else torch.float32
    model.remember_changes()
    for backbone in (model.vision, model.language_model):
        if not quantized(backbone):
            _set_backbone_precision(backbone, frozen)
    for part in (model.resampler, model.cross_attention, model.added_tokens):
        part.float()


def _set_backbone_precision(backbone: nn.Module, frozen: torch.dtype) -> None:
    """Casts the parameters, and the buffers as the parameters of their module: batch normalisation takes one precision
    for its weights and statistics. Buffers without parameters beside them follow the backbone, without its adapters;
    but the frequencies of rotary positions stay in float32, as transformers keeps them."""
    theirs, exact = adapters.names(backbone), rotary_frequencies(backbone)
    whole = _kind([p for name, p in backbone.named_parameters() if name not in theirs], frozen) or frozen
    kept = set(map(id, exact))
    for module in backbone.modules():
        own = _kind(module.parameters(recurse=False), frozen) or whole

        def converted(tensor: torch.Tensor, own: torch.dtype = own) -> torch.Tensor:
            if not tensor.is_floating_point() or id(tensor) in kept:
                return tensor
            if isinstance(tensor, nn.Parameter):
                return tensor.to(torch.float32 if tensor.requires_grad else frozen)
            return tensor.to(own)

        module._apply(converted, recurse=False)


def _kind(parameters: Iterable[nn.Parameter], frozen: torch.dtype) -> torch.dtype | None:
    """The precision of a part: float32 if any of its parameters is trained. None if it has none."""
    trained = [p.requires_grad for p in parameters if p.is_floating_point()]
    return (torch.float32 if any(trained) else frozen) if trained else None


def checkpoint_activations(model: Any) -> None:
    """Layers, gated blocks and the resampler's layers keep only their inputs and compute the rest again in the backward
    pass; so do those of a tower that is trained. Blocks run in hooks outside of the layers' `forward`, so each is
    checkpointed by itself."""
    if is_trained(model.vision):
        checkpoint_layers(model.vision.model)
    for module in (*decoder_layers(model), *model.blocks, *model.resampler.layers):
        module.forward = functools.partial(checkpoint, module.forward, use_reentrant=False)


def compile_layers(model: Any) -> None:
    """Compiles each layer by itself, so that hooks and context stay outside of the compiled graphs. Lengths vary from
    batch to batch, so shapes are dynamic from the start."""
    tower = [m for m in model.vision.modules() if isinstance(m, nn.ModuleList)]
    for module in (*decoder_layers(model), *model.blocks, *model.resampler.layers, *(tower[0] if tower else ())):
        module.forward = torch.compile(module.forward, dynamic=True)


def shard(model: Any, mesh: DeviceMesh, precision: str) -> None:
    """FSDP2: every part that is gathered, used and freed together is a unit.

    The projections of latents to keys and values are one unit, because they are used before their blocks. Added tokens
    and the language model's tables are in the root unit, which stays gathered: they are read through methods and ties,
    not through a module's call. A quantized language model is not sharded, because its packed weights cannot be; each
    device holds all of it.

    Raises:
        ValueError: a trained tower with batch normalisation, in bf16.
    """
    normalised = any(isinstance(module, _BatchNorm) for module in model.vision.modules())
    if precision == "bf16" and is_trained(model.vision) and normalised:
        raise ValueError(
            "unfreeze_vision=true with parallel=fsdp or hybrid and precision=bf16: FSDP would cast the weights of the "
            "tower's batch normalisation, and not its statistics; give parallel=ddp or precision=fp32"
        )
    # Frozen parts are gathered in their own precision, trainable ones in the computing precision.
    computing = torch.bfloat16 if precision == "bf16" else None
    trained = MixedPrecisionPolicy(param_dtype=computing, reduce_dtype=torch.float32)
    frozen = MixedPrecisionPolicy()

    def policy(backbone: nn.Module) -> MixedPrecisionPolicy:
        return trained if is_trained(backbone) else frozen

    whole = set(model.language_model.parameters()) if quantized(model.language_model) else set()
    options: dict[str, Any] = {"mesh": mesh, "ignored_params": whole}
    if not whole:
        for layer in decoder_layers(model):
            fully_shard(layer, mp_policy=policy(layer), **options)
    for layers in (m for m in model.vision.modules() if isinstance(m, nn.ModuleList)):
        for layer in layers:
            fully_shard(layer, mp_policy=policy(layer), **options)
        break
    fully_shard([block.attention.to_kv for block in model.blocks], mp_policy=trained, **options)
    for block in model.blocks:
        fully_shard(block, mp_policy=trained, **options)
    fully_shard(model.resampler, mp_policy=trained, **options)
    fully_shard(model, mp_policy=frozen, reshard_after_forward=False, **options)


class Parallel:
    """A model that is ready to train.

    Attributes:
        call: is called instead of the model.
    """

    def __init__(self, model: Any, config: TrainingConfig, world: World):
        self.model = model
        self.world = world
        self.sharded = config.parallel in ("fsdp", "hybrid") and world.size > 1
        model.to(world.device)
        if config.compile:
            compile_layers(model)
        if config.checkpoint_activations:
            checkpoint_activations(model)
        self.call: Any = model
        if self.sharded:
            shard(model, self._mesh(config), config.precision)
        elif world.size > 1:
            # Buffers (of frozen parts) never change, so they are not synchronised. torch 2.13 renamed the option.
            known = inspect.signature(DistributedDataParallel).parameters
            name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
            options: dict[str, Any] = {"gradient_as_bucket_view": True, name: False}
            self.call = DistributedDataParallel(model, **options)

    def _mesh(self, config: TrainingConfig) -> DeviceMesh:
        kind, size, local = self.world.device.type, self.world.size, self.world.local_size
        if config.parallel == "fsdp":
            return init_device_mesh(kind, (size,), mesh_dim_names=("shard",))
        return init_device_mesh(kind, (size // local, local), mesh_dim_names=("replicate", "shard"))

    @contextmanager
    def backward(self, last: bool) -> Generator[None]:
        """Context of each forward and backward pass of a step; gradients are exchanged only in the last one."""
        if isinstance(self.call, DistributedDataParallel):
            with nullcontext() if last else self.call.no_sync():
                yield
            return
        if self.sharded:
            self.model.set_requires_gradient_sync(last)
        yield

    @contextmanager
    def readable(self) -> Generator[Any]:
        """The model itself, for evaluation. When it is sharded every rank must do the same with it."""
        self.model.eval()
        if isinstance(self.model, FSDPModule):
            # Generation enters by methods other than forward, which alone tells FSDP which module is the root.
            self.model._get_fsdp_state()._lazy_init()
            self.model.unshard()  # those methods read the root's parameters
        try:
            yield self.model
        finally:
            if isinstance(self.model, FSDPModule):
                self.model.reshard()
            self.model.train()

    def tanh(self, gates: Sequence[torch.Tensor]) -> list[float]:
        """tanh of gates, each of one element. Every rank of a sharded model must call this."""
        gates = [gate.detach() for gate in gates]
        if self.sharded:
            gates = [self.whole(gate) for gate in gates]
        return torch.cat(list(gates)).float().tanh().tolist()

    @staticmethod
    def whole(tensor: torch.Tensor) -> torch.Tensor:
        """The whole tensor, on the CPU. Every rank must call this for a sharded tensor."""
        return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).cpu()
