"""A contact sheet: a row per concept, a column per collection, then variants; to look for wrong or empty pictures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from flamboyance.files import replacing
from scripts.small_world.concepts import Concept
from scripts.small_world.pictures import Picture
from scripts.small_world.variants import Variant, fitted

CELL, LABEL, VARIANTS = 64, 150, 6  # pixels of a cell, pixels of the concept's name, variants of a concept
MOST_ROWS = 400  # of an image


def write_sheet(
    path: Path,
    folder: Path,
    concepts: Sequence[Concept],
    pictures: Sequence[Picture],
    variants: Sequence[Variant],
    start: int = 0,
) -> None:
    """Writes the sheet of up to 400 concepts from number `start` on; held-out ones are marked with a star."""
    concepts = concepts[start : start + MOST_ROWS]
    collections = sorted({picture.collection for picture in pictures})
    by_place, by_concept = {}, defaultdict(list)
    for picture in pictures:
        by_place.setdefault((picture.concept, picture.collection), picture)
    for variant in variants:
        if variant.variant:
            by_concept[variant.concept].append(variant)
    width = LABEL + CELL * (len(collections) + VARIANTS)
    sheet = Image.new("RGB", (width, CELL * (len(concepts) + 1)), "white")
    pen = ImageDraw.Draw(sheet)
    for column, name in enumerate(collections):
        pen.text((LABEL + column * CELL, CELL // 2), name[:10], fill="black")
    for row, concept in enumerate(concepts, 1):
        top = row * CELL
        star = "*" if concept.split == "held-out" else ""
        pen.text((2, top + CELL // 3), f"{concept.name}{star}\n{concept.kind}", fill="black")
        for column, name in enumerate(collections):
            picture = by_place.get((concept.name, name))
            if picture is not None:
                thing = fitted(Image.open(folder / picture.file).convert("RGBA"), CELL - 4)
                sheet.paste(thing, (LABEL + column * CELL, top), thing)
        of = by_concept[concept.name]
        step = max(len(of) // VARIANTS, 1)
        for column, variant in enumerate(of[::step][:VARIANTS], len(collections)):
            small = Image.open(folder / variant.file).resize((CELL - 2, CELL - 2))
            sheet.paste(small, (LABEL + column * CELL, top))
    with replacing(path) as part:
        sheet.save(part, format="PNG")
