"""Training examples, and batches of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate, chain
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class TrainingExample:
    """A document as tensors.

    Attributes:
        input_ids: (T,) long.
        labels: (T,) long, -100 where nothing is predicted; not shifted.
        images_seen: (T,) long, the image that each token attends to, counted from 1; 0: none.
        images: (frames, C, H, W) uint8, resized and cropped, in order of appearance, a video's frames one after
            another; or (N, P, D) float16, their features.
        frame_counts: number of frames of each of the N images and videos; None if it is 1 for all.
    """

    input_ids: Tensor
    labels: Tensor
    images_seen: Tensor
    images: Tensor
    frame_counts: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Tensors:
    """A value of tensors, which go to a device together."""

    def to(self, device: torch.device | str) -> Self:
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Self:
        return self._map(Tensor.pin_memory)

    def _map(self, change: Callable[[Tensor], Tensor]) -> Self:
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **{name: change(tensor) for name, tensor in tensors.items()})


@dataclass(frozen=True)
class Batch(Tensors):
    """Examples of one source, padded on the right. Images are packed, not padded.

    Attributes:
        input_ids, attention_mask, labels, images_seen: (B, T) long.
        images: (frames, C, H, W) uint8, those of row 0 first; or (M, P, D) float16, the tower's features of them.
        media_counts: number of images and videos per row.
        frame_counts: number of frames of each of the M images and videos; None if it is 1 for all.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    images_seen: Tensor
    images: Tensor
    media_counts: tuple[int, ...]
    frame_counts: tuple[int, ...] | None = None

    @property
    def targets(self) -> int:
        """Number of tokens in the loss."""
        return int((self.labels[:, 1:] != -100).sum())

    def rows(self, rows: list[int]) -> Batch:
        """Some of the rows, without the columns that are padding in all of them."""
        width = int(self.attention_mask[rows].sum(1).max())
        starts = [0, *accumulate(self.media_counts)]
        media = [medium for row in rows for medium in range(starts[row], starts[row + 1])]
        frames = self.frame_counts or (1,) * len(self.images)
        first = [0, *accumulate(frames)]
        images = [image for medium in media for image in range(first[medium], first[medium + 1])]
        counts = None if self.frame_counts is None else tuple(frames[medium] for medium in media)
        tables = ("input_ids", "attention_mask", "labels", "images_seen")
        cut = {name: getattr(self, name)[rows, :width] for name in tables}
        per_row = tuple(self.media_counts[row] for row in rows)
        return replace(self, **cut, images=self.images[images], media_counts=per_row, frame_counts=counts)


def collate(examples: list[TrainingExample], pad_token_id: int) -> Batch:
    """Examples -> `Batch`."""
    width = max(len(e.input_ids) for e in examples)

    def padded(name: str, value: int) -> Tensor:
        table = torch.full((len(examples), width), value)
        for row, example in enumerate(examples):
            content = getattr(example, name)
            table[row, : len(content)] = content
        return table

    lengths = torch.tensor([[len(e.input_ids)] for e in examples])
    frames = [e.frame_counts or (1,) * len(e.images) for e in examples]
    return Batch(
        input_ids=padded("input_ids", pad_token_id),
        attention_mask=(torch.arange(width) < lengths).long(),
        labels=padded("labels", -100),
        images_seen=padded("images_seen", 0),
        images=torch.cat([e.images for e in examples]),
        media_counts=tuple(map(len, frames)),
        frame_counts=tuple(chain(*frames)) if any(e.frame_counts for e in examples) else None,
    )
