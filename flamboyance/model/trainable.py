"""The trainable parameters of a model, and the tensors that have to be saved.

The resampler, the cross-attention and the added tokens are a Flamingo's own parts, which are always saved. The
backbones are opened by name; of them, adapters, trainable parameters, and weights that changed since are saved.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import PreTrainedModel

from flamboyance.model import adapters, linear

OWN = ("resampler.", "cross_attention.", "added_tokens.")
COLUMNS = 4093  # of a checksum; prime, so that exchanged rows of a table come into other columns
SAMPLES = 64  # elements of a tensor that are compared after a change of precision


@dataclass(frozen=True)
class Mark:
    """A checksum of all bytes of a tensor and some of its elements, to find out later whether it changed."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    checksum: int
    some: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, tensor: Tensor) -> "Mark":
        if not _readable(tensor):
            return cls(tensor.dtype, tuple(tensor.shape), 0, torch.empty(0))
        t = linear.plain(tensor.detach()).detach()
        return cls(t.dtype, tuple(t.shape), checksum(t), _some(t))

    def differs(self, tensor: Tensor) -> bool:
        """Whether a tensor has other values now. A change of precision does not count."""
        if tuple(tensor.shape) != self.shape:
            return True
        if not _readable(tensor) or (self.some.numel() == 0 and tensor.numel()):
            return False
        now = linear.plain(tensor.detach()).detach()
        if now.dtype == self.dtype and checksum(now) == self.checksum:
            return False
        some, was = _some(now), self.some.to(now.device)
        if now.dtype == self.dtype and torch.equal(some, was):
            return True  # other elements differ
        if not now.is_floating_point():
            return True
        through = (was, was.to(torch.bfloat16), was.to(torch.float16))
        return not any(torch.equal(some, t.to(now.dtype)) for t in through)


class TrainableModel(PreTrainedModel):
    """A model around two backbones, with its trainable parameters and the tensors to save."""

    vision: Any
    language_model: Any
    _opened: dict[str, Mark]
    _learned: frozenset[str] = frozenset()  # of the backbones' tensors, those that an earlier training changed

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """The trainable parameters by name, including adapters and unfrozen backbones."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def own_parameters(self) -> dict[str, nn.Parameter]:
        """Parameters of the resampler, the cross-attention and the added tokens, without adapters on them, under the
        names that they have without adapters."""
        theirs = adapters.names(self)
        found = {adapters.canonical(name): p for name, p in self.named_parameters() if name not in theirs}
        return {name: p for name, p in found.items() if name.startswith(OWN)}

    def kept_tensors(self) -> dict[str, Tensor]:
        """The tensors that `save_pretrained` writes, by name: the model's own parts, adapters, and those of the
        backbones that are trainable or have changed since they were opened.

        Raises:
            ValueError: a part was added by hand, and opening the saved model would not restore it.
        """
        theirs, found = adapters.names(self), {}
        for name, tensor in adapters.tensors(self).items():
            plain = adapters.canonical(name)
            if name in theirs or plain.startswith(OWN):
                found[name] = tensor
                continue
            if plain not in self._opened:
                raise ValueError(
                    f"cannot save {name}: the model's backbones did not have it when they were opened, and opening the "
                    "saved model would not restore it. Use PEFT for adapters, or save the changed backbone first."
                )
            if tensor.requires_grad or plain in self._learned or self._opened[plain].differs(tensor):
                found[name] = tensor
        return found

    def mark_as_opened(self) -> None:
        """Remembers the current weights of the backbones as the ones that their names refer to."""
        theirs, self._learned = adapters.names(self), frozenset()
        self._opened = {
            adapters.canonical(name): Mark.of(tensor)
            for name, tensor in adapters.tensors(self).items()
            if name not in theirs
        }

    def frozen_digest(self) -> str:
        """16 hexadecimal digits of the frozen parameters of the backbones, as they were opened. Their checksums are
        kept, so nothing is read."""
        digest = hashlib.sha256()
        frozen = {adapters.canonical(name) for name, p in self.named_parameters() if not p.requires_grad}
        for name in sorted(frozen & self._opened.keys()):
            mark = self._opened[name]
            digest.update(f"{name} {mark.dtype} {mark.shape} {mark.checksum}".encode())
        return digest.hexdigest()[:16]

    def remember_changes(self) -> None:
        """Before a change of precision: notes which tensors of the backbones have changed. Afterwards only some of
        their elements could be compared."""
        tensors = {adapters.canonical(name): tensor for name, tensor in adapters.tensors(self).items()}
        known = {name: tensor for name, tensor in tensors.items() if name in self._opened}
        self._learned |= {name for name, tensor in known.items() if self._opened[name].differs(tensor)}

    def mark_as_learned(self, names: Iterable[str]) -> None:
        """Remembers which tensors of the backbones an earlier training changed. Their values do not say so for sure
        once they are cast or sharded."""
        theirs = adapters.names(self)
        plain = (adapters.canonical(name) for name in names if name not in theirs)
        self._learned |= {name for name in plain if not name.startswith(OWN)}

    def train(self, mode: bool = True) -> Any:
        """Frozen parts of the backbones stay in evaluation mode, without dropout."""
        if mode:
            linear.unpack(self)
        super().train(mode)
        for part in (self.vision, self.language_model):
            train_trainable(part, mode)
        return self


def train_trainable(module: nn.Module, mode: bool) -> None:
    """Sets the mode of modules that contain trainable parameters, with their dropout. Adapters are separate from the
    module that they adapt. Batch normalisation keeps its statistics: those of a batch would be of one process's part,
    and no checkpoint has them."""
    holding: set[int] = set()

    def holds(module: nn.Module) -> bool:
        adapter = adapters.own_children(module)
        children = _apart(module, adapter)
        found = [holds(child) for child in children]
        direct = adapter is None and any(p.requires_grad for p in module.parameters(recurse=False))
        if direct or any(found):
            holding.add(id(module))
        return id(module) in holding

    def apply(module: nn.Module) -> None:
        adapter, trains = adapters.own_children(module), mode and id(module) in holding
        trains = trains and not isinstance(module, _BatchNorm)
        module.training = trains
        for child in _apart(module, adapter):
            if next(child.parameters(), None) is None:
                child.train(trains)
            else:
                apply(child)
        if adapter is not None:
            module.training = mode
            for child in adapter:
                child.train(mode)

    holds(module)
    apply(module)


def _apart(module: nn.Module, adapter: list[nn.Module] | None) -> list[nn.Module]:
    """The children that do not belong to the adapter."""
    aside = {id(child) for child in adapter or ()}
    return [child for child in module.children() if id(child) not in aside]


def is_trained(module: nn.Module) -> bool:
    """Whether any of a module's parameters is trained."""
    return any(p.requires_grad for p in module.parameters())


