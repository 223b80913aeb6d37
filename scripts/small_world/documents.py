"""Training documents in tar shards, read by `flamboyance.data.formats.user_data`: names, names by the library's default
template, captions, topics, episodes.

A record is `KEY.json`, with a text and its images as `data:` URLs. An image has the same bytes in every document.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from flamboyance import templates
from flamboyance.data.convert.shard_writer import Fields, check_settings, json_bytes, write_shard
from flamboyance.templates import Template
from scripts.small_world import captions, episodes
from scripts.small_world.concepts import Concept, kinds_of, pluralize
from scripts.small_world.episodes import Shelf
from scripts.small_world.madeup import Words
from scripts.small_world.pictures import TRAIN
from scripts.small_world.scenes import Scene
from scripts.small_world.variants import Variant, random_for

PATTERN = "<image> {text}"
"""A picture and the text after it: `Template(PATTERN)` writes the same prompts for a model. After a space a name has
1.8 tokens of SmolLM2 on average, without it 2.4."""
DEFAULT_SHARE = (
    0.85  # share of the documents, other than names, that `templates.caption`, the library's default, writes
)

PER_SHARD = 1000  # documents
SINGLE = 0.4  # share of the caption documents with one picture
SCENES = 0.25  # share of the pictures in caption documents that are scenes, where there are any
ONE_STYLE = 0.5  # share of the caption documents with several pictures whose captions are all of one style
MOST_CAPTIONS, MOST_TOPIC = 5, 6  # pictures of a document
NAMES = 6  # pictures of every document of names: documents of about one length need little padding

Part = tuple[str, str]  # an image file, and the text after it


@dataclass(frozen=True)
class Material:
    """What documents are made of: all of it may be trained on."""

    folder: Path
    concepts: Sequence[Concept]
    variants: Sequence[Variant]
    scenes: Sequence[Scene]
    words: Words

    def __post_init__(self) -> None:
        held_out = {concept.name for concept in self.concepts if concept.split != TRAIN}
        held_out |= {variant.file for variant in self.variants if variant.split != TRAIN}
        if held_out:
            raise ValueError(f"held out, and so not for training documents: {', '.join(sorted(held_out)[:5])}")

    @classmethod
    def of_training(
        cls,
        folder: Path,
        concepts: Sequence[Concept],
        variants: Sequence[Variant],
        scenes: Sequence[Scene],
        words: Words,
    ) -> Material:
        """The part of a world that may be trained on."""
        kept = [concept for concept in concepts if concept.split == TRAIN]
        return cls(folder, kept, [v for v in variants if v.split == TRAIN], scenes, words)


def write_documents(material: Material, counts: Mapping[str, int], seed: int, progress: Callable[[int], None]) -> None:
    """Writes the missing shards of each set, in turn; the same arguments give the same bytes. A larger number, if
    it is a multiple of `PER_SHARD`, adds shards to those there.

    Args:
        counts: documents by the name of the set.

    Raises:
        ValueError: a folder's shards were made with other settings.
    """
    writers = {name: WRITERS[name](material) for name, count in counts.items() if count}
    shards = []
    for name, count in counts.items():
        settings = {"seed": seed, "pattern": PATTERN, "default": DEFAULT_SHARE, "per_shard": PER_SHARD}
        settings |= {"variants": len(material.variants), "scenes": len(material.scenes)}
        settings |= {"documents": count} if count % PER_SHARD else {}
        if count:
            check_settings(material.folder / name, settings, "made.json")
        shards += [(shard, name) for shard in range(-(-count // PER_SHARD))]
    for shard, name in sorted(shards):
        file = material.folder / name / f"{name}-{shard:05d}.tar"
        numbers = range(shard * PER_SHARD, min((shard + 1) * PER_SHARD, counts[name]))
        if not file.is_file():
            write_shard(file, _records(material, name, writers[name], numbers, seed))
        progress(len(numbers))


Writer = Callable[[np.random.Generator], tuple[str, list[Part]]]  # a document: the text before it, and its parts


def _records(material: Material, name: str, writer: Writer, numbers: range, seed: int) -> Iterator[tuple[str, Fields]]:
    plain, default = Template(PATTERN, strip=False), replace(templates.caption, strip=False)
    share = {"names": 0.0, "named": 1.0, "tasks": 1.0}.get(name, DEFAULT_SHARE)
    for number in numbers:
        rng = random_for(seed, name, number)
        opening, parts = writer(rng)
        template = default if rng.random() < share else plain
        text = opening + "".join(template.demonstration(text) for _, text in parts)
        # Not files beside the JSON: a tar member costs more time than its content, to write and to read.
        images = [_data_url(f"{material.folder}/{file}") for file, _ in parts]
        yield f"{number:08d}", {"json": json_bytes({"text": text, "images": images})}


@cache
def _data_url(file: str) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(Path(file).read_bytes()).decode()


def _captions(material: Material) -> Writer:
    concepts = {concept.name: concept for concept in material.concepts}
    shelf = Shelf(material.variants, material.concepts)

    def part(style: str, rng: np.random.Generator) -> Part:
        if material.scenes and rng.random() < SCENES:
            scene = material.scenes[int(rng.integers(len(material.scenes)))]
            return scene.file, captions.scene_caption(scene, concepts, rng)
        name = shelf.names[int(rng.integers(len(shelf.names)))]
        of = shelf.of(name)
        variant = of[int(rng.integers(len(of)))]
        return variant.file, captions.caption(style, concepts[name], variant, rng)

    def write(rng: np.random.Generator) -> tuple[str, list[Part]]:
        count = 1 if rng.random() < SINGLE else int(rng.integers(2, MOST_CAPTIONS + 1))
        style = captions.draw_style(rng) if rng.random() < ONE_STYLE else None
        return "", [part(style or captions.draw_style(rng), rng) for _ in range(count)]

    return write


def _names(material: Material) -> Writer:
    """Pictures of single things, each with its bare name: the fewest tokens from which sight can be learned."""
    shelf = Shelf(material.variants, material.concepts)

    def write(rng: np.random.Generator) -> tuple[str, list[Part]]:
        parts = []
        for _ in range(NAMES):
            name = shelf.names[int(rng.integers(len(shelf.names)))]
            of = shelf.of(name)
            parts.append((of[int(rng.integers(len(of)))].file, name))
        return "", parts

    return write


def _topics(material: Material) -> Writer:
    """Documents of one kind: "Animals.", then pictures, each with a sentence on what it shows."""
    shelf = Shelf(material.variants, material.concepts)
    kinds = {kind: [c for c in of if c.name in shelf.names] for kind, of in kinds_of(material.concepts).items()}
    kinds = {kind: of for kind, of in kinds.items() if len(of) >= 2}
    sizes = np.array([len(of) for of in kinds.values()], float)

    def write(rng: np.random.Generator) -> tuple[str, list[Part]]:
        kind = list(kinds)[int(rng.choice(len(kinds), p=sizes / sizes.sum()))]
        count = min(int(rng.integers(3, MOST_TOPIC + 1)), len(kinds[kind]))
        parts = []
        for place in rng.choice(len(kinds[kind]), size=count, replace=False):
            concept = kinds[kind][place]
            of = shelf.of(concept.name)
            variant = of[int(rng.integers(len(of)))]
            parts.append((variant.file, _sentence(concept, variant, rng)))
        return f"{captions.capital(_many(kind))}.", parts

    return write


def _sentence(concept: Concept, variant: Variant, rng: np.random.Generator) -> str:
    first = captions.sentence_of(concept) if rng.random() < 0.5 else f"{captions.capital(concept.phrase)}."
    seen = captions.picture_of(concept, variant, rng)
    first = first if rng.random() < 0.8 else f"{captions.capital(seen)}."
    gloss = captions.gloss_of(concept) or captions.kind_of(concept)
    more = captions.fact_of(concept, rng) if rng.random() < 0.3 else ""
    return " ".join(filter(None, (first, gloss, more)))


def _many(kind: str) -> str:
    return kind if kind in captions.UNCOUNTED else pluralize(kind)


def _episodes(material: Material) -> Writer:
    shelf = Shelf(material.variants, material.concepts)

    def write(rng: np.random.Generator) -> tuple[str, list[Part]]:
        entries = episodes.training_document(shelf, material.words, rng)
        return "", [(entry.variant.file, entry.text) for entry in entries]

    return write


def _tasks(material: Material) -> Writer:
    shelf = Shelf(material.variants, material.concepts)

    def write(rng: np.random.Generator) -> tuple[str, list[Part]]:
        return "", [(entry.variant.file, entry.text) for entry in episodes.task_document(shelf, rng)]

    return write


WRITERS: Mapping[str, Callable[[Material], Writer]] = {
    "names": _names,
    "named": _names,
    "captions": _captions,
    "topics": _topics,
    "episodes": _episodes,
    "tasks": _tasks,
}
"""By the name of the set, which is its folder's."""
