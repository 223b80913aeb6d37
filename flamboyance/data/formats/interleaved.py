"""Documents with images between texts: the common part of MMC4, ChatGPT sequences and users' own data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from flamboyance.data.documents import Source
from flamboyance.templates import END_OF_CHUNK_TOKEN, IMAGE_TOKEN


@dataclass(frozen=True, kw_only=True)
class Interleaved(Source):
    """A source of interleaved documents.

    Args:
        window: the `max_tokens` that are taken of a longer document: from its "start", or a "random" stretch.
        next_image: probability that the text of a document attends to the image after it, not the one before it
            (Flamingo's p_next).
        min_images: documents with fewer images, after cutting, are rejected.
        reject_single: probability that a document with one image is rejected.
    """

    window: Literal["start", "random"] = "start"
    next_image: float = 0.0
    min_images: int = 1
    reject_single: float = 0.0


def clean(text: str) -> str:
    """The text without `<image>` and `<|endofchunk|>`."""
    if IMAGE_TOKEN not in text and END_OF_CHUNK_TOKEN not in text:
        return text
    # Removing a token may join the halves of another. So the kept text is checked wherever a token may end: one pass,
    # however deeply tokens are nested.
    kept: list[str] = []
    *ended, last = text.split(">")
    for piece in ended:
        kept += piece
        kept.append(">")
        for token in (IMAGE_TOKEN, END_OF_CHUNK_TOKEN):
            if kept[-len(token) :] == list(token):
                del kept[-len(token) :]
    return "".join(kept) + last


def interleave(pieces: Iterable[str | None]) -> str:
    """Texts, and None for each image -> one text in OpenFlamingo's form.

    `<|endofchunk|>` precedes every `<image>` but the first, and ends the text. There is no white space around `<image>`
    and before `<|endofchunk|>`.
    """
    before, *chunks = "".join(IMAGE_TOKEN if piece is None else piece for piece in pieces).split(IMAGE_TOKEN)
    return before.rstrip() + "".join(IMAGE_TOKEN + chunk.strip() + END_OF_CHUNK_TOKEN for chunk in chunks)


def interleave_as_openflamingo(pieces: Iterable[str | None], max_places: int | None = None) -> str:
    """The same with the replacements of the original trainer, which leave some white space.

    `max_places`: a text with more images ends before the last of these, as the trainer's ChatGPT sequences do.
    """
    text = "".join(f"{END_OF_CHUNK_TOKEN}{IMAGE_TOKEN}" if piece is None else piece for piece in pieces)
    text = text.replace(END_OF_CHUNK_TOKEN, "", 1).replace(f" {END_OF_CHUNK_TOKEN}", END_OF_CHUNK_TOKEN)
    text = text.replace(f"{IMAGE_TOKEN} ", IMAGE_TOKEN).replace(f" {IMAGE_TOKEN}", IMAGE_TOKEN)
    if max_places is not None and text.count(IMAGE_TOKEN) > max_places:
        text = IMAGE_TOKEN.join(text.split(IMAGE_TOKEN)[:max_places])
    return text + END_OF_CHUNK_TOKEN
