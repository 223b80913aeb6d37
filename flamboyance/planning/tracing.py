"""A training step without a device: on meta tensors, counting what it computes and what it holds.

`Kernels` makes meta tensors take the paths that a real device would (fused attention, autocast's casts); `Ledger`
counts floating-point operations by part of the model and follows every live storage.
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

# What torch.autocast computes in the lower precision, and what in float32, on CUDA (documentation of torch.amp).
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


class Kernels(TorchFunctionMode):
    """Meta tensors compute as `device` would.

    Questions that only data can answer (`if mask.all()`) are answered no, as for a batch with padding.

    Args:
        device: whose attention kernels and casts.
        lower: compute in this precision where autocast would; None: no autocast.
        made: called with the result of every function.
    """

    def __init__(self, device: Device, lower: torch.dtype | None, made: Callable[[Any], None]):
        super().__init__()
        self.device, self.lower, self.made = device, lower, made
        self._casts: dict[int, Tensor] = {}  # autocast casts a parameter once
        self._keep_casts = False

    @contextmanager
    def autocast(self) -> Generator[None]:
        """A forward pass: casts of parameters are kept to its end."""
        self._keep_casts = True
        try:
            yield
        finally:
            self._keep_casts = False
            self._casts.clear()

    @staticmethod
    def backward(loss: Tensor) -> None:
        """`loss.backward()`, with the mode on: what activation checkpointing computes again goes through it too. (A
        mode is off inside the functions that it handles, and `loss.backward()` is one.)"""
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
    """`F.scaled_dot_product_attention` by the kernel that the device would choose: on meta tensors torch itself
    chooses the one that writes out all attention weights."""
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
    learns = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
    return kernels._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, learns, dropout_p, is_causal, scale=scale
    )[0]


def _cpu_attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _cpu_attention_backward_flops(_: Any, query: Any, key: Any, value: Any, *__: Any, **___: Any) -> int:
    # Five products where the forward pass has two: the weights are computed again.
    return 5 * sdpa_flop_count(query.shape, key.shape, value.shape) // 2


_CPU_FLOPS: dict[Any, Callable[..., int]] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _cpu_attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _cpu_attention_backward_flops,
}


class Ledger(TorchDispatchMode):
    """Live bytes and operations of what runs inside.

    Args:
        model: is watched from now on. Its parameters and buffers are there already, and are not counted.
        part_of: module name -> part that its operations count to.

    Attributes:
        live, peak: bytes of the storages made inside, now and at most.
        gradients: bytes of the live storages that hold parameters' gradients.
        temporary: most bytes at any moment beside gradients.
        flops: of matrix products, convolutions and attention, by (part, "forward" | "backward"); what activation
            checkpointing computes again counts as backward.
    """

    def __init__(self, model: nn.Module, part_of: Callable[[str], str]):
        super().__init__()
        self.live = self.peak = self.gradients = self.temporary = 0
        self.flops: Counter[tuple[str, str]] = Counter()
        self.direction = "forward"
        self.part = ""
        self._outer: list[str] = []
        self._sizes: dict[int, tuple[int, Any]] = {}  # by storage: bytes, and a reference that tells when it goes
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
            if isinstance(value, Tensor) and value.is_meta:  # others stay in the host's memory
                self.hold(value)
        return out

    def hold(self, tensor: Tensor) -> None:
        """Counts a tensor's storage until it goes."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known or key in self._sizes:
            return
        size = storage.nbytes()
        self._sizes[key] = size, weakref.ref(storage, lambda _: self._gone(key))
        self.live += size
        self.peak = max(self.peak, self.live)
        self.temporary = max(self.temporary, self.live - self.gradients)

    def made(self, out: Any) -> None:
        """The backward pass through what made this tensor counts to the part that is at work now."""
        if isinstance(out, Tensor) and out.grad_fn is not None:
            part = self.part
            out.grad_fn.register_prehook(lambda _: setattr(self, "part", part))

    def _gone(self, key: int) -> None:
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
