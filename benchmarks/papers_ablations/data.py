"""The pictures and documents: flamingo-small's world with fewer things, and documents made over from its shards."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.papers_ablations.variants import INTERLEAVED, MISALIGNED, PAIRS
from flamboyance.data.convert.shard_writer import Fields, json_bytes, write_shard
from flamboyance.data.documents import Record
from flamboyance.data.shards import records
from flamboyance.templates import IMAGE_TOKEN

CONCEPTS = 60  # things, of which every seventh is held out
# Files of the world's evaluation/.
NAMING, WORDS, TASK = "naming-twemoji", "words-2way-within-twemoji", "which-task"
NAMED, EPISODES = 2000, 6000  # documents: six pictures with their names each, and episodes


def prepare(folder: Path) -> Path:
    """Makes what is missing of the world and the documents; returns the world."""
    world = folder / "world"
    sizes = {"limit": CONCEPTS, "scenes": 0, "names": 0, "captions": 0, "topics": 0, "tasks": 0}
    sizes |= {"named": NAMED, "episodes": EPISODES}
    options = [f"--{name}={size}" for name, size in sizes.items()]
    subprocess.run([sys.executable, "-m", "scripts.small_world", "--output", str(world), *options], check=True)
    for name, made_from in ((PAIRS, "named"), (INTERLEAVED, "episodes"), (MISALIGNED, "episodes")):
        for shard in sorted((world / made_from).glob("*.tar")):
            path = folder / name / shard.name
            if not path.is_file():
                path.parent.mkdir(parents=True, exist_ok=True)
                write_shard(path, made_over(name, documents(shard)))
    return world


def documents(shard: Path) -> Iterator[dict[str, Any]]:
    for record in records(str(shard)):
        if not isinstance(record, Record):
            raise ValueError(f"{shard} is damaged ({record}): remove it, and start again")
        yield json.loads(record.fields["json"])


def made_over(name: str, given: Iterator[dict[str, Any]]) -> Iterator[tuple[str, Fields]]:
    """Records of a set. A pair is a document of one picture, with the text that a longer one has for it."""
    number = 0
    for place, document in enumerate(given):
        text, images = document["text"], document["images"]
        if name == PAIRS:
            parts = [IMAGE_TOKEN + part for part in text.split(IMAGE_TOKEN)[1:]]
            made = [(part, [image]) for part, image in zip(parts, images, strict=True)]
        elif name == MISALIGNED:
            order = np.random.default_rng(place).permutation(len(images))
            made = [(text, [images[i] for i in order])]
        else:
            made = [(text, images)]
        for words, shown in made:
            yield f"{number:08d}", {"json": json_bytes({"text": words, "images": shown})}
            number += 1
