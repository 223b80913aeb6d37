"""Copies the pictures that the package ships, for the demo and tests."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from flamboyance.files import json_line, write_text
from scripts.small_world.artists import DRAWING, PHOTOGRAPH
from scripts.small_world.concepts import Concept
from scripts.small_world.pictures import HELD_OUT_ARTIST, HELD_OUT_CONCEPT, HELD_OUT_PHOTOGRAPH, Picture
from scripts.small_world.variants import Variant

# Chosen by eye.
NEW = (  # held-out concepts, for made-up words
    *("baseball", "bread", "caterpillar", "elephant", "fire engine", "fox", "ice cream cone", "melon", "monkey"),
    *("palm tree", "penguin", "rooster", "snake", "strawberry", "sushi", "television", "tomato", "tractor"),
    *("trumpet", "umbrella", "violin"),
)
SHOWN = 5  # variants of each, by the held-out artist
KNOWN = (  # concepts that were trained on; each by the held-out artist, and by one who was trained on
    *("airplane", "apple", "backpack", "banana", "bicycle", "bridge", "broccoli", "butterfly", "camel", "carrot"),
    *("cow", "crown", "dolphin", "drum", "duck", "egg", "frog", "giraffe", "grapes", "guitar", "hedgehog"),
    *("helicopter", "house", "key", "ladybug", "lemon", "lobster", "mountain", "octopus", "owl", "parrot", "pear"),
    *("pizza", "rabbit", "rainbow", "rocket", "sailboat", "sheep", "snail", "snowman", "spider", "sunflower"),
    *("telescope", "tent", "tulip", "turtle", "volcano", "watermelon"),
)
TRAINED = "noto"
OTHERS = ("noto", "noto-v1", "emojione", "fxemoji", "streamline")  # may be shipped with their attribution alone
PHOTOGRAPHS = (  # held out
    *("castle", "cat", "church", "crab", "dog", "duck"),
    *("giraffe", "hammer", "horse", "koala", "moose", "windmill"),
)


def ship(
    target: Path, folder: Path, concepts: Sequence[Concept], pictures: Sequence[Picture], variants: Sequence[Variant]
) -> int:
    """Writes `pictures.jsonl` and the image files into `target`; returns the number of files.

    The drawings are under Apache-2.0 or CC BY 4.0, the photographs in the public domain or CC0.
    """
    by_name = {concept.name: concept for concept in concepts}
    by_id = {picture.id: picture for picture in pictures}
    shutil.rmtree(target / "pictures", ignore_errors=True)
    (target / "pictures").mkdir(parents=True)
    lines = []
    for variant in _chosen(by_name, variants):
        picture, concept = by_id[variant.picture], by_name[variant.concept]
        name = f"{variant.picture.replace('/', '-')}.{variant.variant}.jpg"
        shutil.copyfile(folder / variant.file, target / "pictures" / name)
        about = {key: value for key, value in asdict(picture).items() if key not in ("file", "split", "id")}
        about |= {
            "variant": variant.variant,
            "names": dict(concept.names),
            "phrase": concept.phrase,
            "kind": concept.kind,
        }
        about |= {"new": concept.split != "train"}
        lines.append(json_line({"file": f"pictures/{name}", **about}))
    write_text(target / "pictures.jsonl", "".join(lines))
    return len(lines)


def _chosen(concepts: dict[str, Concept], variants: Sequence[Variant]) -> Iterator[Variant]:
    wrong = [name for name in NEW if name in concepts and concepts[name].split == "train"]
    if wrong:
        raise ValueError(f"trained on, and so not new: {', '.join(wrong)}; choose other concepts in {__file__}")
    drawn = [v for v in variants if v.style == DRAWING and not v.picture.rpartition("-")[2].isdecimal()]
    artist = [v for v in drawn if v.split == HELD_OUT_ARTIST]
    yield from (v for v in artist if v.concept in NEW and v.variant < SHOWN)
    yield from (v for v in drawn if v.concept in NEW and v.variant == 0 and v.collection in OTHERS)
    yield from (v for v in artist if v.concept in KNOWN and v.variant == 0)
    yield from (v for v in drawn if v.concept in KNOWN and v.variant == 0 and v.collection == TRAINED)
    held_out = (HELD_OUT_PHOTOGRAPH, HELD_OUT_CONCEPT)
    seen = [v for v in variants if v.style == PHOTOGRAPH and v.variant == 0 and v.split in held_out]
    yield from {v.concept: v for v in seen if v.concept in PHOTOGRAPHS}.values()  # one of each
