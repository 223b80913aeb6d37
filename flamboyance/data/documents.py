"""What a training document is, and what a source of them is.

The way of the data: shard -> `Record` (bytes, as stored) -> `Document` (interleaved text and encoded images) ->
`TrainingExample` (token ids, labels, pixels; examples.py) -> `Batch` (batch.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class Record:
    """One stored sample: the files of one key of a tar, a line of a JSONL file, or an image of a folder.

    Attributes:
        key: names it in messages.
        fields: content by lower-case extension, e.g. {"jpg": ..., "txt": ...}; a JSONL line is {"json": line}.
        folder: where relative image paths of a JSONL line begin; None in a tar.
    """

    key: str
    fields: dict[str, bytes]
    folder: str | None = None


@dataclass(frozen=True)
class Document:
    """Interleaved text and images.

    Attributes:
        text: with one `<image>` for each image, and `<|endofchunk|>` after each text that belongs to one.
        images: encoded (JPEG, PNG, …), in order of appearance.
        learned: which text is to be predicted: "all" of it, or what stands "after_image" and before the next
            `<|endofchunk|>` (that token included).
    """

    text: str
    images: tuple[bytes, ...]
    learned: Literal["all", "after_image"]


HELD_OUT = "held out"
"""The reason to reject what is kept for measuring: counted like the others, but not a fault of the data."""


class Rejected(Exception):
    """A record is not used; `reason` is a few words, the same for all records dropped for it."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where documents come from, and how they are used. One subclass for each format.

    Args:
        shards: paths or URLs of tars (also s3://, gs://, http(s)://, `pipe:command`), with {000..099} and * understood;
            the formats that say so also take .jsonl files and folders.
        batch_size: documents of this source in a batch (of one device, one micro-step).
        weight: of this source's mean loss in the whole.
        max_tokens: longer documents are cut.
        shuffle: records that a worker holds to draw from; 0 keeps the stored order.
        replacement: draw shards with replacement; otherwise each shard once an epoch, in another order each time.
        flip: probability that an image is mirrored, drawn for each image by itself.
        max_images: further images of a document, with what follows them, are left out.
        max_pixels: larger images are dropped from the header alone, before they are decoded.
    """

    shards: str | tuple[str, ...]
    batch_size: int
    weight: float = 1.0
    max_tokens: int = 256
    shuffle: int = 1000
    replacement: bool = False
    flip: float = 0.5
    max_images: int = 6
    max_pixels: int = 64_000_000

    def document(self, record: Record, rng: np.random.Generator) -> Document:
        """Reads a record.

        Raises:
            Rejected: it is damaged, or not wanted.
        """
        raise NotImplementedError
