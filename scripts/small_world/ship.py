"""Copies the few held-out pictures that the package ships, for the demo and tests."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from flamboyance.files import json_line, write_text
from scripts.small_world.artists import PHOTOGRAPH
from scripts.small_world.concepts import Concept, rank
from scripts.small_world.pictures import HELD_OUT_ARTIST, HELD_OUT_CONCEPT, HELD_OUT_PHOTOGRAPH, Picture
from scripts.small_world.variants import Variant

NEW = 6  # held-out concepts, with every variant of the held-out artist: made-up words are bound to them
KNOWN = 12  # concepts that were trained on, drawn by the held-out artist
PHOTOGRAPHS = 10


def ship(
    target: Path, folder: Path, concepts: Sequence[Concept], pictures: Sequence[Picture], variants: Sequence[Variant]
) -> int:
    """Writes `pictures.jsonl` and the image files into `target`; returns the number of files.

    Twemoji may be shipped with its attribution, the photographs are in the public domain or CC0.
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
        about |= {"names": dict(concept.names), "phrase": concept.phrase, "kind": concept.kind}
        about |= {"new": concept.split != "train"}
        lines.append(json_line({"file": f"pictures/{name}", **about}))
    write_text(target / "pictures.jsonl", "".join(lines))
    return len(lines)


def _chosen(concepts: dict[str, Concept], variants: Sequence[Variant]) -> Iterator[Variant]:
    """In an order that looks random: of each kind at most one held-out and one known concept."""

    def spread(names: set[str], count: int) -> list[str]:
        kinds: dict[str, str] = {}
        for name in sorted(names, key=rank):
            kinds.setdefault(concepts[name].kind, name)
        return sorted(kinds.values(), key=rank)[:count]

    drawn = [v for v in variants if v.split == HELD_OUT_ARTIST and v.collection == "twemoji" and "-2" not in v.picture]
    new = spread({v.concept for v in drawn if concepts[v.concept].split != "train"}, NEW)
    known = spread({v.concept for v in drawn if concepts[v.concept].split == "train"}, KNOWN)
    yield from (v for name in new for v in drawn if v.concept == name)
    yield from (v for name in known for v in drawn if v.concept == name and v.variant == 0)
    held_out = (HELD_OUT_PHOTOGRAPH, HELD_OUT_CONCEPT)
    seen = [v for v in variants if v.style == PHOTOGRAPH and v.variant == 0 and v.split in held_out]
    one_each = {v.concept: v for v in sorted(seen, key=lambda v: rank(v.picture))}
    yield from [one_each[name] for name in sorted(one_each, key=rank)][:PHOTOGRAPHS]
