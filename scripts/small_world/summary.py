"""Counts of what is in a world, as tables; docs/small-world.md has them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from scripts.small_world.concepts import Concept
from scripts.small_world.pictures import SPLITS, Picture
from scripts.small_world.variants import Variant


def pictures_table(pictures: Sequence[Picture]) -> str:
    """Markdown: pictures by collection and split, with artist and licence."""
    counts = Counter((p.collection, p.artist, p.style, p.split) for p in pictures)
    licences: dict[str, set[str]] = {}
    for picture in pictures:
        licences.setdefault(picture.collection, set()).add(picture.licence)
    rows = [["collection", "artist", "style", "licence", *SPLITS]]
    for collection, artist, style in dict.fromkeys((p.collection, p.artist, p.style) for p in pictures):
        per_split = [counts[collection, artist, style, split] for split in SPLITS]
        licence = ", ".join(sorted(licences[collection]))
        rows.append([collection, artist, style, licence, *(str(n or "") for n in per_split)])
    totals = Counter(p.split for p in pictures)
    rows.append(["all", "", "", "", *(str(totals[split]) for split in SPLITS)])
    return _markdown(rows)


def kinds_table(concepts: Sequence[Concept]) -> str:
    """Markdown: concepts by kind, and how many of them are held out."""
    every, held_out = Counter(c.kind for c in concepts), Counter(c.kind for c in concepts if c.split != "train")
    rows = [["kind", "concepts", "held out"], *([kind, str(n), str(held_out[kind])] for kind, n in every.most_common())]
    return _markdown([*rows, ["all", str(len(concepts)), str(sum(held_out.values()))]])


def totals_table(
    concepts: Sequence[Concept], variants: Sequence[Variant], scenes: int, documents: Mapping[str, int]
) -> str:
    """Markdown: image files by split, scenes, documents, and what the concepts have words for."""
    files = Counter(variant.split for variant in variants)
    rows = [["what", "how many"], *([f"variants, {split}", str(files[split])] for split in SPLITS if files[split])]
    rows += [["scenes", str(scenes)], *([name, str(count)] for name, count in documents.items())]
    rows += [["concepts with a gloss", str(sum(bool(c.gloss) for c in concepts))]]
    rows += [["concepts with a fact", str(sum(bool(c.facts) for c in concepts))]]
    return _markdown(rows)


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, "| " + " | ".join("---" for _ in rows[0]) + " |", *body]) + "\n"
