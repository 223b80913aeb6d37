"""OBELICS (Laurençon et al. 2023, arXiv 2306.16527): web pages as lists of images and texts, in the page's order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from flamboyance.data.documents import Document, Record, Rejected
from flamboyance.data.formats.fields import FILE_LIMIT, found_image, json_object
from flamboyance.data.formats.interleaved import Interleaved, clean, interleave
from flamboyance.files import TEXT_LIMIT, is_web_url

PARAGRAPH = "\n\n"
"""Between two texts without an image between them, as between the paragraphs of OBELICS' texts."""


@dataclass(frozen=True, kw_only=True)
class OBELICS(Interleaved):
    """Parquet files with the columns `images` and `texts`: lists of equal length, of which one has the image or the
    text at each place, and the other null. Also JSONL files and tars of the same.

    An image is its content (bytes, or an image of Hugging Face's `datasets`), a path in the file's folder, or the name
    of a file beside it in the tar (`KEY.name`). Images that are missing are skipped. So are URLs: the files that
    OBELICS publishes hold these, and the images have to be downloaded first (docs/data.md).
    """

    def document(self, record: Record, rng: np.random.Generator) -> Document:
        pieces, images = read_page(record, json_object(record))
        return Document(interleave(pieces), tuple(images), "after_image")


def is_page(content: dict[str, Any]) -> bool:
    """Whether a record's JSON has the form of OBELICS."""
    images, texts = content.get("images"), content.get("texts")
    return isinstance(images, list) and isinstance(texts, list) and all(isinstance(one, str | None) for one in texts)


def read_page(record: Record, page: dict[str, Any], outside: bool = False) -> tuple[list[str | None], list[bytes]]:
    """The page's texts, with None for each image, and the images.

    Args:
        outside: images may be outside of the file's folder.

    Raises:
        Rejected: the lists are not what they should be, or no image is there.
    """
    if not is_page(page) or len(page["images"]) != len(page["texts"]):
        raise Rejected("no images and texts of equal length")
    files: dict[str, bytes | None] = {}  # a page may name a file often
    pieces: list[str | None] = []
    images: list[bytes] = []
    size = length = urls = 0
    for image, text in zip(page["images"], page["texts"], strict=True):
        if isinstance(image, str):
            if image not in files:
                urls += is_web_url(image)
                files[image] = None if is_web_url(image) else found_image(record, image, outside)
            content = files[image]
            size += len(content or b"")
            if size > FILE_LIMIT:
                raise Rejected("image too large")
            if content is not None:
                pieces.append(None)
                images.append(content)
        if isinstance(text, str):
            length += len(text)
            if length > TEXT_LIMIT:
                raise Rejected("text too long")
            pieces += [PARAGRAPH] * bool(pieces and pieces[-1] is not None) + [clean(text)]
    if not images:
        raise Rejected("images are URLs, which are not fetched" if urls else "no image available")
    return pieces, images
