"""flamingo-mini's training data: shards in the public formats, drawn from the mini world.

Pairs as img2dataset writes them (one object, or a digit), documents as MMC4's (captions and questions of up to five
images), and sequences as OpenFlamingo's ChatGPT ones (episodes that bind two made-up words). `flamboyance.templates`
writes the texts, so that few-shot prompts look like the training data.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from flamboyance import templates
from flamboyance.data.convert.shard_writer import check_settings, write_shard
from flamboyance.mini.world import binding_episode, caption, digit_scene, draw_question, render, scene
from flamboyance.mini.world.scenes import Scene
from flamboyance.templates import END_OF_CHUNK_TOKEN, IMAGE_TOKEN, Template

PER_SHARD = 250  # records
MOST = 5  # images per document; a batch is padded to its longest document
BOUND = ("color", "shape", "digit")  # kinds of concepts that made-up words are bound to
PLAIN = 0.3  # share of the episodes whose irrelevant attributes do not vary

Entry = tuple[Scene, str]  # an image, and the text after it
Record = dict[str, bytes]  # content by extension


@dataclass(frozen=True)
class Set:
    """One format's shards.

    Attributes:
        number: part of the seed, so that sets differ.
        record: (random generator, key) -> a record.
    """

    name: str
    number: int
    records: int
    record: Callable[[np.random.Generator, str], Record]

    @property
    def shards(self) -> int:
        return -(-self.records // PER_SHARD)

    def files(self, folder: Path) -> list[Path]:
        return [folder / f"{self.name}-{shard:05d}.tar" for shard in range(self.shards)]

    def pattern(self, folder: str | Path) -> str:
        """The shards' paths, in braces."""
        return f"{folder}/{self.name}-{{00000..{self.shards - 1:05d}}}.tar"


def sets(documents: int) -> dict[str, Set]:
    """The sets for a number of interleaved documents: as many pairs, and half as many sequences.

    Raises:
        ValueError: fewer than two.
    """
    if documents < 2:
        raise ValueError(f"documents={documents}: expected 2 or more")
    kinds = (("pairs", documents, pair), ("documents", documents, document), ("sequences", documents // 2, sequence))
    return {name: Set(name, number, count, record) for number, (name, count, record) in enumerate(kinds)}


def write(folder: Path, documents: int, data_seed: int, progress: Callable[[int], None] = lambda _: None) -> None:
    """Writes the missing shards, each atomically; the same arguments give the same bytes.

    Args:
        documents: interleaved documents; see `sets`.
        data_seed: another seed draws other scenes.
        progress: called with 1 for each shard that exists or was written.

    Raises:
        ValueError: the folder's shards were made with other arguments.
        ImportError: scikit-learn, which has the handwritten digits, is not installed.
    """
    settings = {"documents": documents, "data_seed": data_seed, "per_shard": PER_SHARD}
    check_settings(folder, settings, "made.json")
    for one in sets(documents).values():
        for shard, file in enumerate(one.files(folder)):
            if not file.is_file():
                write_shard(file, _records(one, shard, data_seed))
            progress(1)


def _records(one: Set, shard: int, data_seed: int) -> Iterator[tuple[str, Record]]:
    for number in range(shard * PER_SHARD, min((shard + 1) * PER_SHARD, one.records)):
        key = f"{number:09d}"
        yield key, one.record(np.random.default_rng((data_seed, one.number, number)), key)


# ---- records --------------------------------------------------------------------------------------------------------


def pair(rng: np.random.Generator, key: str) -> Record:
    """An image and its text, with img2dataset's metadata."""
    (picture, text) = _captioned(rng, 1)
    (image,) = _jpegs([picture])
    about = {"caption": text, "key": key, "status": "success", "width": 64, "height": 64, "sha256": None}
    return {"jpg": image, "txt": text.encode(), "json": json.dumps(about).encode()}


def document(rng: np.random.Generator, key: str) -> Record:
    """Captioned scenes, or scenes with a question each, in MMC4's format: a sentence per image."""
    count, entry = int(rng.integers(1, MOST + 1)), _captioned if rng.random() < 0.5 else _questioned
    entries = [entry(rng) for _ in range(count)]
    about = [
        {
            "image_name": f"{key}-{place}.jpg",
            "raw_url": f"https://example.org/{key}/{place}.jpg",
            "matched_text_index": place,
            "matched_sim": 0.4,
            "image_base64": base64.b64encode(image).decode(),
        }
        for place, image in enumerate(_jpegs([picture for picture, _ in entries]))
    ]
    content = {
        "url": f"https://example.org/{key}",
        "text_list": [text for _, text in entries],
        "image_info": about,
        "similarity_matrix": np.where(np.eye(count), 0.4, 0.1).tolist(),
    }
    return {"json": json.dumps(content).encode()}


def sequence(rng: np.random.Generator, key: str) -> Record:
    """An episode of two made-up words, in the format of OpenFlamingo's ChatGPT sequences."""
    shots, kind = int(rng.integers(2, 9)), BOUND[rng.integers(len(BOUND))]
    episode = binding_episode(rng, shots, kind, "train", plain=PLAIN)
    shown = [*episode.demonstrations, (episode.query, episode.answer)]
    names = [f"_!_IMAGE{place}_!_" for place in range(len(shown))]
    images = _jpegs([picture for picture, _ in shown])
    content = {
        "is_gpt": True,
        "example": "".join(
            name + _after_image(templates.caption, word) for name, (_, word) in zip(names, shown, strict=True)
        ),
        "image_map": {
            name: {"base64_image": base64.b64encode(image).decode()} for name, image in zip(names, images, strict=True)
        },
    }
    return {"json": json.dumps(content).encode()}


def _captioned(rng: np.random.Generator, things: int | None = None) -> Entry:
    """A scene or, with probability 1/4, a digit, and its caption."""
    drawn = digit_scene(rng, "train") if rng.random() < 0.25 else scene(rng, things)
    return drawn, _after_image(templates.caption, caption(drawn))


def _questioned(rng: np.random.Generator) -> Entry:
    """A scene or, with probability 1/8, a digit, and a question with its answer."""
    drawn, question = draw_question(rng, digits=0.125)
    return drawn, _after_image(templates.vqa, question.text, question.answer)


def _after_image(template: Template, *values: str) -> str:
    """The text between the image and the end of the chunk."""
    return template.demonstration(*values).removeprefix(IMAGE_TOKEN).removesuffix(END_OF_CHUNK_TOKEN)


def _jpegs(scenes: list[Scene]) -> Iterator[bytes]:
    for pixels in render(scenes):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, format="JPEG", quality=95, subsampling=0)
        yield file.getvalue()
