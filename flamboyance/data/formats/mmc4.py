"""Multimodal C4: web pages as lists of sentences and images, with the similarity of each image to each sentence."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from flamboyance.data.documents import Document, Record, Rejected
from flamboyance.data.formats import chatgpt
from flamboyance.data.formats.fields import FILE_LIMIT, found_image, from_base64, json_object
from flamboyance.data.formats.interleaved import Interleaved, clean, interleave, interleave_as_openflamingo

Match = tuple[int, int]
"""(image, sentence), both counted from 0."""


@dataclass(frozen=True, kw_only=True)
class MMC4(Interleaved):
    """Tars of JSON (or JSONL files) with `text_list`, `image_info` and `similarity_matrix`, images before sentences.

    An image is `image_base64` in its `image_info`, or the file `image_name` beside the JSON: `KEY.image_name` in a tar,
    or a file in the folder of a JSONL file. Missing images are skipped. Records with `is_gpt` are ChatGPT sequences,
    and are read as `ChatGPT` reads them.

    Args:
        similarity_threshold: images less similar to their sentence are left out.
        assignment: the sentence that an image precedes. "one_to_one" gives each image another sentence, with the
            largest total similarity; "best_sentence" gives each image its most similar one, which several may share.
        protocol: "aligned" gives each `<image>` the image of its sentence. "openflamingo" repeats the original
            trainer: images are in the order of `image_info`, their tokens in the order of the sentences; and of more
            than `max_images` the first in `image_info` are kept.
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
            return chatgpt.to_document(page, self.max_images, self.protocol)
        sentences, image_info = _list_of(str, page, "text_list"), _list_of(dict, page, "image_info")
        fetched = _images(record, image_info)
        images = {i: image for i, image in fetched.items() if len(image) >= self.min_image_bytes}
        if not images:
            raise Rejected("images too small" if fetched else "no image available")
        similarities = _similarities(page.get("similarity_matrix"), len(image_info), len(sentences))
        matches = self._matches(list(images), similarities)
        if not matches:
            raise Rejected("no image similar enough")
        return self._interleaved([clean(sentence) for sentence in sentences], images, matches)

    def _matches(self, images: list[int], similarities: np.ndarray) -> list[Match]:
        """Images and their sentences, in the order of `images`. The threshold is applied after all are assigned."""
        rows = np.where(np.isfinite(similarities), similarities, -1e6)[images]
        if self.assignment == "best_sentence":
            chosen = [(row, int(best)) for row, best in enumerate(rows.argmax(axis=1))]
        else:
            chosen = _one_to_one(rows)
        # At least -1e5, so that no threshold lets in a similarity that is not finite.
        threshold = max(self.similarity_threshold, -1e5)
        return [(images[row], sentence) for row, sentence in chosen if rows[row, sentence] >= threshold]

    def _interleaved(self, sentences: list[str], images: dict[int, bytes], matches: list[Match]) -> Document:
        in_order = sorted(matches, key=lambda match: (match[1], match[0]))
        if self.protocol == "openflamingo":
            matches = matches[: self.max_images]
            in_order = sorted(matches, key=lambda match: match[1])
        images_before = Counter(sentence for _, sentence in in_order)
        pieces: list[str | None] = []
        for number, sentence in enumerate(sentences):
            pieces += [" "] * (number > 0) + [None] * images_before[number] + [sentence]
        if self.protocol == "openflamingo":
            return Document(interleave_as_openflamingo(pieces), tuple(images[i] for i, _ in matches), "after_image")
        return Document(interleave(pieces), tuple(images[i] for i, _ in in_order), "after_image")


def _images(record: Record, image_info: list[dict[str, Any]]) -> dict[int, bytes]:
    """The images that were fetched, by their number. A file that is named several times is read once."""
    fetched: dict[int, bytes] = {}
    files: dict[str, bytes | None] = {}
    size = 0
    for number, entry in enumerate(image_info):
        if entry.get("image_base64") is not None:
            image = from_base64(entry["image_base64"])
        elif isinstance(name := entry.get("image_name"), str) and name:
            if name not in files:
                files[name] = found_image(record, name)
            image = files[name]
        else:
            image = None
        size += len(image or b"")
        if size > FILE_LIMIT:
            raise Rejected("image too large")
        if image is not None:
            fetched[number] = image
    return fetched


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


def _list_of(kind: type, page: dict[str, Any], key: str) -> list[Any]:
    values = page.get(key)
    if not isinstance(values, list) or not values or not all(isinstance(value, kind) for value in values):
        raise Rejected(f"no {key}")
    return values
