"""Frozen linear layers whose weights are kept as integers of 8 or 4 bits; activations keep their precision.

| scheme | a weight is | integers | scales |
| --- | --- | --- | --- |
| int8 | scale · q, q in -127 … 127 | int8 (N, K) | one per row |
| int4 | scale · (q - 8) + zero, q in 0 … 15 | two in a byte (N, K/2) | and zeros: per row and 128 columns |

Scales and zeros are rounded to bfloat16 before the integers are chosen, so a layer means the same numbers in every
precision. They keep that precision when the model is cast.

Activations are never rounded more than the model's own precision rounds them. On a CPU, a part of the weight that fits
its caches is converted to float32 at a time, and multiplied there: the whole weight is never in memory, and decoding
reads a quarter (an eighth) of float32's bytes. In bfloat16, few rows are multiplied by PyTorch's own kernel for 8-bit
weights. Other devices convert larger parts.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from flamboyance.model.linear import AT_ONCE, bfloat16_is_slow

GROUPS = (128, 64, 32, 16)  # columns with a common scale in int4: the first of these that divides the row
KERNEL_ROWS = 8  # bfloat16 rows that PyTorch's kernel multiplies faster than a converted weight
AT_ONCE_ELSEWHERE = 2**22  # elements of a weight that are converted at a time on other devices than a CPU
TENSORS = ("qweight", "scales", "zeros")


class QuantizedLinear(nn.Linear):
    """A linear layer with a frozen weight of 8 or 4 bits. Gradients flow through it to its input.

    A subclass of torch's, so that PEFT puts adapters on it.

    Args:
        in_features, out_features: K and N.
        bits: 8 or 4.
        bias: the layer's own bias, which stays as it is.

    Attributes:
        qweight: (N, K) int8; or (N, K/2) uint8, with column k in the low four bits and column k + K/2 in the high ones.
        scales: (N, 1); or (N, G) of G groups; bfloat16.
        zeros: (N, G) bfloat16, in int4.
    """

    qweight: Tensor
    scales: Tensor
    zeros: Tensor | None

    _is_hf_initialized = True  # else transformers would give it random weights

    def __init__(
        self, in_features: int, out_features: int, bits: int, bias: nn.Parameter | None = None, device: Any = None
    ) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.bits = in_features, out_features, bits
        groups = in_features // group_of(in_features) if bits == 4 else 1
        table = torch.zeros(out_features, groups, dtype=torch.bfloat16, device=device)
        shape, kind = (
            ((out_features, in_features), torch.int8) if bits == 8 else ((out_features, in_features // 2), torch.uint8)
        )
        self.register_buffer("qweight", torch.zeros(shape, dtype=kind, device=device))
        self.register_buffer("scales", table)
        self.register_buffer("zeros", table.clone() if bits == 4 else None)
        self.register_parameter("bias", bias)

    @classmethod
    @torch.no_grad()
    def of(cls, weight: Tensor, bits: int, bias: nn.Parameter | None = None) -> QuantizedLinear:
        """The layer of a weight (N, K).

        Raises:
            ValueError: the weight is not finite.
        """
        layer = cls(weight.shape[1], weight.shape[0], bits, bias, device="meta")
        for name, tensor in zip(TENSORS, quantize(weight, bits), strict=True):
            setattr(layer, name, tensor)
        return layer

    @property
    def weight(self) -> Tensor:  # ty: ignore[incompatible-property-override]
        """The integers in one row, so that a product with them fails. PEFT and others look at a layer's weight; only
        `dequantized` gives its values."""
        integers = self.qweight.flatten()
        vars(integers)["_is_hf_initialized"] = True  # as below
        return integers

    def forward(self, input: Tensor) -> Tensor:
        if not input.is_meta and torch.is_autocast_enabled(input.device.type):
            input = input.to(torch.get_autocast_dtype(input.device.type))
        if torch.compiler.is_compiling():
            out = F.linear(input, self.dequantized(input.dtype))
        elif torch.is_grad_enabled() and input.requires_grad:
            out = _Product.apply(input, self)
        else:
            out = self.product(input)
        return out if self.bias is None else out + self.bias.to(out.dtype)

    def dequantized(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The whole weight (N, K)."""
        return self._part(slice(None)).to(dtype)

    def product(self, x: Tensor) -> Tensor:
        """x (…, K) -> x · weightᵀ (…, N), in the precision of x."""
        rows = x.reshape(-1, self.in_features)
        few = x.device.type == "cpu" and x.dtype == torch.bfloat16 and len(rows) <= KERNEL_ROWS and self.bits == 8
        out = torch._weight_int8pack_mm(rows, self.qweight, self.scales[:, 0]) if few else self._by_parts(rows)
        return out.view(*x.shape[:-1], self.out_features)

    def _by_parts(self, rows: Tensor) -> Tensor:
        out, given = rows.new_empty(len(rows), self.out_features), rows.to(_computing(rows))
        for part in self._parts():
            out[:, part] = F.linear(given, self._part(part).to(given.dtype))
        return out

    def gradient(self, gradient: Tensor) -> Tensor:
        """The gradient (…, N) of the product -> that of its input (…, K)."""
        rows = gradient.reshape(-1, self.out_features).to(_computing(gradient))
        out = rows.new_zeros(len(rows), self.in_features)
        for part in self._parts():
            out.addmm_(rows[:, part], self._part(part).to(rows.dtype))
        return out.to(gradient.dtype).view(*gradient.shape[:-1], self.in_features)

    def _parts(self) -> list[slice]:
        step = max(1, (AT_ONCE if self.qweight.device.type == "cpu" else AT_ONCE_ELSEWHERE) // self.in_features)
        return [slice(start, start + step) for start in range(0, self.out_features, step)]

    def _part(self, rows: slice) -> Tensor:
        """Some rows of the weight, in float32."""
        integers, scales = self.qweight[rows], self.scales[rows].float()
        if self.zeros is None:
            return integers.float().mul_(scales)
        half = self.in_features // 2
        part = torch.empty(len(integers), self.in_features, dtype=torch.float32, device=integers.device)
        part[:, :half] = integers & 15
        part[:, half:] = integers >> 4
        zeros = self.zeros[rows].float().sub_(scales, alpha=8)
        part.view(*scales.shape, -1).mul_(scales[..., None]).add_(zeros[..., None])
        return part

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        before = {name: tensor for name in TENSORS if (tensor := getattr(self, name)) is not None}
        super()._apply(fn, recurse)
        for name, tensor in before.items():
            if (now := getattr(self, name)).dtype != tensor.dtype:
                setattr(self, name, tensor.to(now.device))
        return self

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, bits={self.bits}"


class _Product(torch.autograd.Function):
    """The product with the gradient of its input, for which nothing but the layer is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantizedLinear) -> Tensor:
        ctx.layer = layer
        return layer.product(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.layer.gradient(gradient), None


def _computing(x: Tensor) -> torch.dtype:
    """The precision to multiply in: that of x, unless the processor has no products of it."""
    slow = x.device.type == "cpu" and (x.dtype == torch.float16 or (x.dtype == torch.bfloat16 and bfloat16_is_slow()))
    return torch.float32 if slow else x.dtype


def group_of(columns: int) -> int:
    """The number of columns that share a scale in int4; 0 if the row has none of these sizes."""
    return next((size for size in GROUPS if columns % size == 0), 0)


def quantize(weight: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """A weight (N, K) -> qweight, scales and zeros as in QuantizedLinear.

    int8 is symmetric about zero, with the largest value of each row at the end of its range; int4 spreads its 16 values
    evenly from a group's smallest to its largest value.

    Raises:
        ValueError: the weight is not finite.
    """
    if weight.is_meta:
        layer = QuantizedLinear(weight.shape[1], weight.shape[0], bits, device="meta")
        return layer.qweight, layer.scales, layer.zeros
    step = max(1, AT_ONCE // weight.shape[1])
    parts = [_quantized(part.float(), bits) for part in weight.detach().split(step)]
    qweight, scales, zeros = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    if not (scales.isfinite().all() and zeros.isfinite().all()):
        raise ValueError("the weight holds NaN or infinity, and cannot be quantized")
    return qweight, scales, zeros if bits == 4 else None


def _quantized(weight: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    if bits == 8:
        scales = _rounded_up(weight.abs().amax(1, keepdim=True) / 127)
        qweight = (weight / scales.float()).round_().clamp_(-127, 127).to(torch.int8)
        return qweight, scales, torch.zeros_like(scales)
    groups = weight.unflatten(1, (-1, group_of(weight.shape[1])))
    least, most = groups.aminmax(dim=-1)
    scales = _rounded_up((most - least) / 15)
    zeros = (least + 8 * scales.float()).to(torch.bfloat16)
    q = (groups - zeros.float()[..., None]).div_(scales.float()[..., None]).round_().add_(8).clamp_(0, 15)
    low, high = q.flatten(1).to(torch.uint8).chunk(2, dim=1)
    return low | high << 4, scales, zeros


def _rounded_up(scales: Tensor) -> Tensor:
    """To bfloat16, never to less, so that the largest value stays in range; and never to zero."""
    near = scales.clamp(min=torch.finfo(torch.bfloat16).tiny).to(torch.bfloat16)
    return torch.where(near.float() < scales, near * (1 + 2**-7), near)


def layers(model: nn.Module) -> list[tuple[str, QuantizedLinear]]:
    """The quantized layers of a model, and their paths."""
    return [(path, module) for path, module in model.named_modules() if isinstance(module, QuantizedLinear)]


def count(module: nn.Module) -> int:
    """The number of parameters, a quantized weight's elements among them."""
    return sum(p.numel() for p in module.parameters()) + sum(
        layer.in_features * layer.out_features for _, layer in layers(module)
    )
