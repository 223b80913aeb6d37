"""Multimodal C4: web pages as lists of sentences and images, with the similarity of each image to each sentence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from flamboyance.data.documents import Document, Record, Rejected
from flamboyance.data.formats import chatgpt
from flamboyance.data.formats.fields import FILE_LIMIT, from_base64, json_object, named_image
from flamboyance.data.formats.interleaved import Interleaved, clean, interleave, interleave_as_openflamingo

Match = tuple[int, int]
"""(image, sentence), both counted from 0."""


@dataclass(frozen=True, kw_only=True)
class MMC4(Interleaved):
    """Tars of JSON (or JSONL files) with `text_list`, `image_info` and `similarity_matrix`, images before sentences.

    An image is `image_base64` in its `image_info`, or the file `image_name` beside the JSON: `KEY.image_name` in a tar,
    a file in the JSONL's folder. Images that are not there are passed over. ChatGPT sequences among the records (they
    have `is_gpt`) are read as the source `ChatGPT` reads them.

    Args:
        similarity_threshold: images less similar to their sentence are left out.
        assignment: which sentence an image stands before: "one_to_one" finds the best for all images together, each at
            a sentence of its own; "best_sentence" takes each image's best, so that several may share one.
        protocol: "aligned" gives each `<image>` the picture of its own sentence. "openflamingo" repeats the original
            trainer: pictures keep the order of `image_info` though their tokens stand in the order of the sentences,
            and of more than `max_images` those first in `image_info` are kept.
        min_image_bytes: smaller image files are left out (OpenFlamingo's rule against icons).
    """

    reject_single: float = 0.5
    similarity_threshold: float = 0.24
    assignment: Literal["one_to_one", "best_sentence"] = "one_to_one"
    protocol: Literal["aligned", "openflamingo"] = "aligned"
    min_image_bytes: int = 11_000

    def document(self, record: Record, rng: np.random.Generator) -> Document:
        page = json_object(record)
        if page.get("is_gpt"):
            return chatgpt.read(page, self.max_images, self.protocol)
        sentences, about = _listed(page, "text_list", str), _listed(page, "image_info", dict)
        found = _images(record, about)
        images = {i: image for i, image in found.items() if len(image) >= self.min_image_bytes}
        if not images:
            raise Rejected("images too small" if found else "no image available")
        similarities = _similarities(page.get("similarity_matrix"), len(about), len(sentences))
        matches = self._matches(list(images), similarities)
        if not matches:
            raise Rejected("no image similar enough")
        return self._interleaved([clean(sentence) for sentence in sentences], images, matches)

    def _matches(self, images: list[int], similarities: np.ndarray) -> list[Match]:
        """Images and their sentences, in the order of `images`; the threshold applies once all are assigned."""
        rows = np.where(np.isfinite(similarities), similarities, -1e6)[images]
        if self.assignment == "best_sentence":
            chosen = [(row, int(best)) for row, best in enumerate(rows.argmax(axis=1))]
        else:
            chosen = _one_to_one(rows)
        # Written so that a threshold below all of them still leaves out what is no number.
        least = max(self.similarity_threshold, -1e5)
        return [(images[row], sentence) for row, sentence in chosen if rows[row, sentence] >= least]

    def _interleaved(self, sentences: list[str], images: dict[int, bytes], matches: list[Match]) -> Document:
        in_order = sorted(matches, key=lambda match: (match[1], match[0]))
        if self.protocol == "openflamingo":
            matches = matches[: self.max_images]
            in_order = sorted(matches, key=lambda match: match[1])
        at: dict[int, int] = {}
        for _, sentence in in_order:
            at[sentence] = at.get(sentence, 0) + 1
        pieces: list[str | None] = []
        for number, sentence in enumerate(sentences):
            pieces += [" "] * (number > 0) + [None] * at.get(number, 0) + [sentence]
        if self.protocol == "openflamingo":
            return Document(interleave_as_openflamingo(pieces), tuple(images[i] for i, _ in matches), "after_image")
        return Document(interleave(pieces), tuple(images[i] for i, _ in in_order), "after_image")


def _images(record: Record, about: list[dict[str, Any]]) -> dict[int, bytes]:
    """The images that were fetched, by their place. A file that is named several times is read once."""
    found: dict[int, bytes] = {}
    read: dict[str, bytes | None] = {}
    size = 0
    for place, one in enumerate(about):
        name = one.get("image_name")
        named = one.get("image_base64") is None and isinstance(name, str)
        image = read[name] if named and name in read else _image(record, one)
        if named and name not in read:
            read[name] = image
        size += len(image or b"")
        if size > FILE_LIMIT:
            raise Rejected("image too large")
        if image is not None:
            found[place] = image
    return found


def _image(record: Record, about: dict[str, Any]) -> bytes | None:
    """None where the image was never fetched."""
    if about.get("image_base64") is not None:
        return from_base64(about["image_base64"])
    name = about.get("image_name")
    if not isinstance(name, str) or not name:
        return None
    try:
        return named_image(record, name)
    except Rejected as rejected:
        if rejected.reason == "missing image":
            return None
        raise


def _similarities(matrix: Any, images: int, sentences: int) -> np.ndarray:
    try:
        values = np.asarray(matrix, dtype=np.float64)
    except (ValueError, TypeError, OverflowError) as error:
        raise Rejected("broken similarity_matrix") from error
    if values.shape != (images, sentences):
        raise Rejected("broken similarity_matrix")
    return values


def _one_to_one(similarities: np.ndarray) -> list[Match]:
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise ImportError(
            "MMC4's one-to-one assignment needs scipy: pip install scipy, or set assignment=best_sentence"
        ) from error
    rows, columns = linear_sum_assignment(similarities, maximize=True)
    return [(int(row), int(column)) for row, column in zip(rows, columns, strict=True)]


def _listed(page: dict[str, Any], key: str, kind: type) -> list[Any]:
    values = page.get(key)
    if not isinstance(values, list) or not values or not all(isinstance(one, kind) for one in values):
        raise Rejected(f"no {key}")
    return values
