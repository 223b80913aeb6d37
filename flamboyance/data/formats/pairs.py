"""Pairs of an image and its caption, in img2dataset's form: tars of `KEY.jpg`, `KEY.txt`, `KEY.json`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flamboyance.data.documents import Document, Record, Rejected, Source
from flamboyance.data.formats.fields import first_image, json_object, text
from flamboyance.data.formats.interleaved import clean
from flamboyance.templates import END_OF_CHUNK_TOKEN, IMAGE_TOKEN


@dataclass(frozen=True, kw_only=True)
class Pairs(Source):
    """`<image>{caption}<|endofchunk|>`, all of it learned. The caption is `.txt`, or else "caption" in `.json`.

    Args:
        leading_space: probability of a space before the caption (Flamingo: 0.5).
    """

    max_tokens: int = 32
    leading_space: float = 0.0

    def document(self, record: Record, rng: np.random.Generator) -> Document:
        image = first_image(record)
        caption = clean(_caption(record)).strip()
        if not caption:
            raise Rejected("no caption")
        space = " " if rng.random() < self.leading_space else ""
        return Document(f"{IMAGE_TOKEN}{space}{caption}{END_OF_CHUNK_TOKEN}", (image,), "all")


def _caption(record: Record) -> str:
    if "txt" in record.fields:
        return text(record.fields["txt"])
    caption = json_object(record).get("caption") if "json" in record.fields else None
    if not isinstance(caption, str):
        raise Rejected("no caption")
    return caption
