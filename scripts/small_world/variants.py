"""Draws a picture anew: on another background, larger or smaller, elsewhere, turned a little, in other colours.

A variant is a function of the picture, its number and the seed, so that a file that is made again has the same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
from PIL import Image

from flamboyance.files import json_line, read_json_lines, replacing, write_text
from scripts.small_world.artists import PHOTOGRAPH
from scripts.small_world.concepts import Concept
from scripts.small_world.pictures import SPLITS, TEST_ONLY, TRAIN, Picture

SIZE = 128  # pixels
QUALITY = 90  # of the JPEG files
PLAIN = 0.86  # of the canvas is the longer side in variant 0, which is on white and not changed otherwise
# Writing and clock hands are wrong in a mirror.
NOT_MIRRORED = {"stationery", "street object", "electronics", "medicine"}
COARSE = 32  # pixels of gradients and textures, before they are enlarged
TURNED = 0.6  # share of the variants that are turned a little
BACKGROUNDS = (("plain", 0.35), ("gradient", 0.25), ("texture", 0.2), ("photograph", 0.2))


@dataclass(frozen=True)
class Variant:
    """A line of `variants.jsonl`: an image file, and what it shows.

    Attributes:
        file: relative to the world's folder.
        picture: the id of its picture.
        variant: 0 is plain, on white.
        concept, collection, artist, style, split: of its picture.
    """

    file: str
    picture: str
    variant: int
    concept: str
    collection: str
    artist: str
    style: str
    split: str


@dataclass(frozen=True)
class Counts:
    """Variants per picture.

    Attributes:
        trained: of pictures that are trained on.
        new: of held-out concepts. One artist drew most of them once, and an episode shows each several times.
        others: of what is only asked for.
    """

    trained: int = 8
    new: int = 8
    others: int = 3

    def of(self, picture: Picture, concept: Concept) -> int:
        if picture.split == TRAIN:
            return self.trained
        return self.new if concept.split != TRAIN and picture.split != TEST_ONLY else self.others


def random_for(seed: int, *parts: object) -> np.random.Generator:
    """A generator that depends on the seed and the parts alone."""
    digest = blake2b(repr((seed, *parts)).encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))


def make_variants(
    folder: Path,
    pictures: Sequence[Picture],
    concepts: Mapping[str, Concept],
    counts: Counts,
    seed: int,
    progress: Callable[[int], None],
) -> list[Variant]:
    """Writes the missing variants of all pictures, and `variants.jsonl`.

    Args:
        concepts: by name.
    """
    scenery = load_scenery(folder, pictures)
    for split, collection in {(picture.split, picture.collection) for picture in pictures}:
        (folder / "variants" / split / collection).mkdir(parents=True, exist_ok=True)
    made = []
    for picture in sorted(pictures, key=lambda picture: SPLITS.index(picture.split)):
        image: Image.Image | None = None
        for number in range(counts.of(picture, concepts[picture.concept])):
            file = f"variants/{picture.split}/{picture.id}.{number}.jpg"
            if not (folder / file).is_file():
                image = Image.open(folder / picture.file).convert("RGBA") if image is None else image
                if number == 0:
                    drawn = plain(image, picture.style)
                else:
                    mirrored = concepts[picture.concept].kind not in NOT_MIRRORED
                    drawn = vary(image, picture.style, mirrored, scenery, random_for(seed, picture.id, number))
                write_jpeg(folder / file, drawn)
            made.append(
                Variant(
                    file=file,
                    picture=picture.id,
                    variant=number,
                    concept=picture.concept,
                    collection=picture.collection,
                    artist=picture.artist,
                    style=picture.style,
                    split=picture.split,
                )
            )
        progress(1)
    write_text(folder / "variants.jsonl", "".join(json_line(asdict(variant)) for variant in made))
    return made


def load_variants(folder: Path) -> list[Variant]:
    """What `make_variants` wrote."""
    return [Variant(**row) for _, row in read_json_lines(folder / "variants.jsonl")]


def load_scenery(folder: Path, pictures: Sequence[Picture]) -> list[Image.Image]:
    """The photographs that are trained on, small: blurred, they are backgrounds."""
    scenery = []
    for picture in pictures:
        if picture.style == PHOTOGRAPH and picture.split == TRAIN:
            image = Image.open(folder / picture.file).convert("RGB")
            scenery.append(image.resize((image.width // 4, image.height // 4), Image.Resampling.BOX))
    return scenery


def plain(image: Image.Image, style: str) -> Image.Image:
    """The picture on white, in the middle; a photograph that fills its frame is cut to a square."""
    if fills_frame(image, style):
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        square = (left, top, left + side, top + side)
        return image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS, square)
    canvas = Image.new("RGB", (SIZE, SIZE), "white")
    thing = fitted(image, PLAIN * SIZE)
    canvas.paste(thing, ((SIZE - thing.width) // 2, (SIZE - thing.height) // 2), thing)
    return canvas


def vary(
    image: Image.Image, style: str, mirrored: bool, scenery: Sequence[Image.Image], rng: np.random.Generator
) -> Image.Image:
    """A variant of a picture (RGBA): SIZE × SIZE pixels, RGB."""
    if mirrored and rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if fills_frame(image, style):
        side = rng.uniform(0.75, 1.0) * min(image.size)
        left, top = rng.uniform(0, image.width - side), rng.uniform(0, image.height - side)
        crop = image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC, (left, top, left + side, top + side))
        return recoloured(crop, rng)
    canvas = background(scenery, rng)
    side = rng.uniform(0.55, 0.95) * SIZE
    thing = turned(image, side, rng.uniform(-15, 15)) if rng.random() < TURNED else fitted(image, side)
    left, top = (int(rng.integers(0, max(SIZE - side, 0) + 1)) for side in thing.size)
    canvas.paste(recoloured(thing.convert("RGB"), rng), (left, top), thing.getchannel("A"))
    return canvas


def fills_frame(image: Image.Image, style: str) -> bool:
    """Whether it is a photograph that is not cut out."""
    return style == PHOTOGRAPH and image.getchannel("A").getextrema()[0] == 255


def fitted(image: Image.Image, side: float) -> Image.Image:
    """Scaled so that the longer side has `side` pixels."""
    scale = side / max(image.size)
    size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
    return image.convert("RGBa").resize(size, Image.Resampling.BICUBIC).convert("RGBA")


def turned(image: Image.Image, side: float, degrees: float) -> Image.Image:
    """Turned counter-clockwise, and scaled so that its longer side has about `side` pixels."""
    cos, sin = abs(np.cos(np.radians(degrees))), abs(np.sin(np.radians(degrees)))
    width, height = image.size
    scale = side / max(width * cos + height * sin, width * sin + height * cos)
    small = fitted(image, scale * max(image.size))  # scaled first, so that fewer pixels are turned
    thing = small.convert("RGBa").rotate(degrees, Image.Resampling.BILINEAR, expand=True).convert("RGBA")
    return thing.crop(thing.getchannel("A").getbbox())


def recoloured(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Other brightness, contrast and saturation; hues stay, since a name may depend on them."""
    brightness, contrast, saturation = rng.uniform(0.75, 1.25, 3)
    grey = np.array([[0.299, 0.587, 0.114]] * 3)
    matrix = np.full((3, 4), 128 * (1 - contrast))
    matrix[:, :3] = contrast * brightness * (saturation * np.eye(3) + (1 - saturation) * grey)
    return image.convert("RGB", tuple(map(float, matrix.ravel())))


