"""Linear layers for processors on which PyTorch's own use half of the machine.

PyTorch multiplies float32 matrices with Intel's MKL, which uses AVX2 at most on AMD's processors. oneDNN, which
PyTorch includes for convolutions and bfloat16, uses AVX-512 there, and is also faster with AVX2 alone if there are
few rows. The processor's type alone chooses the library, never a timing, so that a run can be repeated bit by bit:

| instruction set | float32 | bfloat16 |
| --- | --- | --- |
| AVX-512 of AMD's | oneDNN, packed | PyTorch's own (oneDNN), packed |
| AVX-512 of others' | PyTorch's own (MKL) | PyTorch's own (oneDNN), packed |
| AVX2 at most | few rows by oneDNN, packed; others and gradients by MKL | few rows by PyTorch's own, others float32 |
| less (SSE4.1) | PyTorch's own (MKL) | few rows by PyTorch's own, others in float32 |
| other processors (ARM) | PyTorch's own | PyTorch's own |

The figures are in docs/speed.md, and `python -m benchmarks.linear` measures them. ONEDNN_MAX_CPU_ISA and
ATEN_CPU_CAPABILITY, which limit the instructions that the libraries use, are respected.

oneDNN multiplies by blocks, and rearranges a plain PyTorch weight into blocks at every call. In decoding, with its few
rows, that takes most of the time. `pack` rearranges each weight once, and keeps the blocks.
"""

from __future__ import annotations

import os
import platform
import threading
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from itertools import count
from pathlib import Path
from types import MethodType
from typing import Any
from weakref import getweakrefs

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_one_at_a_time = threading.RLock()  # threads that both find a weight packed
_replacements = count(1)  # tells the contents that a packed weight has had from each other
PACKED_FOR = 16  # rows; oneDNN's blocks are the same from two on
SMALLEST = 2**16  # elements of a weight, below which the longer way to oneDNN costs more than it saves
ONEDNN_ROWS = 256  # with AVX2 alone, at most; of more, MKL multiplies a plain weight faster
WIDENED_FROM = 8  # rows; of fewer, in bfloat16, a weight's conversion takes longer than PyTorch's loops
AT_ONCE = 2**20  # elements of a weight that are converted at a time; they stay in a processor's cache


class Linear(nn.Linear):
    """torch's, multiplied by oneDNN where that is faster. (What asks for torch's exact class, as torch.ao's
    quantize_dynamic, passes it by; what takes derivatives of derivatives, or torch.func's, is refused there.)"""

    def forward(self, input: Tensor) -> Tensor:
        if self.weight.is_mkldnn and _records_gradients(input, self.weight, self.bias):
            self.unpack()
        return linear(input, self.weight, self.bias)

    @torch.no_grad()
    def pack(self) -> None:
        """Keeps the weight in oneDNN's blocks, where that is faster. It stays the same Parameter, of the same shape and
        precision, and whoever reads its values meets torch's error. A weight that has a gradient, or that a graph or a
        compiled function holds, stays plain."""
        with _one_at_a_time, torch.inference_mode(False):
            if _packs(self.weight):
                _replace(self.weight, blocks(self.weight.detach()))

    @torch.no_grad()
    def unpack(self) -> None:
        """The plain weight again, bit by bit. Moving, converting and loading unpack, do their work, and pack again; a
        forward pass that records gradients unpacks for good. Copies and saved states are plain."""
        with _one_at_a_time, torch.inference_mode(False):
            if self.weight.is_mkldnn:
                _replace(self.weight, self.weight.detach().to_dense())

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        with unpacked(self):
            return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *given: Any) -> None:
        with unpacked(self):
            super()._load_from_state_dict(*given)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.weight.is_mkldnn:
            destination[f"{prefix}weight"] = plain(self.weight)

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        if self.weight.is_mkldnn:
            weight = nn.Parameter(plain(self.weight), self.weight.requires_grad)
            state["_parameters"] = {**self._parameters, "weight": weight}
        return state


def plain(weight: Tensor) -> Tensor:
    """A weight as PyTorch keeps it; a copy of a packed one."""
    return weight.detach().to_dense() if weight.is_mkldnn else weight


