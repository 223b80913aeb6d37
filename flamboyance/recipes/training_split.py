"""A user's own data, split into documents that are trained on and documents that are held out."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from flamboyance.data.documents import HELD_OUT, Document, Record, Rejected, digest
from flamboyance.data.formats.user_data import UserData, read_record
from flamboyance.data.shards import expand, records
from flamboyance.data.tar import Damage
from flamboyance.files import read_json, write_json

if TYPE_CHECKING:
    from flamboyance.processing import FlamingoProcessor

MAX_HELD_OUT = 200  # documents


@dataclass(frozen=True, kw_only=True)
class TrainingSplit(UserData):
    """A user's own data without the documents that are held out.

    Documents are held out by their images, whatever their texts are: five captions of one image are on the same side,
    and stay there when rows are edited, added or reordered.

    Args:
        held_out: a JSON file with the digests of the images that are held out; "": nothing is held out.
    """

    held_out: str = ""

    def document(self, record: Record, rng: np.random.Generator) -> Document:
        content, images = read_record(record, self.outside)
        if self.held_out and not read_digests(self.held_out).isdisjoint(map(digest, images)):
            raise Rejected(HELD_OUT)
        return self.to_document(content, images)


@cache
def read_digests(file: str) -> frozenset[str]:
    content = read_json(file)
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise ValueError(f"{file} does not hold a list of images' digests; give another output=")
    return frozenset(content["images"])


class _Usable(NamedTuple):
    """A document that can be used.

    Attributes:
        images: digests of its images.
        answer: the text to be learned, if the document is one image with a text.
    """

    record: Record
    document: Document
    images: frozenset[str]
    answer: str | None


def _usable(source: TrainingSplit, rejected: list[tuple[str, str]]) -> Iterator[_Usable]:
    """All usable documents of the data; appends (reason, key) of each record that is none to `rejected`."""
    for shard in expand(source.shards):
        for record in records(shard, source.outside):
            if isinstance(record, Damage):
                rejected.append((record.reason, ""))
                continue
            try:
                content, images = read_record(record, source.outside)
                document = source.to_document(content, images)
                answer = source.template_values(content)[1][-1] if document.learned == "all" else None
                yield _Usable(record, document, frozenset(map(digest, images)), answer)
            except Rejected as error:
                rejected.append((error.reason, record.key))


def draw(source: TrainingSplit, fraction: float, output: str) -> None:
    """Reads all of the data, and draws the images to hold out unless a run has drawn them before.

    Args:
        output: the run's directory.

    Raises:
        ValueError: fewer than two documents can be used, or all of them share images; or the run has begun with another
            fraction.
    """
    _check_begun(source, fraction, Path(output))
    rejected: list[tuple[str, str]] = []
    usable = [(one.images, one.answer) for one in _usable(source, rejected)]
    reasons = ", ".join(f"{reason}: {count}" for reason, count in Counter(reason for reason, _ in rejected).items())
    if len(usable) < 2:
        raise ValueError(
            f"{source.shards}: {len(usable)} documents can be used ({reasons or 'it is empty'}); expected two or "
            "more, in a folder of images with a text beside each (cat.jpg, cat.txt), or a .csv, .tsv or .jsonl with "
            "image and text"
        )
    if rejected:
        example = next((f"; the first is {key}" for _, key in rejected if key), "")
        warnings.warn(f"{source.shards}: {len(rejected)} documents are left out ({reasons}){example}", stacklevel=2)
    if not source.held_out:
        return
    if not Path(source.held_out).is_file():
        write_json(source.held_out, {"fraction": fraction, "images": sorted(choose(usable, fraction))})
        read_digests.cache_clear()
    elif not any(read_digests(source.held_out) & images for images, _ in usable):
        raise ValueError(
            f"{source.shards} has none of the images that {source.held_out} holds out; give the data= that the run "
            "began with, or another output="
        )


def _check_begun(source: TrainingSplit, fraction: float, output: Path) -> None:
    """Images that a run has trained on are not held out any more, nor are those that it holds out trained on."""
    begun = any(output.glob("checkpoints/step-*"))
    file = Path(source.held_out or output / "held_out.json")
    content = read_json(file) if file.is_file() else {"fraction": 0.0 if begun else fraction}
    before = content.get("fraction") if isinstance(content, dict) else None  # earlier versions did not note it
    same = bool(fraction) if before is None else before == fraction
    if not same and (begun or fraction):
        began = "others held out" if before is None else f"held_out={before:g}"
        raise ValueError(
            f"held_out={fraction:g}: the run in {output} began with {began}, and images cannot change sides; go on as "
            "it began, or give another output="
        )


_Group = list[tuple[frozenset[str], str | None]]  # documents: digests of their images, and their answers


def choose(usable: _Group, fraction: float) -> set[str]:
    """The digests of the images to hold out: about that fraction of the documents, at most `MAX_HELD_OUT`.

    They are spread evenly over the answers if answers repeat as labels do. They are chosen by the images' digests, so
    that few change sides when documents are added or removed.

    Raises:
        ValueError: all documents share images.
    """
    count = min(MAX_HELD_OUT, max(1, round(fraction * len(usable))), len(usable) - 1)
    answers = {answer for _, answer in usable}
    labelled = None not in answers and 2 * len(answers) <= len(usable)
    by_label: dict[str | None, list[_Group]] = {}
    for group in _sharing_images(usable):
        by_label.setdefault(group[0][1] if labelled else None, []).append(group)
    placed = []  # (place among the groups of its label, from 0 to 1; lowest digest; group)
    for groups in by_label.values():
        ranked = sorted((min(min(images) for images, _ in group), group) for group in groups)
        placed += [((rank + 0.5) / len(ranked), lowest, group) for rank, (lowest, group) in enumerate(ranked)]
    chosen: _Group = []
    for _, _, group in sorted(placed, key=lambda entry: entry[:2]):
        if len(chosen) + len(group) <= count or (not chosen and len(group) < len(usable) / 2):
            chosen += group
        if len(chosen) >= count:
            break
    if not chosen:
        raise ValueError(
            f"all {len(usable)} documents share images, so none can be held out without its image being trained on; "
            "give held_out=0"
        )
    return {image for images, _ in chosen for image in images}


def _sharing_images(usable: _Group) -> list[_Group]:
    """Groups of documents that share images, directly or through other documents."""
    parents: dict[str, str] = {}

    def root(image: str) -> str:
        while (parent := parents.setdefault(image, image)) != image:
            parents[image] = image = parents[parent]
        return image

    for images, _ in usable:
        first, *others = images
        for image in others:
            parents[root(image)] = root(first)
    groups: dict[str, _Group] = {}
    for images, answer in usable:
        groups.setdefault(root(next(iter(images))), []).append((images, answer))
    return list(groups.values())


def documents(source: TrainingSplit, held_out: bool, limit: int = MAX_HELD_OUT) -> list[tuple[Record, Document]]:
    """The first usable documents that are held out, or that are not."""
    held = read_digests(source.held_out) if source.held_out else frozenset()
    # Rows that were added may have images of both sides: such documents are on neither.
    on_this_side = (
        (one.record, one.document)
        for one in _usable(source, [])
        if ((bool(one.images) and one.images <= held) if held_out else held.isdisjoint(one.images))
    )
    return list(islice(on_this_side, limit))


def unknown_words(source: TrainingSplit, processor: FlamingoProcessor) -> float:
    """Fraction of the training texts' tokens that the tokenizer does not know."""
    tokenizer = processor.tokenizer
    if tokenizer.unk_token_id is None:
        return 0.0
    # Without what stands around every text: GPT-2's kind has one token for what it does not know and for a text's end.
    texts = (one.text for _, one in documents(source, False))
    ids = [token for text in texts for token in tokenizer(text, add_special_tokens=False).input_ids]
    return ids.count(tokenizer.unk_token_id) / max(len(ids), 1)
