"""Pairs of an image and a text for contrastive training: each side by itself, without `<image>` in the text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from flamboyance.data.batch import Tensors
from flamboyance.data.documents import Document, Rejected, Source
from flamboyance.data.examples import decoded
from flamboyance.data.formats.interleaved import clean
from flamboyance.files import TEXT_LIMIT
from flamboyance.images import ImageProcessor
from flamboyance.templates import well_formed


class Pair(NamedTuple):
    """An image as uint8 (3, H, W), and the ids of its text (T,), long."""

    image: Tensor
    ids: Tensor


@dataclass(frozen=True)
class PairBatch(Tensors):
    """Pairs of one source.

    Attributes:
        images: (B, 3, H, W) uint8.
        input_ids, attention_mask: (B, T) long, padded on the right.
    """

    images: Tensor
    input_ids: Tensor
    attention_mask: Tensor


@dataclass(frozen=True)
class PairProcessor:
    """Makes pairs of documents; can be pickled.

    Attributes:
        tokenizer: of transformers, the text encoder's.
        image_processor: the tower's preprocessing.
    """

    tokenizer: Any
    image_processor: ImageProcessor

    def example(self, document: Document, source: Source, rng: np.random.Generator) -> Pair:
        """
        Raises:
            Rejected: the document is not one image with a text, or cannot be read.
        """
        if document.learned != "all" or len(document.images) != 1:
            raise Rejected("not one image with a text")
        ids = self.ids(clean(document.text).strip(), source.max_tokens)
        levels = decoded(document.images[0], self.image_processor, source, None, rng)[0]
        return Pair(levels.flip(-1) if rng.random() < source.flip else levels, torch.tensor(ids))

    def ids(self, text: str, most: int) -> list[int]:
        """The ids of a text with the tokenizer's own special tokens, at most so many."""
        if len(text) > TEXT_LIMIT:
            raise Rejected("text too long")
        return self.tokenizer(well_formed(text), truncation=True, max_length=most, verbose=False).input_ids

    def collate(self, pairs: list[Pair]) -> PairBatch:
        ids, width = [pair.ids for pair in pairs], max(len(pair.ids) for pair in pairs)
        padded = torch.full((len(ids), width), self.tokenizer.pad_token_id)
        for row, tokens in enumerate(ids):
            padded[row, : len(tokens)] = tokens
        lengths = torch.tensor([[len(tokens)] for tokens in ids])
        mask = (torch.arange(width) < lengths).long()
        return PairBatch(torch.stack([pair.image for pair in pairs]), padded, mask)
