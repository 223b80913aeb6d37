"""Keys and values of the language model while it generates: room to grow, and a prompt that beams share.

Transformers' own cache makes a new tensor of everything for each token, and reorders everything with the beams. At 32
shots that is most of the bytes that a decode step moves.

Shape letters: R rows of text, H heads, T tokens, K width of a head.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

ROOM = 64  # tokens that are added to a tensor's end when it is full


class RoomyLayer(DynamicLayer):
    """One layer's keys and values, at the beginning of tensors with room behind them.

    Attributes:
        prompt: tokens at the beginning that are the same in all rows that may be exchanged for each other.
    """

    keys: Any  # (R, H, T, K), as values
    values: Any

    def __init__(self, prompt: int = 0):
        super().__init__()
        self.prompt = prompt
        self._room: tuple[Tensor, Tensor] | None = None

    @classmethod
    def of(cls, keys: Tensor, values: Tensor, times: int = 1) -> RoomyLayer:
        """(R, H, T, K) each, every row `times` times; a copy."""
        layer = cls(prompt=keys.shape[2])
        layer.dtype, layer.device, layer.is_initialized = keys.dtype, keys.device, True
        layer.keys, layer.values = keys, values
        layer._make_room(0, times)
        return layer

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Appends (R, H, new, K); returns all."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        old, new = self.keys.shape[2], key_states.shape[2]
        if not self._fits(old + new):
            self._make_room(new)
        assert self._room is not None
        for buffer, states in zip(self._room, (key_states, value_states), strict=True):
            buffer[:, :, old : old + new] = states
        keys, values = self._room
        self.keys, self.values = keys[:, :, : old + new], values[:, :, : old + new]
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Any) -> None:
        """Rows take each other's places, but for the prompt, which they share."""
        if self._room is None or self.keys.data_ptr() != self._room[0].data_ptr():
            super().reorder_cache(beam_idx)
            return
        own = slice(self.prompt, self.keys.shape[2])
        for buffer in self._room:
            buffer[:, :, own] = buffer[:, :, own].index_select(0, beam_idx.to(buffer.device))

    def __copy__(self) -> RoomyLayer:
        """Goes its own way: what either writes next, the other does not see."""
        other = type(self)(self.prompt)
        other.__dict__ |= {name: value for name, value in self.__dict__.items() if name != "_room"}
        return other

    def _fits(self, length: int) -> bool:
        """Whether keys still stand at the beginning of the tensors, in the same rows, and these are long enough."""
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


def roomy() -> DynamicCache:
    """An empty cache with room to grow."""
    cache = DynamicCache()
    cache.layer_class_to_replicate = RoomyLayer
    return cache


def branch(cache: Any, times: int) -> Any:
    """A cache that goes its own way from here, every row `times` times; the given one stays as it is.

    Raises:
        ValueError: a cache of another kind.
    """
    if not isinstance(cache, DynamicCache):
        raise ValueError(
            f"Expected a DynamicCache, which can be continued in several ways; got {type(cache).__name__}."
        )
    new = copy.copy(cache)
    # Layers of other kinds grow by making new tensors, so sharing the old ones is safe.
    new.layers = [copy.copy(layer) for layer in cache.layers]
    if times > 1:
        new.layers = [
            RoomyLayer.of(layer.keys, layer.values, times)
            if type(layer) in (DynamicLayer, RoomyLayer) and layer.get_seq_length()
            else _repeated(layer, times)
            for layer in new.layers
        ]
    return new


def _repeated(layer: Any, times: int) -> Any:
    layer.batch_repeat_interleave(times)
    return layer