# ---- backgrounds ----------------------------------------------------------------------------------------------------


def background(scenery: Sequence[Image.Image], rng: np.random.Generator, size: int = SIZE) -> Image.Image:
    """A plain colour, a gradient, a texture made from noise, or a blurred photograph."""
    names, shares = zip(*BACKGROUNDS, strict=True)
    name = names[int(rng.choice(len(names), p=shares))]
    if name == "photograph" and scenery:
        image = scenery[int(rng.integers(len(scenery)))]
        side = min(image.size) * rng.uniform(0.5, 1.0)
        left, top = rng.uniform(0, image.width - side), rng.uniform(0, image.height - side)
        blurred = int(rng.integers(12, 33))  # pixels that are left of the photograph
        image = image.resize((blurred, blurred), Image.Resampling.BILINEAR, (left, top, left + side, top + side))
        return image.resize((size, size), Image.Resampling.BICUBIC)
    if name == "plain":
        return Image.new("RGB", (size, size), tuple(_colour(rng)))
    first, second = _colour(rng), _colour(rng)
    if name == "gradient":
        angle = rng.uniform(0, 2 * np.pi)
        ramp = np.linspace(-1, 1, COARSE, dtype=np.float32)
        mixed = 0.5 + 0.35 * (np.cos(angle) * ramp[:, None] + np.sin(angle) * ramp[None, :])
    else:
        mixed = _noise(rng)
    pixels = first + (second - first) * np.clip(mixed, 0, 1)[..., None]
    return Image.fromarray(pixels.round().astype(np.uint8)).resize((size, size), Image.Resampling.BICUBIC)


def _colour(rng: np.random.Generator) -> np.ndarray:
    """RGB. Two of three are light, as paper is."""
    low = 150 if rng.random() < 2 / 3 else 0
    return rng.integers(low, 256, 3)


def _noise(rng: np.random.Generator) -> np.ndarray:
    """Smooth noise of several scales, (COARSE, COARSE), about 0 to 1."""
    total, weight = np.zeros((COARSE, COARSE), np.float32), 0.0
    for cells in (2, 4, 8, 16, COARSE - 1)[: int(rng.integers(2, 6))]:
        share = float(rng.uniform(0.3, 1.0))
        grid = Image.fromarray(rng.random((cells + 1, cells + 1), np.float32))
        total += share * np.asarray(grid.resize((COARSE, COARSE), Image.Resampling.BILINEAR))
        weight += share
    return 0.5 + 1.5 * (total / weight - 0.5)


# ---- files ----------------------------------------------------------------------------------------------------------


def jpeg(image: Image.Image) -> bytes:
    """A JPEG file; the same bytes for the same pixels."""
    file = io.BytesIO()
    image.save(file, format="JPEG", quality=QUALITY)
    return file.getvalue()


def write_jpeg(path: Path, image: Image.Image) -> None:
    """Writes an image whole or not at all."""
    with replacing(path) as part:
        Path(part).write_bytes(jpeg(image))
