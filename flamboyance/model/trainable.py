"""What trains, and what has to be kept of a model: asked of the model itself.

The resampler, the cross-attention and the added tokens are a Flamingo's own, and are always kept. Of the backbones,
which are opened by name, what can train, what adapters added, and what differs from the weights that were opened.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from flamboyance.model import adapters, linear

OWN = ("resampler.", "cross_attention.", "added_tokens.")
COLUMNS = 4093  # of a checksum; prime, so that rows of a table that change places are in other columns
SAMPLES = 64  # of a tensor, by which it is known again after a change of precision


@dataclass(frozen=True)
class Mark:
    """By what a tensor is known again: a checksum of all its bytes, and some of its elements."""

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
        """Whether a tensor has other values now, but for a change of precision."""
        if tuple(tensor.shape) != self.shape:
            return True
        if not _readable(tensor) or (self.some.numel() == 0 and tensor.numel()):
            return False
        now = linear.plain(tensor.detach()).detach()
        if now.dtype == self.dtype and checksum(now) == self.checksum:
            return False
        some, was = _some(now), self.some.to(now.device)
        if now.dtype == self.dtype and torch.equal(some, was):
            return True  # elsewhere than in these elements
        if not now.is_floating_point():
            return True
        through = (was, was.to(torch.bfloat16), was.to(torch.float16))
        return not any(torch.equal(some, t.to(now.dtype)) for t in through)


class TrainableModel(PreTrainedModel):
    """A model around two backbones, which knows what of it trains and what has to be saved."""

    vision: Any
    language_model: Any
    _opened: dict[str, Mark]

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """What trains, by name: every parameter that requires gradients, adapters and unfrozen backbones included."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def own_parameters(self) -> dict[str, nn.Parameter]:
        """Parameters of the resampler, the cross-attention and the added tokens, without adapters on them; by the names
        that they have without adapters."""
        theirs = adapters.names(self)
        found = {adapters.canonical(name): p for name, p in self.named_parameters() if name not in theirs}
        return {name: p for name, p in found.items() if name.startswith(OWN)}

    def kept_tensors(self) -> dict[str, Tensor]:
        """What `save_pretrained` writes, by name: the model's own parts, adapters, and of the backbones what can train
        or differs from what was opened.

        Raises:
            ValueError: a part that was added by hand, which opening the model again would not bring back.
        """
        theirs, found = adapters.names(self), {}
        for name, tensor in adapters.tensors(self).items():
            plain = adapters.canonical(name)
            if name in theirs or plain.startswith(OWN):
                found[name] = tensor
                continue
            if plain not in self._opened:
                raise ValueError(
                    f"cannot save {name}: it is not part of the backbones that this model was made of, so opening it "
                    "again would not bring it back; use PEFT for adapters, or change the backbone and save that first"
                )
            if tensor.requires_grad or self._opened[plain].differs(tensor):
                found[name] = tensor
        return found

    def mark_as_opened(self) -> None:
        """Remembers the weights of the backbones as those that their names give."""
        theirs = adapters.names(self)
        self._opened = {
            adapters.canonical(name): Mark.of(tensor)
            for name, tensor in adapters.tensors(self).items()
            if name not in theirs
        }

    def train(self, mode: bool = True) -> Any:
        """Frozen parts of the backbones stay in evaluation mode: their dropout is off."""
        if mode:
            linear.unpack(self)
        super().train(mode)
        for part in (self.vision, self.language_model):
            train_what_trains(part, mode)
        return self


def train_what_trains(module: nn.Module, mode: bool) -> None:
    """Puts what holds something trainable into a mode, with the dropout inside it; adapters, each for itself."""
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
    """The children that are not the adapter's."""
    aside = {id(child) for child in adapter or ()}
    return [child for child in module.children() if id(child) not in aside]


def freeze(backbone: nn.Module) -> None:
    """A backbone as it is opened does not train. One that was given adapters before stays as PEFT left it."""
    if not adapters.names(backbone):
        backbone.requires_grad_(False)


def _readable(tensor: Tensor) -> bool:
    """Whether its values lie here as they are: not offloaded, sharded or quantised."""
    return type(tensor) in (nn.Parameter, Tensor) and not tensor.is_meta


def _some(tensor: Tensor) -> Tensor:
    flat = tensor.reshape(-1)
    return flat[:: max(1, flat.numel() // SAMPLES)][: 2 * SAMPLES].clone()


def checksum(tensor: Tensor) -> int:
    """A sum of all bytes of a tensor, eight at a time, each weighted by its place; at the speed of memory."""
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
