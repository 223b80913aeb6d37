"""Counts the operations and the memory of a training step on meta tensors, without a device.

`DeviceKernels` makes meta tensors take the paths of a real device: fused attention, and autocast's casts. `CostLedger`
counts operations by part of the model, and follows every live storage. torch's own `FlopCounterMode` counts
the same number of operations (docs/scaling.md), but neither memory nor, apart from each other, the forward and backward
pass of the blocks that run inside the language model's layers.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

Device = Literal["cuda", "cpu"]

# Functions that torch.autocast computes in the lower precision, and in float32, on CUDA (documentation of torch.amp).
_ATTENTION: Any = F.scaled_dot_product_attention
_LOWER: set[Any] = {
    _ATTENTION,
    F.linear,
    F.conv1d,
    F.conv2d,
    F.conv3d,
    torch.einsum,
    Tensor.__matmul__,
    Tensor.__rmatmul__,
}
_SINGLE: set[Any] = {F.layer_norm, F.group_norm, F.softmax, F.log_softmax, F.cross_entropy, F.softplus}
for _owner in (torch, Tensor):
    _LOWER |= {getattr(_owner, name) for name in "matmul mm bmm addmm addbmm baddbmm".split()}
    _SINGLE |= {getattr(_owner, name) for name in "exp log pow rsqrt sum cumsum prod softmax log_softmax".split()}
_SINGLE |= {torch.layer_norm, torch.group_norm, Tensor.__pow__}


class DeviceKernels(TorchFunctionMode):
    """Makes meta tensors compute as `device` would.

    Conditions that depend on data (`if mask.all()`) are false, as for a batch with padding.

    Args:
        device: the device whose attention kernels and casts are used.
        lower: the precision of autocast; None: no autocast.
        made: called with the result of every function.
    """

    def __init__(self, device: Device, lower: torch.dtype | None, made: Callable[[Any], None]):
        super().__init__()
        self.device, self.lower, self.made = device, lower, made
        self._casts: dict[int, Tensor] = {}  # autocast casts each parameter once
        self._keep_casts = False

    @contextmanager
    def autocast(self) -> Generator[None]:
        """A forward pass; casts of parameters are kept until its end."""
        self._keep_casts = True
        try:
            yield
        finally:
            self._keep_casts = False
            self._casts.clear()

    @staticmethod
    def backward(loss: Tensor) -> None:
        """`loss.backward()` with this mode enabled, so that the recomputing of activation checkpointing goes through it
        too. (A mode is disabled inside the functions that it handles, and `loss.backward()` is one of them.)"""
        engine = torch.autograd.Variable._execution_engine
        engine.run_backward((loss,), (torch.ones_like(loss),), False, False, (), True, accumulate_grad=True)

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func in (Tensor.item, Tensor.__bool__) and args[0].is_meta:
            return False
        if self.lower is not None and not kwargs.get("dtype"):
            if func in _LOWER:
                args, kwargs = self._cast((args, kwargs), self.lower)
            elif func in _SINGLE:
                args, kwargs = self._cast((args, kwargs), torch.float32)
        out = attention(self.device, *args, **kwargs) if func is _ATTENTION else func(*args, **kwargs)
        self.made(out)
        return out

    def _cast(self, values: Any, dtype: torch.dtype) -> Any:
        def cast(value: Any) -> Any:
            if not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype == dtype:
                return value
            if not (self._keep_casts and value.is_leaf and value.requires_grad):
                return value.to(dtype)
            if id(value) not in self._casts:
                self._casts[id(value)] = value.to(dtype)
            return self._casts[id(value)]

        return tree_map(cast, values)


def attention(
    device: Device,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`F.scaled_dot_product_attention` by the kernel that the device would choose. For meta tensors, torch chooses the
    kernel that writes all attention weights to memory."""
    kernels = torch.ops.aten
    if enable_gqa and device == "cuda" and attn_mask is not None:
        key, value = (t.repeat_interleave(query.shape[-3] // t.shape[-3], -3) for t in (key, value))
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill_(attn_mask.logical_not(), -torch.inf)
    if device == "cpu":
        return kernels._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale
        )[0]
    if attn_mask is None and query.dtype != torch.float32:
        return kernels._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, scale=scale)[0]
    if attn_mask is not None:
        attn_mask = attn_mask.expand(*query.shape[:-1], key.shape[-2])
    needs_grad = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
    return kernels._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, needs_grad, dropout_p, is_causal, scale=scale
    )[0]


