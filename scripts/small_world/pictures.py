"""Turns originals into pictures of one size, and says of each which split it is in."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from flamboyance.files import json_line, read_json_lines, replacing, write_text
from scripts.small_world.artists import PHOTOGRAPH, Original
from scripts.small_world.concepts import Concept, rank

SIZE = 160  # pixels of the longer side of a drawing
PHOTOGRAPH_SIZE = 256  # pixels of the shorter side of a photograph, which is cropped later
DPI = 96  # CSS pixels; at resvg's own 0 dots per inch, lengths in millimetres vanish
LEAST_COVERED = 0.01  # of a picture's box; less is an empty picture

TRAIN, HELD_OUT_CONCEPT, HELD_OUT_ARTIST = "train", "held-out-concept", "held-out-artist"
HELD_OUT_PHOTOGRAPH, TEST_ONLY = "held-out-photograph", "test-only"
SPLITS = (TRAIN, HELD_OUT_CONCEPT, HELD_OUT_ARTIST, HELD_OUT_PHOTOGRAPH, TEST_ONLY)


@dataclass(frozen=True)
class Picture:
    """A line of `pictures.jsonl`.

    Attributes:
        id: as in "noto/dog" or, of the second drawing of a concept in a collection, "noto/dog-2".
        concept: its English name; `concepts.jsonl` has the rest.
        collection: the set that it is of.
        artist: collections of one artist share it.
        style: "drawing" or "photograph".
        licence: of the picture.
        split: one of `SPLITS`. Test-only comes before the others, then the artist, the concept, the photograph.
        source: its name in the package.
        credit: who made it.
        file: the picture (PNG), relative to the world's folder.
    """

    id: str
    concept: str
    collection: str
    artist: str
    style: str
    licence: str
    split: str
    source: str
    credit: str
    file: str


def make_pictures(
    folder: Path, originals: Sequence[Original], concepts: Sequence[Concept], progress: Callable[[int], None]
) -> tuple[list[Picture], list[str]]:
    """Writes the missing pictures, and `pictures.jsonl`.

    Returns:
        the pictures, and the ids of originals that are left out because they cannot be drawn or are empty.
    """
    by_name = {concept.name: concept for concept in concepts}
    tested = _held_out_photographs(originals)
    pictures, empty, seen = [], [], {}
    for original in originals:
        concept = by_name[original.concept]
        seen[original.collection, concept.name] = number = seen.get((original.collection, concept.name), 0) + 1
        name = f"{original.collection}/{concept.slug}" + (f"-{number}" if number > 1 else "")
        split = split_of(original, concept, tested)
        file = folder / "pictures" / f"{name}.png"
        progress(1)
        if not file.is_file():
            image = _render(original)
            if image is None:
                empty.append(name)
                continue
            file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(file) as part:
                image.save(part, format="PNG")
        pictures.append(
            Picture(
                id=name,
                concept=concept.name,
                collection=original.collection,
                artist=original.artist,
                style=original.style,
                licence=original.licence,
                split=split,
                source=original.key,
                credit=original.credit,
                file=file.relative_to(folder).as_posix(),
            )
        )
    write_text(folder / "pictures.jsonl", "".join(json_line(asdict(picture)) for picture in pictures))
    return pictures, empty


def load_pictures(folder: Path) -> list[Picture]:
    """What `make_pictures` wrote."""
    return [Picture(**row) for _, row in read_json_lines(folder / "pictures.jsonl")]


def split_of(original: Original, concept: Concept, tested: set[tuple[str, str]]) -> str:
    """The split of a picture; `tested` has the held-out photographs as (collection, key)."""
    if original.use == "test-only":
        return TEST_ONLY
    if original.use == "held-out":
        return HELD_OUT_ARTIST
    if concept.split == "held-out":
        return HELD_OUT_CONCEPT
    return HELD_OUT_PHOTOGRAPH if (original.collection, original.key) in tested else TRAIN


def _held_out_photographs(originals: Iterable[Original]) -> set[tuple[str, str]]:
    """Every second photograph, in an order by concept, so that a concept has about as many in both halves."""
    photographs = [o for o in originals if o.style == PHOTOGRAPH and o.use == "train"]
    photographs.sort(key=lambda o: (rank(o.concept), rank(o.key)))
    return {(o.collection, o.key) for o in photographs[1::2]}


def _render(original: Original) -> Image.Image | None:
    """RGBA, cut to what is drawn, of the sizes above; None if nothing is drawn."""
    try:
        image = _decode(original.content)
    except (OSError, ValueError):
        return None
    box = image.getchannel("A").point(lambda alpha: 255 * (alpha > 8)).getbbox()
    if box is None:
        return None
    image = image.crop(box)
    opaque = image.getchannel("A").getextrema()[0] == 255
    side = min(image.size) if opaque and original.style == PHOTOGRAPH else max(image.size)
    scale = (PHOTOGRAPH_SIZE if opaque and original.style == PHOTOGRAPH else SIZE) / side
    size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
    image = image.convert("RGBa").resize(size, Image.Resampling.LANCZOS).convert("RGBA")  # premultiplied: no dark rims
    covered = sum(image.getchannel("A").histogram()[128:])
    return image if covered >= LEAST_COVERED * image.width * image.height else None


def _decode(content: bytes) -> Image.Image:
    """An SVG or image file as RGBA.

    Raises:
        ImportError: resvg-py is not installed.
        OSError, ValueError: it cannot be drawn or decoded.
    """
    if b"<svg" in content[:4096] or content.lstrip()[:5] == b"<?xml":
        try:
            import resvg_py
        except ImportError as error:
            raise ImportError("resvg-py draws SVG files and is not installed: pip install 'resvg-py>=0.5'") from error
        text = content.decode("utf-8", "replace")  # fonts differ between machines, so none is used
        content = bytes(resvg_py.svg_to_bytes(svg_string=text, width=SIZE * 5 // 4, dpi=DPI, skip_system_fonts=True))
    # Not `load_image`, which lays transparent pictures on white.
    with Image.open(io.BytesIO(content)) as image:
        return image.convert("RGBA")
