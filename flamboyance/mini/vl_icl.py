"""VL-ICL Bench's six image-to-text tasks in small: its files' layout, with pictures of the mini world.

    python -m flamboyance.mini.vl_icl DIR
    flamboyance evaluate vl_icl --data DIR --shots 0,1,2,4

Classes are colored shapes, digits are scans of handwriting.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from flamboyance.files import naming, write_json
from flamboyance.mini import world
from flamboyance.mini.world.words import COLORS, DIGITS, SHAPES, draw_words

SEED = 60_000_000  # of pictures that nothing was trained on
WAYS, IMAGES = 5, 5  # the classes of an open-ended query, and the images of each
OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "x": lambda a, b: a * b,
}
SIDE = 64
Rows = list[dict[str, Any]]


def write(folder: Path | str, support: int = 24, queries: int = 12, seed: int = 0) -> Path:
    """Writes `folder/open_mi` and so on; the same files for the same numbers. Returns the folder.

    Args:
        support: support examples of each task; open-ended queries have their own.
        queries: of each task.
    """
    folder = Path(folder)
    for number, (name, make) in enumerate(TASKS.items()):
        writer = _Writer(folder, name, np.random.default_rng((SEED + seed, number)))
        make(writer, support, queries)
    return folder


class _Writer:
    """Draws the pictures of one task and writes its files."""

    def __init__(self, folder: Path, task: str, rng: np.random.Generator) -> None:
        self.folder, self.task, self.rng = folder, task, rng
        self.written: Counter[str] = Counter()  # pictures, by split

    def picture(self, split: str, image: Image.Image) -> str:
        """Writes a picture; its path from the benchmark's folder."""
        home = self.folder / self.task / split
        home.mkdir(parents=True, exist_ok=True)
        path = f"{self.task}/{split}/{self.written[split]:05d}.png"
        self.written[split] += 1
        with naming(self.folder / path):
            image.save(self.folder / path)
        return path

    def lists(self, support: Rows, queries: Rows) -> None:
        for name, rows in (("support", support), ("query", queries)):
            write_json(self.folder / self.task / f"{name}.json", rows, None)

    def kind(self) -> tuple[str, str]:
        """A color and a shape."""
        return self.one(COLORS), self.one(SHAPES)

    def one(self, among: Any) -> Any:
        return among[int(self.rng.integers(len(among)))]

    def thing(self, color: str, shape: str) -> Image.Image:
        return world.picture(world.scene(self.rng, 1, color=color, shape=shape))

    def digit(self, split: str, value: int) -> Image.Image:
        scans = "train" if split == "support" else "test"
        return world.picture(world.digit_scene(self.rng, scans, DIGITS[value]))


def _open_mi(writer: _Writer, support: int, queries: int) -> None:
    asked = []
    kinds = [(color, shape) for color in COLORS for shape in SHAPES]
    for number in range(queries):
        names = draw_words(writer.rng, WAYS, "test")
        chosen = [kinds[i] for i in writer.rng.permutation(len(kinds))[:WAYS]]
        shown = {
            name: {"images": [writer.picture("support", writer.thing(*kind)) for _ in range(IMAGES)], "caption": name}
            for name, kind in zip(names, chosen, strict=True)
        }
        right = int(writer.rng.integers(WAYS))
        asked.append({
            "id": number, "image": [writer.picture("query", writer.thing(*chosen[right]))],
            "question": "This is a", "answer": names[right], "classes": names, "support": shown,
        })  # fmt: skip
    writer.lists([], asked)


def _clevr(writer: _Writer, support: int, queries: int) -> None:
    def rows(split: str, count: int) -> Rows:
        found = []
        for _ in range(count):
            scene = world.scene(writer.rng, int(writer.rng.integers(1, 4)))
            attribute = writer.one(("color", "shape"))
            wanted = getattr(writer.one(scene.things), attribute)
            number = sum(getattr(thing, attribute) == wanted for thing in scene.things)
            image = writer.picture(split, world.picture(scene))
            found.append({"image": [image], "question": f"{attribute}: {wanted}", "answer": number})
        return found

    writer.lists(rows("support", support), rows("query", queries))


def _operators(writer: _Writer, support: int, queries: int, together: bool) -> None:
    """Two digits, in one picture or in two."""

    def rows(split: str, count: int) -> Rows:
        found: Rows = []
        for _ in range(count):
            a, b = sorted((int(n) for n in writer.rng.integers(0, 10, 2)), reverse=True)
            pictures = [writer.digit(split, one) for one in (a, b)]
            images = [_beside(*pictures)] if together else pictures
            one = {"image": [writer.picture(split, image) for image in images], "question": "What is the result?"}
            results = [operation(a, b) for operation in OPERATIONS.values()]
            operator = writer.one(tuple(OPERATIONS))
            found.append(
                one | {"answer": results}
                if split == "support"
                else one | {"answer": OPERATIONS[operator](a, b), "operator": operator}
            )
        return found

    writer.lists(rows("support", support), rows("query", queries))


def _beside(left: Image.Image, right: Image.Image) -> Image.Image:
    whole = Image.new("RGB", (3 * SIDE, SIDE), (40, 40, 40))
    whole.paste(left, (0, 0))
    whole.paste(right, (2 * SIDE, 0))
    ImageDraw.Draw(whole).text((SIDE + 28, SIDE // 2 - 6), "?", fill="white")
    return whole


def _textocr(writer: _Writer, support: int, queries: int) -> None:
    def rows(split: str, count: int) -> Rows:
        found = []
        for _ in range(count):
            first, word = draw_words(writer.rng, 2, "test")
            image = Image.new("RGB", (2 * SIDE, SIDE), (230, 230, 220))
            draw = ImageDraw.Draw(image)
            draw.text((10, 10), first, fill="black")
            draw.text((10, 38), word, fill="black")
            draw.rectangle((6, 34, 12 + draw.textlength(word), 54), outline="red", width=2)
            question = "What is in the red box?"
            found.append({"image": [writer.picture(split, image)], "question": question, "answer": word})
        return found

    writer.lists(rows("support", support), rows("query", queries))


def _matching_mi(writer: _Writer, support: int, queries: int) -> None:
    def pair(split: str, same: bool) -> dict[str, Any]:
        first, second = writer.kind(), writer.kind()
        while second == first:
            second = writer.kind()
        images = [writer.picture(split, writer.thing(*kind)) for kind in (first, first if same else second)]
        return {"image": images, "question": "Do the two images fit?", "answer": "yes" if same else "no"}

    shown = [{"same": pair("support", True), "diff": pair("support", False)} for _ in range(support)]
    writer.lists(shown, [pair("query", number % 2 == 0) for number in range(queries)])


TASKS: dict[str, Callable[[_Writer, int, int], None]] = {
    "open_mi": _open_mi,
    "clevr": _clevr,
    "operator_induction": lambda writer, support, queries: _operators(writer, support, queries, True),
    "operator_induction_interleaved": lambda writer, support, queries: _operators(writer, support, queries, False),
    "textocr": _textocr,
    "matching_mi": _matching_mi,
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Write VL-ICL Bench's image-to-text tasks in small.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--support", type=int, default=24, metavar="N", help="default: %(default)s")
    parser.add_argument("--queries", type=int, default=12, metavar="N", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    write(given.folder, given.support, given.queries, given.seed)
    print(f"{', '.join(TASKS)}: {given.support} support examples and {given.queries} queries each, in {given.folder}")


if __name__ == "__main__":
    main()