def _replace(weight: Tensor, by: Tensor) -> None:
    """Gives a Parameter other content of the same values. It stays the object that an optimizer may hold."""
    other = nn.Parameter(by, weight.requires_grad)
    other.__dict__.update(weight.__dict__)
    other.__dict__["replaced"] = next(_replacements)
    torch.utils.swap_tensors(weight, other)


@torch.inference_mode(False)
@torch.no_grad()
def pack(model: nn.Module) -> None:
    """Packs every `Linear` whose weight no other module holds (a tied output head's stays plain)."""
    holders = Counter(id(p) for module in model.modules() for p in module._parameters.values() if p is not None)
    for module in model.modules():
        if isinstance(module, Linear) and holders[id(module.weight)] == 1:
            module.pack()
    if any(p.is_mkldnn for p in model.parameters()):
        for tensor in (*model.parameters(), *model.buffers()):
            ours = type(tensor) in (nn.Parameter, Tensor) and tensor.device.type == "cpu"
            if ours and not tensor.is_mkldnn and not tensor.is_shared():
                tensor.data = tensor.data.clone()  # else its mapped file would stay in memory as a whole


def unpack(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, Linear):
            module.unpack()


@contextmanager
def unpacked(model: nn.Module) -> Generator[None]:
    """Inside it, weights are plain; afterwards, those that were packed are so again."""
    found = [module for module in model.modules() if isinstance(module, Linear) and module.weight.is_mkldnn]
    unpack(model)
    try:
        yield
    finally:
        for module in found:
            module.pack()


def use_packed_linear(model: nn.Module) -> None:
    """Turns all plain linear layers of a model into these. Other kinds (quantized ones, adapters) stay."""
    for module in model.modules():
        if type(module) is nn.Linear:
            become(module, Linear)


def become(module: nn.Module, kind: type[nn.Module]) -> None:
    """Gives a module another class, and its forward to accelerate's hooks (of a model on several devices), which call
    the one that they have kept."""
    module.__class__ = kind
    if "_old_forward" in vars(module):
        vars(module)["_old_forward"] = MethodType(kind.forward, module)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (…, K), weight (N, K), plain or packed, bias (N,) -> (…, N): F.linear, equal to rounding."""
    if weight.is_mkldnn:
        alike = x.device.type == "cpu" and all(t is None or t.dtype == weight.dtype for t in (x, bias))
        if alike and x.ndim > 1 and x.numel() and not torch.is_autocast_enabled("cpu"):
            return _product(x, weight, bias)
        return F.linear(x, weight.to_dense(), bias)
    if not _suits(x, weight, bias):
        return F.linear(x, weight, bias)
    if _records_gradients(x, weight, bias):
        return _Product.apply(x, weight, bias)
    return _product(x, weight, bias)


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b, batches of matrices. PyTorch's loops for bfloat16 take up to 50 times as long as float32's products."""
    if a.dtype == b.dtype == torch.bfloat16 and a.device.type == "cpu" and bfloat16_is_slow():
        return (a.float() @ b.float()).to(a.dtype)
    return a @ b


