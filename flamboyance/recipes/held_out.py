"""A user's own data, some of which is held out of training and measured on."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from flamboyance import templates
from flamboyance.data.batch import collate
from flamboyance.data.documents import HELD_OUT, Document, Record, Rejected
from flamboyance.data.examples import Reader, make_example
from flamboyance.data.own import Own, read
from flamboyance.data.shards import expand, records
from flamboyance.data.tar import Damage
from flamboyance.few_shot import FewShotTask
from flamboyance.files import replacing
from flamboyance.images import ImageError, load_image
from flamboyance.templates import IMAGE_TOKEN, Template
from flamboyance.training.step import summed_loss

if TYPE_CHECKING:
    from flamboyance.model.flamingo import FlamingoForConditionalGeneration
    from flamboyance.processing import FlamingoProcessor

SEARCHED = 2000  # records among which those to hold out are drawn
MOST = 200  # held out
BATCH = 16


@dataclass(frozen=True, kw_only=True)
class Kept(Own):
    """A user's own data without the records that are held out.

    Args:
        held_out: a JSON file with their keys; none where it is empty.
    """

    held_out: str = ""

    def document(self, record: Record, rng: np.random.Generator) -> Document:
        if self.held_out and record.key in _keys(self.held_out):
            raise Rejected(HELD_OUT)
        return super().document(record, rng)


@cache
def _keys(file: str) -> frozenset[str]:
    return frozenset(json.loads(Path(file).read_text())["keys"])


def draw(source: Kept, share: float) -> None:
    """Looks through the data, and draws once what is held out.

    Raises:
        ValueError: fewer than two documents can be used; says why.
    """
    keys, rejected = _usable(source)
    if source.held_out and Path(source.held_out).is_file() and not _keys(source.held_out) <= set(keys):
        raise ValueError(
            f"{source.held_out} holds documents out that are not in {source.shards} under the same path. Give data= as "
            "when the run began, or the run another output="
        )
    why = ", ".join(f"{reason}: {count}" for reason, count in rejected.items())
    if len(keys) < 2:
        raise ValueError(
            f"{source.shards}: {len(keys)} documents can be used ({why or 'it is empty'}); expected two at least, in a "
            "folder of images with a text beside each (cat.jpg, cat.txt), or a .csv or .jsonl with image and text"
        )
    if rejected:
        warnings.warn(f"{source.shards}: {rejected.total()} documents are left out ({why})", stacklevel=2)
    if source.held_out and not Path(source.held_out).is_file():
        count = min(MOST, max(1, round(share * len(keys))))
        chosen = sorted(np.random.default_rng(0).permutation(len(keys))[:count].tolist())
        with replacing(Path(source.held_out)) as part:
            Path(part).write_text(json.dumps({"keys": [keys[i] for i in chosen]}, indent=1) + "\n")


def _usable(source: Kept) -> tuple[list[str], Counter[str]]:
    """Keys of the records that are documents, among the first; and how many are not, by reason."""
    keys: list[str] = []
    rejected: Counter[str] = Counter()
    for item in _first(source):
        if isinstance(item, Damage):
            rejected[item.reason] += 1
            continue
        try:
            Own.document(source, item, np.random.default_rng(0))
            keys.append(item.key)
        except Rejected as error:
            rejected[error.reason] += 1
    return keys, rejected


def _first(source: Kept) -> Iterator[Record | Damage]:
    """The first records of the data, or what stands in their places."""
    number = 0
    for shard in expand(source.shards):
        for item in records(shard):
            if number == SEARCHED:
                return
            number += 1
            yield item


def documents(source: Kept, held_out: bool, most: int = MOST) -> list[tuple[Record, Document]]:
    """The first usable documents that are held out, or that are not."""
    found: list[tuple[Record, Document]] = []
    for item in _first(source):
        if len(found) == most:
            break
        if isinstance(item, Damage) or (source.held_out != "" and item.key in _keys(source.held_out)) != held_out:
            continue
        try:
            found.append((item, Own.document(source, item, np.random.default_rng(0))))
        except Rejected:
            continue
    return found


# ---- measuring ------------------------------------------------------------------------------------------------------


def evaluate(model: FlamingoForConditionalGeneration, processor: FlamingoProcessor, source: Kept) -> dict[str, float]:
    """On what is held out: the mean loss of its tokens, and the share of texts that are given word for word.

    The latter is left out where no record is one image with its text, or a question and its answer.
    """
    kept = documents(source, True)
    figures = {"loss": _loss(model, processor, source, [document for _, document in kept])}
    right = _exact(model, processor, source, [record for record, _ in kept])
    return figures | ({"exact": float(np.mean(right))} if right else {})


@torch.no_grad()
def _loss(
    model: FlamingoForConditionalGeneration, processor: FlamingoProcessor, source: Kept, kept: list[Document]
) -> float:
    reader, examples = Reader.of(processor), []
    for document in kept:
        try:
            examples.append(make_example(document, source, reader, np.random.default_rng(0)))
        except Rejected:  # an image that cannot be decoded
            continue
    total, targets = 0.0, 0
    for start in range(0, len(examples), BATCH):
        batch = collate(examples[start : start + BATCH], processor.pad_token_id)
        total += float(summed_loss(model, batch, reader.images.normalized, model.device))
        targets += batch.targets
    return total / targets if targets else float("nan")


def _exact(
    model: FlamingoForConditionalGeneration, processor: FlamingoProcessor, source: Kept, kept: list[Record]
) -> list[bool]:
    asked: dict[Template, list[tuple[tuple[Any, ...], str]]] = {}
    for record in kept:
        content, images = read(record, source.outside)
        if len(images) != 1 or IMAGE_TOKEN in str(content.get("text", "")):
            continue
        try:
            image = load_image(images[0], max_pixels=source.max_pixels)
        except ImageError:
            continue
        is_question = "question" in content and "answer" in content
        template = Template(source.template) if source.template else templates.vqa if is_question else templates.caption
        *fields, answer = (str(content[name]).strip() for name in template.fields)
        asked.setdefault(template, []).append(((image, *fields), answer))
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


def unknown_words(source: Kept, processor: FlamingoProcessor) -> float:
    """Share of the data's tokens that the tokenizer has no name for."""
    tokenizer = processor.tokenizer
    if tokenizer.unk_token_id is None:
        return 0.0
    ids = [token for _, one in documents(source, False) for token in tokenizer(one.text).input_ids]
    return ids.count(tokenizer.unk_token_id) / max(len(ids), 1)
