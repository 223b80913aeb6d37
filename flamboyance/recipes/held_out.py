"""A user's own data, some of which is held out of training and measured on."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from flamboyance.data.batch import collate
from flamboyance.data.documents import HELD_OUT, Document, Record, Rejected
from flamboyance.data.examples import WorkerProcessor, make_example
from flamboyance.data.formats.user_data import UserData, read_record
from flamboyance.data.shards import expand, records
from flamboyance.data.tar import Damage
from flamboyance.few_shot import FewShotTask
from flamboyance.files import read_json, write_json
from flamboyance.images import load_image
from flamboyance.templates import IMAGE_TOKEN, Template
from flamboyance.training.step import summed_loss

if TYPE_CHECKING:
    from flamboyance.flamingo import FlamingoForConditionalGeneration
    from flamboyance.processing import FlamingoProcessor

MOST = 200  # documents that are held out
BATCH = 16


@dataclass(frozen=True, kw_only=True)
class TrainingSplit(UserData):
    """A user's own data without the documents that are held out.

    Documents are held out by their images, whatever their texts are: five captions of an image are on one side, and
    stay there when rows are edited, added or put in another order.

    Args:
        held_out: a JSON file with the digests of the images; none where it is empty.
    """

    held_out: str = ""

    def document(self, record: Record, rng: np.random.Generator) -> Document:
        content, images = read_record(record, self.outside)
        if self.held_out and not _digests(self.held_out).isdisjoint(map(digest, images)):
            raise Rejected(HELD_OUT)
        return self.to_document(content, images)


def digest(image: bytes) -> str:
    """What an image file is known by: its content, so that it may be named or moved otherwise."""
    return blake2b(image, digest_size=16).hexdigest()


@cache
def _digests(file: str) -> frozenset[str]:
    content = read_json(file)
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise ValueError(f"{file} does not hold the digests of images; give the run another output=")
    return frozenset(content["images"])


class _Seen(NamedTuple):
    """A document that can be used: the digests of its images, and its answer where it is one image with a text."""

    images: frozenset[str]
    answer: str | None


def draw(source: TrainingSplit, share: float) -> None:
    """Looks through all of the data, and draws once what is held out.

    Raises:
        ValueError: fewer than two documents can be used, or all of them share images; says why.
    """
    seen, rejected, example = _usable(source)
    why = ", ".join(f"{reason}: {count}" for reason, count in rejected.items())
    if len(seen) < 2:
        raise ValueError(
            f"{source.shards}: {len(seen)} documents can be used ({why or 'it is empty'}); expected two at least, in a "
            "folder of images with a text beside each (cat.jpg, cat.txt), or a .csv, .tsv or .jsonl with image and text"
        )
    if rejected:
        first = f"; the first is {example}" if example else ""
        warnings.warn(f"{source.shards}: {rejected.total()} documents are left out ({why}){first}", stacklevel=2)
    if not source.held_out:
        return
    if not Path(source.held_out).is_file():
        write_json(source.held_out, {"images": sorted(choose(seen, share))})
        _digests.cache_clear()
    elif not any(_digests(source.held_out) & one.images for one in seen):
        raise ValueError(
            f"none of the images that {source.held_out} holds out is in {source.shards}. Give data= as when the run "
            "began, or the run another output="
        )


def choose(seen: Sequence[_Seen], share: float) -> set[str]:
    """The digests of the images to hold out: of about that share of the documents, and of `MOST` at most.

    They are spread evenly over the answers, where these repeat as labels do, and chosen by the images' digests: few
    change sides when documents are added or removed.

    Raises:
        ValueError: all documents share images.
    """
    count = min(MOST, max(1, round(share * len(seen))), len(seen) - 1)
    answers = {one.answer for one in seen}
    labelled = None not in answers and 2 * len(answers) <= len(seen)
    by_label: dict[str | None, list[list[_Seen]]] = {}
    for group in _sharing_images(seen):
        by_label.setdefault(group[0].answer if labelled else None, []).append(group)
    placed = []  # (place among those of its label, from 0 to 1; digest; group)
    for groups in by_label.values():
        ranked = sorted((min(min(one.images) for one in group), group) for group in groups)
        placed += [((at + 0.5) / len(ranked), first, group) for at, (first, group) in enumerate(ranked)]
    chosen: list[_Seen] = []
    for _, _, group in sorted(placed, key=lambda one: one[:2]):
        if len(chosen) + len(group) <= count or (not chosen and len(group) < len(seen) / 2):
            chosen += group
        if len(chosen) >= count:
            break
    if not chosen:
        raise ValueError(
            f"the {len(seen)} documents share their images, so none can be held out and its image not trained on; "
            "give held_out=0"
        )
    return {image for one in chosen for image in one.images}


def _sharing_images(seen: Sequence[_Seen]) -> list[list[_Seen]]:
    """Documents that share images, directly or by others, together."""
    parents: dict[str, str] = {}

    def root(image: str) -> str:
        while (parent := parents.setdefault(image, image)) != image:
            parents[image] = image = parents[parent]
        return image

    for one in seen:
        first, *others = one.images
        for image in others:
            parents[root(image)] = root(first)
    groups: dict[str, list[_Seen]] = {}
    for one in seen:
        groups.setdefault(root(next(iter(one.images))), []).append(one)
    return list(groups.values())


def _usable(source: TrainingSplit) -> tuple[list[_Seen], Counter[str], str]:
    """The documents of the data; how many records are none, by reason; and the key of the first of those."""
    seen: list[_Seen] = []
    rejected: Counter[str] = Counter()
    example = ""
    for item in _records(source):
        if isinstance(item, Damage):
            rejected[item.reason] += 1
            continue
        try:
            content, images = read_record(item, source.outside)
            document = source.to_document(content, images)
            answer = source.template_values(content)[1][-1] if document.learned == "all" else None
            seen.append(_Seen(frozenset(map(digest, images)), answer))
        except Rejected as error:
            rejected[error.reason] += 1
            example = example or item.key
    return seen, rejected, example


def _records(source: TrainingSplit) -> Iterator[Record | Damage]:
    for shard in expand(source.shards):
        yield from records(shard, source.outside)


def documents(source: TrainingSplit, held_out: bool, most: int = MOST) -> list[tuple[Record, Document]]:
    """The first usable documents that are held out, or that are not."""
    held = _digests(source.held_out) if source.held_out else frozenset()
    found: list[tuple[Record, Document]] = []
    for item in _records(source):
        if len(found) == most:
            break
        if isinstance(item, Damage):
            continue
        try:
            content, images = read_record(item, source.outside)
            digests = set(map(digest, images))
            # Rows that were added may name an image of each side: such documents are on neither.
            if (bool(images) and digests <= held) if held_out else held.isdisjoint(digests):
                found.append((item, source.to_document(content, images)))
        except Rejected:
            continue
    return found


# ---- measuring ------------------------------------------------------------------------------------------------------


def evaluate(
    model: FlamingoForConditionalGeneration, processor: FlamingoProcessor, source: TrainingSplit
) -> dict[str, float]:
    """On what is held out: the mean loss of its tokens, and the share of texts that are given word for word.

    The latter is left out where no record is one image with its text, or a question and its answer.
    """
    kept = _held_out(source, _digests(source.held_out))
    figures = {"loss": _loss(model, processor, source, [document for _, document in kept])}
    right = _exact(model, processor, source, [record for record, _ in kept])
    return figures | ({"exact": float(np.mean(right))} if right else {})


@lru_cache(maxsize=1)  # a pass over all of the data; asked for several times in a run
def _held_out(source: TrainingSplit, _: frozenset[str]) -> list[tuple[Record, Document]]:
    return documents(source, True)


@torch.no_grad()
def _loss(
    model: FlamingoForConditionalGeneration, processor: FlamingoProcessor, source: TrainingSplit, kept: list[Document]
) -> float:
    worker, examples = WorkerProcessor.of(processor), []
    for document in kept:
        try:
            examples.append(make_example(document, source, worker, np.random.default_rng(0)))
        except Rejected:  # an image that cannot be decoded
            continue
    total, targets = 0.0, 0
    for start in range(0, len(examples), BATCH):
        batch = collate(examples[start : start + BATCH], processor.pad_token_id)
        total += float(summed_loss(model, batch, worker.images.normalized, model.device))
        targets += batch.targets
    return total / targets if targets else float("nan")


def _exact(
    model: FlamingoForConditionalGeneration, processor: FlamingoProcessor, source: TrainingSplit, kept: list[Record]
) -> list[bool]:
    asked: dict[Template, list[tuple[tuple[Any, ...], str]]] = {}
    for record in kept:
        content, images = read_record(record, source.outside)
        if len(images) != 1 or IMAGE_TOKEN in str(content.get("text", "")):
            continue
        template, (*fields, answer) = source.template_values(content)
        try:
            load_image(images[0], max_pixels=source.max_pixels)
            template.query(*fields)
        except ValueError:  # an image that cannot be decoded; texts that spell a token where they meet
            continue
        # As the file's bytes: hundreds of decoded photographs do not fit into memory.
        asked.setdefault(template, []).append(((images[0], *fields), answer))
    right = []
    for template, rows in asked.items():
        longest = max(len(processor.tokenizer(answer).input_ids) for _, answer in rows)
        said = FewShotTask(model, processor, (), template)(
            [query for query, _ in rows], max_new_tokens=longest + 1, batch_size=BATCH
        )
        right += [_words(one) == _words(answer) for one, (_, answer) in zip(said, rows, strict=True)]
    return right


def _words(text: str) -> list[str]:
    return text.lower().split()


def unknown_words(source: TrainingSplit, processor: FlamingoProcessor) -> float:
    """Share of the data's tokens that the tokenizer has no name for."""
    tokenizer = processor.tokenizer
    if tokenizer.unk_token_id is None:
        return 0.0
    ids = [token for _, one in documents(source, False) for token in tokenizer(one.text).input_ids]
    return ids.count(tokenizer.unk_token_id) / max(len(ids), 1)
