"""Keys and values of the language model while it generates: with room to grow, and with prompts that rows share.

Transformers' cache copies everything into new tensors for each token, and reorders everything when beams change. At 32
shots these are most of the bytes that a decode step moves.

Shape letters: R rows of text, H heads, T tokens, K width of a head.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationMixin
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionCacheLayerMixin

from flamboyance.model.attention import Pairs, SharedKeys, joined

# The cache's name among the arguments and outputs of models, which transformers 5.24 changed. Both are accepted here.
NAMES = ("cache", "past_key_values", "cache_params")
NAME = next(name for name in NAMES if name in signature(GenerationMixin.prepare_inputs_for_generation).parameters)
ROOM = 64  # tokens by which a full tensor is extended


def given(past_key_values: Any, cache: Any) -> Any:
    """The cache that was given under one of its two names.

    Raises:
        ValueError: two caches.
    """
    if past_key_values is not None and cache is not None and past_key_values is not cache:
        raise ValueError("past_key_values and cache are both given, with different values; expected one of them")
    return cache if past_key_values is None else past_key_values


class RoomyLayer(DynamicLayer):
    """One layer's keys and values, at the beginning of tensors that have room for more.

    Attributes:
        before: keys and values (B, H, T, K) of the texts that the rows continue, in order; R is a multiple of each B,
            and row r continues text r // (R / B). `keys` and `values` are those of the later tokens. Only for language
            models whose attention takes SharedKeys.
        prompt: number of tokens at the beginning of `keys` that are equal in all rows that beam search may exchange.
    """

    keys: Any  # (R, H, T, K), as values
    values: Any

    def __init__(self, prompt: int = 0, before: Pairs = ()):
        super().__init__()
        self.prompt = prompt
        self.before = tuple(before)
        self._room: tuple[Tensor, Tensor] | None = None

    @classmethod
    def of(cls, keys: Tensor, values: Tensor, times: int = 1) -> RoomyLayer:
        """(R, H, T, K) each, every row `times` times; a copy."""
        layer = cls(prompt=keys.shape[2])
        layer.dtype, layer.device, layer.is_initialized = keys.dtype, keys.device, True
        layer.keys, layer.values = keys, values
        layer._make_room(0, times)
        return layer

    @classmethod
    def aligned(cls, parts: Pairs, width: int) -> RoomyLayer:
        """The rows of all parts (R, H, T, K), in order, as a layer of `width` tokens: the last ones of longer parts,
        and shorter ones behind zeros, which masks hide."""
        layer = cls()
        room = []
        for tensors in zip(*parts, strict=True):
            first = tensors[0]
            rows = sum(map(len, tensors))
            buffer = first.new_empty(rows, first.shape[1], width + ROOM, first.shape[3])
            for target, tensor in zip(buffer.split([len(t) for t in tensors]), tensors, strict=True):
                own = min(tensor.shape[2], width)
                target[:, :, : width - own] = 0
                target[:, :, width - own : width] = tensor[:, :, tensor.shape[2] - own :]
            room.append(buffer)
        layer.dtype, layer.device, layer.is_initialized = room[0].dtype, room[0].device, True
        layer._room = (room[0], room[1])
        layer.keys, layer.values = (buffer[:, :, :width] for buffer in room)
        return layer

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Appends (R, H, new, K); returns the rows' own keys and values, with what the rows share as SharedKeys."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        if torch.compiler.is_compiling():
            return self._update_traced(key_states, value_states)
        old, new = self.keys.shape[2], key_states.shape[2]
        if not old:  # room is made when they grow; those of a scored candidate do not
            self.keys, self.values, self._room = key_states.contiguous(), value_states.contiguous(), None
        else:
            self._append(old, new, key_states, value_states)
        if not self.before:
            return self.keys, self.values
        keys: Any = SharedKeys(self.before, self.keys)
        return keys, self.values

    def _update_traced(self, *states: Tensor) -> tuple[Tensor, Tensor]:
        """In a compiled function, which has no addresses: every row gets its own copy of everything, in new tensors."""
        parts = (*self.before, (self.keys, self.values), states)
        rows = len(states[0])
        self.keys, self.values = (joined([p[i] for p in parts if p[i].shape[2]], rows) for i in range(2))
        self.before, self.prompt, self._room = (), 0, None
        return self.keys, self.values

    def _append(self, old: int, new: int, *states: Tensor) -> None:
        if not self._fits(old + new):
            self._make_room(new)
        assert self._room is not None
        for buffer, added in zip(self._room, states, strict=True):
            buffer[:, :, old : old + new] = added
        keys, values = self._room
        self.keys, self.values = keys[:, :, : old + new], values[:, :, : old + new]

    def get_seq_length(self) -> int:
        own = self.keys.shape[2] if self.is_initialized else 0
        return own + sum(keys.shape[2] for keys, _ in self.before)

    def reorder_cache(self, beam_idx: Any) -> None:
        """Reorders the rows, except for what they share."""
        if not self.is_initialized:
            return
        if self._room is None or self.keys.data_ptr() != self._room[0].data_ptr():
            super().reorder_cache(beam_idx)
            return
        own = slice(self.prompt, self.keys.shape[2])
        for buffer in self._room:
            buffer[:, :, own] = buffer[:, :, own].index_select(0, beam_idx.to(buffer.device))

    def crop(self, *given: Any, **named: Any) -> None:
        self.gather()
        super().crop(*given, **named)
        self._room = None  # a copy of this layer may still use what is cut off

    def reset(self) -> None:
        self.before, self.prompt, self._room = (), 0, None
        self.keys, self.values, self.is_initialized = None, None, False
        super().reset()

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.gather()
        super().batch_repeat_interleave(repeats)

    def batch_select_indices(self, indices: Tensor) -> None:
        self.gather()
        super().batch_select_indices(indices)

    def gather(self) -> None:
        """Gives each row its own copy of what rows share."""
        if not self.before:
            return
        if not self.is_initialized:
            self.lazy_initialization(*self.before[-1])
        own = ((self.keys, self.values),) if self.keys.numel() else ()
        rows = max(len(keys) for keys, _ in (*self.before, *own))
        self.keys, self.values = (joined([pair[i] for pair in (*self.before, *own)], rows) for i in range(2))
        self.before, self.prompt, self._room = (), 0, None

    def __copy__(self) -> RoomyLayer:
        """A copy whose later tokens are not in this layer, nor those of this layer in the copy."""
        other = type(self)(self.prompt)
        other.__dict__ |= {name: value for name, value in self.__dict__.items() if name != "_room"}
        return other

    def shared(self) -> RoomyLayer:
        """A layer that continues this one, with any multiple of its rows; nothing is copied."""
        return RoomyLayer(before=(*self.before, (self.keys, self.values)) if self.is_initialized else self.before)

    def _fits(self, length: int) -> bool:
        """Whether keys are still the beginning of the tensors, in the same rows, and the tensors are long enough."""
        if self._room is None:
            return False
        keys = self._room[0]
        writable = torch.is_inference_mode_enabled() or not keys.is_inference()
        same = keys.data_ptr() == self.keys.data_ptr() and len(keys) == len(self.keys)
        return same and writable and length <= keys.shape[2]

    def _make_room(self, new: int, times: int = 1) -> None:
        rows, heads, length, _ = self.keys.shape
        room = []
        for old in (self.keys, self.values):
            buffer = old.new_empty(rows * times, heads, length + new + ROOM, old.shape[3])
            buffer.unflatten(0, (rows, times))[:, :, :, :length] = old[:, None]
            room.append(buffer)
        self._room = (room[0], room[1])
        self.keys, self.values = (buffer[:, :, :length] for buffer in self._room)


def empty(config: Any, room: bool = False) -> DynamicCache:
    """An empty cache for a language model of this configuration.

    If all layers have keys and values, none are dropped, also not those outside of a sliding window: masks hide them,
    and a complete cache can be cut and shared. For other layers (recurrent and convolutional states, indices, states
    that layers share), transformers' own are used.

    Args:
        room: keys and values grow in place.
    """
    layers: list[Any] = DynamicCache(config=config).layers
    if all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers):
        return roomy() if room else DynamicCache()
    cache = DynamicCache(config=config)
    if room:
        cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in layers]
    return cache


def is_recurrent(cache: Any) -> bool:
    """Whether a layer has a state other than keys and values per token. Such a state cannot be cut or moved behind
    padding, and in some families and versions of transformers it cannot be continued by several tokens at once."""
    return any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in getattr(cache, "layers", ()))


def is_plain(cache: Any) -> bool:
    """Whether every layer has the keys and values of all tokens."""
    return all(type(layer) in (DynamicLayer, RoomyLayer) for layer in cache.layers)


def roomy() -> DynamicCache:
    """An empty cache with room to grow."""
    cache = DynamicCache()
    cache.layer_class_to_replicate = RoomyLayer
    return cache


def aligned(parts: Sequence[Sequence[tuple[Tensor, Tensor]]], width: int) -> DynamicCache:
    """A cache of rows of any number of tokens, which end together; its masks hide what is before shorter ones.

    Args:
        parts: for each group of rows, and each layer, keys and values (R, H, T, K); T differs between groups.
        width: tokens of the cache. Of longer rows the last ones are kept.
    """
    cache = roomy()
    cache.layers = [RoomyLayer.aligned(layer, width) for layer in zip(*parts, strict=True)]
    return cache


def branch(cache: Any, times: int, share: bool = False) -> Any:
    """A cache that continues the given one with every row `times` times. The given one does not change.

    Args:
        share: store what rows share once, for a language model whose attention takes SharedKeys.

    Raises:
        ValueError: not a DynamicCache.
    """
    if not isinstance(cache, DynamicCache):
        raise ValueError(
            f"the cache is a {type(cache).__name__}; expected a DynamicCache, which can be continued in several ways"
        )
    new = copy.copy(cache)
    new.layers = [_branch(layer, times, share) for layer in cache.layers]
    return new


def _branch(layer: Any, times: int, share: bool) -> Any:
    plain = type(layer) in (DynamicLayer, RoomyLayer) and layer.get_seq_length()
    if plain and share:
        return layer.shared() if isinstance(layer, RoomyLayer) else RoomyLayer(before=((layer.keys, layer.values),))
    if type(layer) not in (DynamicLayer, RoomyLayer, DynamicSlidingWindowLayer):
        return _repeated(layer, times)
    # Other layers of keys and values grow into new tensors, so that the old ones can be shared.
    new = copy.copy(layer)
    if isinstance(new, RoomyLayer) and not share:
        new.gather()
    if times > 1 and plain:
        new = RoomyLayer.of(new.keys, new.values, times)
    elif times > 1:
        new.batch_repeat_interleave(times)
    return new


def _repeated(layer: Any, times: int) -> Any:
    """A copy of a layer's states, every row `times` times. States are written in place, so that none can be shared."""
    return _mapped(layer, lambda t: t.repeat_interleave(times, 0) if t.ndim > 1 else t.clone())


def moved(cache: Any, device: torch.device) -> Any:
    """A copy of a cache on another device."""
    new = copy.copy(cache)
    new.layers = [_mapped(layer, lambda t: t.to(device, copy=True)) for layer in cache.layers]
    return new


def _mapped(layer: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """A copy of a layer, with the function applied to each of its tensors."""

    def mapped(value: Any) -> Any:
        if isinstance(value, Tensor):
            return function(value)
        if isinstance(value, dict):
            return {key: mapped(each) for key, each in value.items()}
        return [mapped(each) for each in value] if isinstance(value, list) else value

    new = copy.copy(layer)
    new.__dict__ = {name: mapped(value) for name, value in vars(layer).items()}
    if getattr(new, "device", None) is not None and getattr(new, "keys", None) is not None:
        new.device = new.keys.device
    return new