def without_influence(parameters: Sequence[nn.Parameter], scalar: Tensor) -> list[nn.Parameter]:
    """The parameters that a scalar does not depend on. DDP would wait for their gradients."""
    gradients = torch.autograd.grad(scalar, list(parameters), allow_unused=True)
    return [p for p, gradient in zip(parameters, gradients, strict=True) if gradient is None]


def checkpoint_layers(model: Any) -> None:
    """A library's model keeps only the inputs of its layers in training and computes the rest again in the backward
    pass."""
    if hasattr(model, "set_grad_checkpointing"):  # timm's and OpenCLIP's
        model.set_grad_checkpointing(True)
    else:  # newer transformers have another name for it
        enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
        enable({"use_reentrant": False})


def freeze(backbone: nn.Module) -> None:
    """Freezes a backbone, unless it has adapters: then it stays as PEFT left it."""
    if not adapters.names(backbone):
        backbone.requires_grad_(False)


def _readable(tensor: Tensor) -> bool:
    """Whether its values can be read: not offloaded, sharded or quantized."""
    return type(tensor) in (nn.Parameter, Tensor) and not tensor.is_meta


def _some(tensor: Tensor) -> Tensor:
    flat = tensor.reshape(-1)
    return flat[:: max(1, flat.numel() // SAMPLES)][: 2 * SAMPLES].clone()


def checksum(tensor: Tensor) -> int:
    """A sum of all bytes of a tensor, eight at a time, weighted by their positions; at the speed of memory."""
    flat = tensor.contiguous().reshape(-1)
    if not flat.numel():
        return 0
    if flat.data_ptr() % 8 or flat.storage_offset() * flat.element_size() % 8:
        flat = flat.clone()
    data = flat.view(torch.uint8)
    whole = len(data) // 8 * 8
    words, rest = data[:whole].view(torch.int64), data[whole:].long()
    weights = torch.arange(1, 2 * COLUMNS, 2, device=words.device)
    even = len(words) // COLUMNS * COLUMNS
    columns = words[:even].view(-1, COLUMNS).sum(0)
    columns[: len(words) - even] += words[even:]
    return int((columns * weights).sum()) + int((rest * weights[: len(rest)]).sum())