def _cpu_attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _cpu_attention_backward_flops(_: Any, query: Any, key: Any, value: Any, *__: Any, **___: Any) -> int:
    # Five products instead of the forward pass's two: the attention weights are computed again.
    return 5 * sdpa_flop_count(query.shape, key.shape, value.shape) // 2


_CPU_FLOPS: dict[Any, Callable[..., int]] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _cpu_attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _cpu_attention_backward_flops,
}


class CostLedger(TorchDispatchMode):
    """Counts live bytes and operations of the code that runs in this mode.

    Args:
        model: is observed by hooks from now on. Its parameters and buffers are not counted.
        part_of: module name -> the part that the module's operations belong to.

    Attributes:
        live, peak: bytes of the storages made in this mode: current, and highest.
        gradients: bytes of the live storages that hold parameters' gradients.
        temporary: peak bytes without gradients.
        flops: of matrix products, convolutions and attention, by (part, "forward" | "backward"). The recomputing of
            activation checkpointing counts as backward.
    """

    def __init__(self, model: nn.Module, part_of: Callable[[str], str]):
        super().__init__()
        self.live = self.peak = self.gradients = self.temporary = 0
        self.flops: Counter[tuple[str, str]] = Counter()
        self.direction = "forward"
        self.part = ""
        self._outer: list[str] = []
        self._sizes: dict[int, tuple[int, Any]] = {}  # by storage: bytes, and a weak reference
        self._gradients: set[int] = set()
        self._known = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
        for name, module in model.named_modules():
            self._watch(module, part_of(name))
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._accumulated)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        count = _CPU_FLOPS.get(func._overloadpacket) or flop_registry.get(func._overloadpacket)
        if count is not None:
            self.flops[self.part, self.direction] += count(*args, **kwargs, out_val=out)
        for value in tree_leaves(out):
            if isinstance(value, Tensor) and value.is_meta:  # others are in the host's memory
                self.hold(value)
        return out

    def hold(self, tensor: Tensor) -> None:
        """Counts a tensor's storage until it is freed."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known or key in self._sizes:
            return
        size = storage.nbytes()
        self._sizes[key] = size, weakref.ref(storage, lambda _: self._freed(key))
        self.live += size
        self.peak = max(self.peak, self.live)
        self.temporary = max(self.temporary, self.live - self.gradients)

    def made(self, out: Any) -> None:
        """The backward pass through this tensor counts to the current part."""
        if isinstance(out, Tensor) and out.grad_fn is not None:
            part = self.part
            out.grad_fn.register_prehook(lambda _: setattr(self, "part", part))

    def _freed(self, key: int) -> None:
        size, _ = self._sizes.pop(key)
        self.live -= size
        if key in self._gradients:
            self._gradients.discard(key)
            self.gradients -= size

    def _accumulated(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        key = parameter.grad.untyped_storage()._cdata
        if key in self._sizes and key not in self._gradients:
            self._gradients.add(key)
            self.gradients += self._sizes[key][0]

    def _watch(self, module: nn.Module, part: str) -> None:
        def enter(*_: Any) -> None:
            self._outer.append(self.part)
            self.part = part

        def leave(*_: Any) -> None:
            self.part = self._outer.pop()

        module.register_forward_pre_hook(enter, prepend=True)
        module.register_forward_hook(leave, always_call=True)
