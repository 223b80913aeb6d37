"""Prompts of a transformers model, computed into a cache that answers and labels are computed from.

Demonstrations that all prompts share are a prefix. It is computed once, with its images; a batch of queries is computed
behind copies of its cache:

    prefix   <image> a dog. <image> a cat. …   once: cache of P tokens
    rows     <image>Output:                    each query, without its last token: behind a copy, at the positions that
                                               it has in the whole prompt
    last     the last token of each prompt     what follows is generated, or scored, from here

Whether that gives what the whole prompt gives depends on the model: one whose demonstrations see the query (a prefix
language model), or whose state cannot be continued by several tokens, gives something else. So one of the first
rows is computed in both ways, and a model that fails is answered by whole prompts.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

TYPES = ("token_type_ids", "mm_token_type_ids")  # what a token is, for models that treat images differently
ROOM = 32  # tokens
GRIDS = ("image_grid_thw",)  # the shape of each image, which multimodal positions depend on


@dataclass(frozen=True)
class Part:
    """Tokens with their images, as the model takes them.

    Attributes:
        inputs: of the processor: `input_ids` (R, T), `attention_mask` (R, T), pixels, and what else the model needs.
    """

    inputs: dict[str, Any]

    @classmethod
    def of(cls, inputs: BatchFeature) -> Part:
        return cls(dict(inputs))

    @property
    def ids(self) -> Tensor:
        return self.inputs["input_ids"]

    @property
    def mask(self) -> Tensor:
        return self.inputs["attention_mask"]

    @property
    def images(self) -> dict[str, Any]:
        """All but the tokens."""
        tokens = ("input_ids", "attention_mask", *TYPES)
        return {name: value for name, value in self.inputs.items() if name not in tokens}

    def types(self) -> dict[str, Tensor]:
        return {name: self.inputs[name] for name in TYPES if name in self.inputs}


@dataclass(frozen=True)
class Prefix:
    """Demonstrations that prompts share, computed.

    Attributes:
        cache: of its P tokens, for one row.
    """

    part: Part
    cache: Cache

    @classmethod
    def of(cls, model: Any, inputs: BatchFeature) -> Prefix:
        """Computes the demonstrations: `inputs` of one row."""
        part = Part.of(inputs)
        positions = _positions(model, part.ids, part.mask, part.types(), part.images)
        out = model(
            input_ids=part.ids, attention_mask=part.mask, position_ids=positions, use_cache=True, logits_to_keep=1,
            **part.types(), **part.images,
        )  # fmt: skip
        return cls(part, out.past_key_values)

    @property
    def takes_padding(self) -> bool:
        """Whether rows of different lengths may be computed together: padding between prefix and query must neither
        enter a state nor count as a place in a window."""
        return all(type(layer) is DynamicLayer for layer in self.cache.layers)


@dataclass(frozen=True)
class Rows:
    """Prompts that are computed up to their last token.

    Attributes:
        ids: (R, T) the whole prompts, with padding before the query.
        mask: (R, T)
        positions: (R, T) or (…, R, T) for models with positions in several directions.
        cache: of the first T - 1 tokens.
    """

    ids: Tensor
    mask: Tensor
    positions: Tensor
    cache: Cache

    @classmethod
    def of(cls, model: Any, prefix: Prefix | None, inputs: BatchFeature) -> Rows:
        """Computes what follows the prefix: `inputs` of R rows, padded on the left."""
        part = Part.of(inputs)
        rows, new = part.ids.shape
        ids, mask, types, images, cache = part.ids, part.mask, part.types(), part.images, None
        if prefix is not None:
            before = prefix.part
            ids = torch.cat([before.ids.expand(rows, -1), part.ids], 1)
            mask = torch.cat([before.mask.expand(rows, -1), part.mask], 1)
            shared = {name: torch.zeros_like(before.ids) for name in types} | before.types()
            types = {name: torch.cat([shared[name].expand(rows, -1), one], 1) for name, one in types.items()}
            images = images | _joined_grids(before, part)
            cache = repeated(prefix.cache, 1, rows)
        positions = _positions(model, ids, mask, types, images)
        begin = ids.shape[1] - new
        out = model(
            input_ids=ids[:, begin:-1], attention_mask=mask[:, :-1], position_ids=positions[..., begin:-1],
            past_key_values=cache, use_cache=True, logits_to_keep=1,
            **{name: one[:, begin:-1] for name, one in types.items()}, **part.images,
        )  # fmt: skip
        return cls(ids, mask, positions, out.past_key_values)

    def generate(self, model: Any, beams: int, **options: Any) -> Tensor:
        """The tokens that follow each prompt; the cache is used up."""
        out = model.generate(
            input_ids=self.ids, attention_mask=self.mask, position_ids=self.positions, num_beams=beams,
            past_key_values=self.cache if beams == 1 else repeated(self.cache, len(self.ids), beams), **options,
        )  # fmt: skip
        return out[:, self.ids.shape[1] :]

    def following(self, model: Any, tokens: Sequence[Sequence[int]]) -> Tensor:
        """The logits (R, N, V) of given tokens after each prompt, N as many as the longest row has; the cache is kept.

        Logit n predicts token n; those behind a row's end mean nothing.
        """
        longest = max(map(len, tokens))
        ids = torch.zeros(len(tokens), longest, dtype=self.ids.dtype, device=self.ids.device)
        for row, some in zip(ids, tokens, strict=True):
            row[: len(some)] = torch.tensor(some)
        steps = torch.arange(longest, device=ids.device)
        ids = torch.cat([self.ids[:, -1:], ids[:, :-1]], 1)
        mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), longest - 1)], 1)
        out = model(
            input_ids=ids, attention_mask=mask, position_ids=self.positions[..., -1:] + steps,
            past_key_values=repeated(self.cache, len(tokens), 1), use_cache=True,
        )  # fmt: skip
        return out.logits


def repeated(cache: Cache, rows: int, times: int) -> Cache:
    """A cache of so many rows, with each row several times in a row. What is added to it leaves the given one as it is,
    and nothing is copied before that."""
    found = copy.copy(cache)
    found.layers = [_repeated(layer, rows, times) for layer in cache.layers]
    return found


def _repeated(layer: Any, rows: int, times: int) -> Any:
    if type(layer) in GROWING:  # the new layer may hold the same
        found = RoomyLayer() if type(layer) is DynamicLayer else copy.copy(layer)
        vars(found).update(vars(layer))
        if times > 1 and layer.get_seq_length():
            found.keys, found.values = (_rows(tensor, rows, times) for tensor in (layer.keys, layer.values))
        return found
    found = copy.deepcopy(layer)
    if times > 1:  # as for beams, whose order layers of every kind can change
        order: Any = torch.arange(rows).repeat_interleave(times)
        found.reorder_cache(order)
    return found


def _rows(tensor: Tensor, rows: int, times: int) -> Tensor:
    """Each of the rows several times in a row; a view where there is one row."""
    shape = tensor.shape[1:]
    return tensor.expand(times, *shape) if rows == 1 else tensor.repeat_interleave(times, 0)


class RoomyLayer(DynamicLayer):
    """A layer with room for some tokens more, so that a token does not copy all that come before it.

    A copy of the layer shares the room: of the two, the one that grows last is right.
    """

    _keys: Tensor | None = None
    _values: Tensor | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        keys, values = self.keys, self.values
        if keys is None or values is None or not keys.numel():
            return super().update(key_states, value_states, *args, **kwargs)
        end = keys.shape[-2] + key_states.shape[-2]
        self._keys = _with_room(keys, self._keys, key_states)
        self._values = _with_room(values, self._values, value_states)
        self.keys, self.values = self._keys[..., :end, :], self._values[..., :end, :]
        return self.keys, self.values


GROWING = (DynamicLayer, DynamicSlidingWindowLayer, RoomyLayer)  # what they hold is replaced, not written to


def _with_room(held: Tensor, room: Tensor | None, new: Tensor) -> Tensor:
    """A tensor that begins with `held` and then `new`: `room` if that begins with `held` and is long enough."""
    begin, end = held.shape[-2], held.shape[-2] + new.shape[-2]
    same = room is not None and held.data_ptr() == room.data_ptr() and held.shape[:-2] == room.shape[:-2]
    if room is None or not same or end > room.shape[-2]:
        room = new.new_empty(*new.shape[:-2], end + ROOM, new.shape[-1])
        room[..., :begin, :] = held
    room[..., begin:end, :] = new
    return room


def _joined_grids(prefix: Part, part: Part) -> dict[str, Tensor]:
    """The shapes of all images, row by row: the prefix's, then the row's own, of which each row has equally many."""
    rows, found = len(part.ids), {}
    for name in GRIDS:
        if (own := part.inputs.get(name)) is not None:
            before = prefix.inputs.get(name)
            shared = [] if before is None else [before]
            found[name] = torch.cat([one for some in own.chunk(rows) for one in (*shared, some)])
    return found


def _positions(model: Any, ids: Tensor, mask: Tensor, types: dict[str, Tensor], images: dict[str, Any]) -> Tensor:
    """The positions of whole prompts, as the model's own generation counts them."""
    grids = {name: images[name] for name in GRIDS if name in images}
    return model._prepare_position_ids_for_generation(ids, {"attention_mask": mask, **types, **grids})