def _records_gradients(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _suits(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    return (
        type(weight) in (nn.Parameter, Tensor)  # neither sharded nor quantized
        and type(x) in (nn.Parameter, Tensor)
        and weight.numel() >= SMALLEST
        and weight.device.type == x.device.type == "cpu"
        and weight.dtype == x.dtype
        and (bias is None or bias.dtype == x.dtype)
        and x.ndim > 1
        and x.numel() > 0
        and not torch.compiler.is_compiling()  # it chooses for itself
        and (
            (
                x.dtype == torch.float32
                and onednn_is_faster()
                and (x[..., 0].numel() <= ONEDNN_ROWS or instruction_set() != "AVX2")
            )
            or (x.dtype == torch.bfloat16 and x[..., 0].numel() >= WIDENED_FROM and bfloat16_is_slow())
        )
        and not torch.is_autocast_enabled("cpu")
    )


def _packs(weight: Any) -> bool:
    """Whether a plain weight is one that oneDNN multiplies by, faster in blocks."""
    return (
        type(weight) is nn.Parameter
        and weight.grad is None
        and weight._use_count() == 1
        and not getweakrefs(weight)
        and weight.layout == torch.strided
        and weight.device.type == "cpu"
        and weight.numel() >= SMALLEST
        and (
            (weight.dtype == torch.float32 and onednn_is_faster())
            or (weight.dtype == torch.bfloat16 and onednn_multiplies_bfloat16())
        )
    )


@cache
def onednn_multiplies_bfloat16() -> bool:
    """Whether PyTorch's bfloat16 products are oneDNN's, on a processor whose instructions its blocks are made for."""
    return instruction_set() == "AVX512" and has_onednn() and supports_bfloat16()


@cache
def onednn_is_faster() -> bool:
    """Whether oneDNN multiplies float32 matrices faster than MKL: with AVX-512 on AMD's processors, with AVX2 alone on
    any (both libraries use the same instructions there, and MKL rearranges the whole weight for a few rows too)."""
    if not (torch.backends.mkl.is_available() and has_onednn()):
        return False
    return instruction_set() == "AVX2" or (instruction_set() == "AVX512" and "AuthenticAMD" in _processor())


@torch.compiler.assume_constant_result
def bfloat16_is_slow() -> bool:
    """Whether PyTorch multiplies bfloat16 matrices by loops of its own, on processors of x86 for which oneDNN has no
    bfloat16: at 2 to 3 billion operations a second, however many rows. Of more than a few rows the same numbers in
    float32 are several times as fast."""
    return torch.backends.mkl.is_available() and not supports_bfloat16()


@cache
def instruction_set() -> str:
    """What PyTorch's libraries use of this processor: AVX512, AVX2, or another name by which nothing is chosen."""
    capability = torch.backends.cpu.get_cpu_capability()
    allowed = next((os.environ[name] for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA") if name in os.environ), "")
    if allowed.lower() in ("sse41", "avx"):
        return "DEFAULT"
    if capability == "AVX512" and allowed.lower().startswith("avx2"):
        return "AVX2"
    return capability


def _processor() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor()


# PyTorch's own names for oneDNN's products, which are private and may change: used here and nowhere else.


@cache
def has_onednn() -> bool:
    """Whether this PyTorch multiplies and packs by oneDNN when asked to: tried once, in small."""
    try:
        weight = torch.ones(16, 16, dtype=torch.float32, device="cpu")
        with torch.inference_mode():
            return all(_product(weight, each).shape == (16, 16) for each in (weight, blocks(weight)))
    except (AttributeError, RuntimeError, TypeError):  # TypeError: other arguments than these
        return False


@cache
def supports_bfloat16() -> bool:
    """Whether oneDNN multiplies in bfloat16 on this processor, if need be by float32's instructions."""
    try:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    except (AttributeError, RuntimeError):
        return False


def blocks(weight: Tensor) -> Tensor:
    """A weight (N, K) in oneDNN's blocks."""
    return torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_FOR)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if x.dtype == torch.bfloat16 and not weight.is_mkldnn and bfloat16_is_slow():
        return _widened(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _widened(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The product of bfloat16 numbers in float32, rounded at its end."""
    out, wide = x.new_empty(*x.shape[:-1], len(weight)), x.float()
    product = _product if onednn_is_faster() else F.linear
    step = max(1, AT_ONCE // weight.shape[1])
    for start in range(0, len(weight), step):
        part = slice(start, start + step)
        out[..., part] = product(wide, weight[part].float(), None if bias is None else bias[part].float())
    return out


class _Product(torch.autograd.Function):
    """The same with gradients. Keeps what they need, which is nothing of x where the weight is frozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        of_x, of_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if of_weight else None, weight if of_x else None)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        rows = gradient.flatten(0, -2)
        # With AVX2 alone MKL is ahead for these: by up to 2.1 times for narrow layers (docs/speed.md).
        plain = gradient.dtype == torch.float32 and instruction_set() == "AVX2"
        product = F.linear if plain else _product
        return (
            product(gradient, weight.t()) if of_x else None,
            product(rows.t(), x.flatten(0, -2).t()) if of_weight else None,
            rows.sum(0) if of_bias else None,
        )
