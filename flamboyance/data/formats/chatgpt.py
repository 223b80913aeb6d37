"""The interleaved sequences that were generated with ChatGPT for OpenFlamingo's 4B models."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from flamboyance.data.documents import Document, Record, Rejected
from flamboyance.data.formats.fields import from_base64, json_object
from flamboyance.data.formats.interleaved import Interleaved, clean, interleave, interleave_as_openflamingo
from flamboyance.templates import IMAGE_TOKEN

_PLACE = re.compile(r"(_!_IMAGE\d+_!_)")


@dataclass(frozen=True, kw_only=True)
class ChatGPT(Interleaved):
    """Tars of JSON (or JSONL files): `example`, a text with `_!_IMAGE1_!_` and so on, and `image_map` with the images.

    Args:
        protocol: "aligned" gives each place the image that it names, and keeps `max_images`. "openflamingo" repeats
            the original trainer: images are in the order of their numbers, and a text with more than `max_images`
            ends before the last of these.
    """

    protocol: Literal["aligned", "openflamingo"] = "aligned"

    def document(self, record: Record, rng: np.random.Generator) -> Document:
        return to_document(json_object(record), self.max_images, self.protocol)


def to_document(content: dict[str, Any], max_images: int, protocol: str) -> Document:
    """A sequence's JSON -> document; Rejected if it is damaged."""
    text, images = content.get("example"), content.get("image_map")
    if not isinstance(text, str) or not isinstance(images, dict):
        raise Rejected("no example or image_map")
    parts = _PLACE.split(text)
    places = parts[1::2]
    pieces = [None if number % 2 else clean(part) for number, part in enumerate(parts)]
    if protocol == "aligned":
        # examples.py cuts the text before the image after the last of `max_images`.
        decoded = {place: _image(images, place) for place in dict.fromkeys(places)}  # a place may be repeated often
        return Document(interleave(pieces), tuple(decoded[place] for place in places), "after_image")
    interleaved = interleave_as_openflamingo(pieces, max_images)
    numbered = sorted(images, key=lambda name: (len(name), name))[: interleaved.count(IMAGE_TOKEN)]
    return Document(interleaved, tuple(_image(images, name) for name in numbered), "after_image")


def _image(images: dict[str, Any], place: str) -> bytes:
    entry = images.get(place)
    if not isinstance(entry, dict) or entry.get("base64_image") is None:
        raise Rejected("missing image")
    return from_base64(entry["base64_image"])
