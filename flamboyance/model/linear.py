"""Linear layers on processors where PyTorch's own leave half of the machine idle.

PyTorch multiplies float32 matrices by Intel's MKL, which keeps to AVX2 on AMD's processors. oneDNN, which PyTorch also
carries (for convolutions and bfloat16), uses AVX-512 on them. Measured on 2 cores of an AMD EPYC with torch 2.13 and a
weight of 3072 × 768: 1,000 rows at 190 and 420 billion operations a second, 3 rows (a decode step's) at 7 and 28 GB of
weights a second; the products of the backward pass as the first (`python -m benchmarks.linear`).

Which of the two computes follows from the machine alone, never from a timing, so that a run can be repeated bit by bit.
"""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

SMALLEST = 2**16  # elements of a weight, below which the longer way to oneDNN costs more than it saves


class Linear(nn.Linear):
    """torch's, multiplied by oneDNN where that is faster. (What asks for torch's exact class, as torch.ao's
    quantize_dynamic, passes it by; what takes derivatives of derivatives, or torch.func's, is refused there.)"""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


def adopt(model: nn.Module) -> None:
    """Turns all plain linear layers of a model into these. Other kinds (quantised ones, adapters) stay."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (…, K), weight (N, K), bias (N,) -> (…, N): F.linear, equal to rounding."""
    if not _suits(x, weight, bias):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias)):
        return _Product.apply(x, weight, bias)
    return _product(x, weight, bias)


def _suits(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    return (
        type(weight) in (nn.Parameter, Tensor)  # neither sharded nor quantised
        and type(x) in (nn.Parameter, Tensor)
        and weight.numel() >= SMALLEST
        and weight.device.type == x.device.type == "cpu"
        and weight.dtype == x.dtype == torch.float32
        and (bias is None or bias.dtype == torch.float32)
        and x.ndim > 1
        and x.numel() > 0
        and not torch.compiler.is_compiling()  # it chooses for itself
        and onednn_is_faster()
        and not torch.is_autocast_enabled("cpu")
    )


@cache
def onednn_is_faster() -> bool:
    """Whether this is a processor of AMD's with AVX-512, and PyTorch has both libraries."""
    libraries = torch.backends.mkl.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return libraries and torch.backends.cpu.get_cpu_capability() == "AVX512" and "AuthenticAMD" in _processor()


def _processor() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return platform.processor()


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


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
        return (
            _product(gradient, weight.t()) if of_x else None,
            _product(rows.t(), x.flatten(0, -2).t()) if of_weight else None,
            rows.sum(0) if of_bias else None,
        )
