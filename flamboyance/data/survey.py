"""What a source holds, before training on it: documents, images and tokens in each, and what is dropped, by reason."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from flamboyance.data.batch import TrainingExample
from flamboyance.data.documents import Record, Rejected, Source
from flamboyance.data.examples import WorkerProcessor, example_of_tokens
from flamboyance.data.formats.chatgpt import ChatGPT
from flamboyance.data.formats.mmc4 import MMC4
from flamboyance.data.formats.obelics import OBELICS, is_page
from flamboyance.data.formats.pairs import Pairs
from flamboyance.data.formats.user_data import UserData
from flamboyance.data.shards import expand, records
from flamboyance.data.tar import Damage
from flamboyance.data.worker import DECODER_ERRORS

FORMATS: dict[str, type[Source]] = {
    "own": UserData,
    "pairs": Pairs,
    "mmc4": MMC4,
    "obelics": OBELICS,
    "chatgpt": ChatGPT,
}


@dataclass
class Survey:
    """What was found.

    Attributes:
        source: as it was read.
        records: number of records that were read, with those that were dropped.
        drops: number of records, and of damaged places in shards, that gave no document, by reason.
        images, tokens: of each usable document as it is stored: images and videos, and tokens with those of images and
            ends. (documents,)
        kept_images, kept_tokens: of the same documents, cut to the source's limits.
        learned: tokens of each that are predicted.
        videos: number of videos among the images that are kept.
        whole: whether all shards were read.
        samples: some of the documents as the model would see them, drawn evenly: (key of the record, example).
    """

    source: Source
    records: int = 0
    drops: Counter[str] = field(default_factory=Counter)
    images: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    kept_images: list[int] = field(default_factory=list)
    kept_tokens: list[int] = field(default_factory=list)
    learned: list[int] = field(default_factory=list)
    videos: int = 0
    whole: bool = True
    samples: list[tuple[str, TrainingExample]] = field(default_factory=list)

    @property
    def documents(self) -> int:
        """Number of usable documents."""
        return len(self.images)


def survey(
    source: Source, worker: WorkerProcessor, most: int | None = None, samples: int = 12, seed: int = 0
) -> Survey:
    """Reads a source as training does, once and in stored order.

    Args:
        worker: the model's.
        most: records to read; None: all.
        samples: number of documents to keep.
        seed: of what training draws too (rejection of documents with one image, windows), and of the samples.

    Raises:
        ValueError: shards that are not found.
    """
    found = Survey(source)
    plain, draw = replace(source, flip=0.0), np.random.default_rng([seed, 0])
    for item in _items(source):
        if isinstance(item, Damage):
            found.drops[item.reason] += 1
            continue
        if found.records == most:
            found.whole = False
            break
        found.records += 1
        rng = np.random.default_rng([seed, found.records])
        try:
            document = source.document(item, rng)
            tokens = worker.tokens(document.text)
            example = example_of_tokens(document, tokens, plain, worker, rng)
        except Rejected as rejected:
            found.drops[rejected.reason] += 1
            continue
        except DECODER_ERRORS as error:
            found.drops[type(error).__name__] += 1
            continue
        counts = example.frame_counts or (1,) * len(example.images)
        found.images.append(len(document.images))
        found.tokens.append(len(worker.prefix) + len(tokens))
        found.kept_images.append(len(counts))
        found.kept_tokens.append(len(example.input_ids))
        found.learned.append(int((example.labels[1:] != -100).sum()))
        found.videos += sum(count > 1 for count in counts)
        # Reservoir sampling: each document is kept with the same probability.
        place = found.documents - 1 if found.documents <= samples else int(draw.integers(found.documents))
        if place < samples:
            found.samples[place : place + 1] = [(item.key, example)]
    return found


def _items(source: Source) -> Iterator[Record | Damage]:
    for shard in expand(source.shards):
        yield from records(shard, getattr(source, "outside", False))


def format_of(shards: str | tuple[str, ...]) -> str:
    """The format, of `FORMATS`, of the first record that can be read; "own" where it tells nothing.

    Raises:
        ValueError: shards that are not found.
    """
    for item in _items(UserData(shards=shards, batch_size=1, outside=True)):
        if isinstance(item, Damage):
            continue
        try:
            content = json.loads(item.fields.get("json", b"{}"))
        except (ValueError, RecursionError):
            continue
        content = content if isinstance(content, dict) else {}
        if "text_list" in content and "image_info" in content:
            return "mmc4"
        if "example" in content and "image_map" in content:
            return "chatgpt"
        if is_page(content):
            return "obelics"
        named = content.keys() & {"image", "images", "file_name", "question"}
        captioned = "txt" in item.fields or "caption" in content
        return "pairs" if item.folder is None and captioned and not named else "own"
    return "own"


BOUNDS = tuple(2**power for power in range(4, 13))
"""The upper bounds of the bars of a histogram of tokens."""


def image_bars(counts: list[int], most: int = 10) -> list[tuple[str, int]]:
    """Documents by their number of images; `most` and more are one bar."""
    found = Counter(min(count, most) for count in counts)
    return [(f"{n}" if n < most else f"{n} or more", found[n]) for n in range(1, max(found, default=0) + 1)]


def token_bars(counts: list[int]) -> list[tuple[str, int]]:
    """Documents by their number of tokens, in ranges whose bounds double."""
    places = Counter(int(np.searchsorted(BOUNDS, count)) for count in counts)
    named = [f"{1 if not i else BOUNDS[i - 1] + 1} to {bound}" for i, bound in enumerate(BOUNDS)]
    named.append(f"over {BOUNDS[-1]}")
    used = range(min(places, default=0), max(places, default=-1) + 1)
    return [(named[place], places[place]) for place in used]
