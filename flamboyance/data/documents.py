"""The values that a shard becomes on its way to an example: `Record`, `Document`; and `Source`, which makes them."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class Record:
    """One stored sample: the files of a tar that share a key, a row of a table, or an image of a folder.

    Attributes:
        key: its name in messages.
        fields: content by lower-case extension, as in {"jpg": ..., "txt": ...}. A row of a table is {"json": row}.
        folder: the folder that image paths of a table are relative to; None in a tar.
    """

    key: str
    fields: dict[str, bytes]
    folder: str | None = None


@dataclass(frozen=True)
class Document:
    """Interleaved text and images.

    Attributes:
        text: with one `<image>` per image, and `<|endofchunk|>` after the text of each image.
        images: encoded (JPEG, PNG, MP4, …), in order of appearance; videos too.
        learned: which tokens are predicted: "all", or those "after_image", up to and including the next
            `<|endofchunk|>`; or the "answers" of a conversation.
        answers: (start, end) of each in the text, with the space before it. After an answer `<|endofchunk|>` is
            predicted, which ends it in a chat, although the text has a line break there and goes on.
    """

    text: str
    images: tuple[bytes, ...]
    learned: Literal["all", "after_image", "answers"]
    answers: tuple[tuple[int, int], ...] = ()


def digest(image: bytes) -> str:
    """Identifies an image file by its content, so that the file may be renamed or moved."""
    return blake2b(image, digest_size=16).hexdigest()


HELD_OUT = "held out"
"""The reason to reject records that are held out for evaluation: counted like the others, but no fault of the data."""


class Rejected(Exception):
    """A record is not used. `reason` is a few words, the same for all records that are dropped for it."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where documents come from, and how they are used. Each format is a subclass.

    Args:
        shards: paths or URLs of tars (also s3://, gs://, http(s)://, `pipe:command`), where {000..099} and * are
            patterns; .jsonl, .csv, .tsv and .parquet files; folders of images.
        batch_size: documents of this source per batch, on one device, in one micro-step.
        weight: of this source's mean loss in the total loss.
        max_tokens: longer documents are cut.
        shuffle: size of the shuffle buffer of a worker, in records; 0 keeps the stored order.
        replacement: draw shards with replacement. Otherwise each shard is read once per epoch, in a new order.
        flip: probability that an image is mirrored; drawn per image.
        max_images: a document is cut before its next image.
        max_pixels: larger images, and videos of larger frames, are rejected by their header, before they are decoded.
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
