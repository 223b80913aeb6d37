"""Pictures of one to three things, with the place of each: for counts ("three dogs") and positions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from flamboyance.files import json_line, read_json_lines, write_text
from scripts.small_world.artists import DRAWING
from scripts.small_world.concepts import Concept
from scripts.small_world.pictures import TRAIN, Picture
from scripts.small_world.variants import SIZE, background, load_scenery, random_for, recoloured, turned, write_jpeg

MOST = 3  # things
SAME = 0.5  # share of the scenes whose things are one concept: they are counted
SIDES = {1: (60, 90), 2: (44, 60), 3: (36, 50)}  # pixels of a thing's longer side, by the number of things

Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels


@dataclass(frozen=True)
class Scene:
    """A line of `scenes.jsonl`.

    Attributes:
        file: relative to the world's folder.
        things: (concept, id of its picture, box) of each; boxes do not overlap.
    """

    file: str
    things: tuple[tuple[str, str, Box], ...]


def make_scenes(
    folder: Path,
    pictures: Sequence[Picture],
    concepts: Mapping[str, Concept],
    count: int,
    seed: int,
    progress: Callable[[int], None],
) -> list[Scene]:
    """Draws `count` scenes of drawings that are trained on, and writes `scenes.jsonl`. Files that exist are kept."""
    scenery = load_scenery(folder, pictures)
    drawings = defaultdict(list)
    for picture in pictures:
        if picture.split == TRAIN and picture.style == DRAWING:
            drawings[picture.concept].append(picture)
    countable = sorted(name for name in drawings if concepts[name].plural)
    scenes = []
    (folder / "scenes").mkdir(exist_ok=True)
    for number in range(count if countable else 0):
        rng = random_for(seed, "scene", number)
        scene = _plan(f"scenes/{number:06d}.jpg", drawings, sorted(drawings), countable, rng)
        if not (folder / scene.file).is_file():
            by_id = {p.id: p for of in (drawings[name] for name, _, _ in scene.things) for p in of}
            images = [Image.open(folder / by_id[id].file).convert("RGBA") for _, id, _ in scene.things]
            write_jpeg(folder / scene.file, _drawn(scene, images, scenery, random_for(seed, "scene's look", number)))
        scenes.append(scene)
        progress(1)
    write_text(folder / "scenes.jsonl", "".join(json_line(asdict(scene)) for scene in scenes))
    return scenes


def load_scenes(folder: Path) -> list[Scene]:
    """What `make_scenes` wrote."""
    return [
        Scene(row["file"], tuple((name, id, tuple(box)) for name, id, box in row["things"]))
        for _, row in read_json_lines(folder / "scenes.jsonl")
    ]


def _plan(
    file: str,
    drawings: Mapping[str, Sequence[Picture]],
    names: Sequence[str],
    countable: Sequence[str],
    rng: np.random.Generator,
) -> Scene:
    """Concepts, pictures and boxes. Things of one concept are one picture: "three dogs" look alike."""
    things = int(rng.integers(1, MOST + 1))
    if rng.random() < SAME or things == 1:
        name = countable[int(rng.integers(len(countable)))]
        picture = drawings[name][int(rng.integers(len(drawings[name])))]
        chosen = [picture] * things
    else:
        several = rng.choice(len(names), size=min(things, len(names)), replace=False)
        chosen = [drawings[names[i]][int(rng.integers(len(drawings[names[i]])))] for i in several]
    boxes = _boxes(len(chosen), rng)
    return Scene(file, tuple((p.concept, p.id, box) for p, box in zip(chosen, boxes, strict=True)))


def _boxes(count: int, rng: np.random.Generator) -> list[Box]:
    """Square boxes that do not overlap: drawn anew until they fit."""
    while True:
        boxes: list[Box] = []
        for _ in range(count):
            side = int(rng.integers(SIDES[count][0], SIDES[count][1] + 1))
            left, top = (int(rng.integers(0, SIZE - side + 1)) for _ in range(2))
            boxes.append((left, top, left + side, top + side))
        if not any(overlap(a, b) for i, a in enumerate(boxes) for b in boxes[:i]):
            return boxes


def overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _drawn(
    scene: Scene, images: Sequence[Image.Image], scenery: Sequence[Image.Image], rng: np.random.Generator
) -> Image.Image:
    canvas = background(scenery, rng)
    for (_, _, (left, top, right, bottom)), image in zip(scene.things, images, strict=True):
        thing = turned(image, right - left, rng.uniform(-10, 10))
        at = ((left + right - thing.width) // 2, (top + bottom - thing.height) // 2)
        canvas.paste(recoloured(thing.convert("RGB"), rng), at, thing.getchannel("A"))
    return canvas


def position(a: Box, b: Box) -> str:
    """Where `a` is, seen from `b`, along the longer distance: "left of", "right of", "above" or "below"."""
    across, down = (a[0] + a[2]) - (b[0] + b[2]), (a[1] + a[3]) - (b[1] + b[3])
    if abs(across) >= abs(down):
        return "left of" if across < 0 else "right of"
    return "above" if down < 0 else "below"
