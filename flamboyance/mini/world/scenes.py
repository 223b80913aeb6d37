"""The mini world: pictures with one to three things in three columns, and pictures of handwritten digits.

A `Scene` has everything that its picture shows, noise included, so the same scene always renders to the same pixels.
Digits are scikit-learn's 1,797 scans with a fixed split, 1,437 to train and 360 to test.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image

from flamboyance.mini.world.words import COLORS, COLUMNS, DIGITS, SHAPES, SIZES, Split

SIDE = 64  # pixels
RADIUS = {"small": (5.8, 6.6), "large": (9.4, 10.4)}  # pixels
RGB = {
    "red": (225, 35, 35),
    "green": (30, 170, 50),
    "blue": (45, 70, 235),
    "yellow": (240, 215, 30),
    "purple": (170, 50, 200),
    "cyan": (50, 215, 225),
    "white": (245, 245, 245),
}
_CENTERS = (SIDE / 6, SIDE / 2, 5 * SIDE / 6)
_TRAINING_DIGITS = 1437


@dataclass(frozen=True)
class Thing:
    """One object: its attributes, and its exact place and radius in pixels."""

    shape: str
    color: str
    size: str
    column: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Digit:
    """One handwritten digit: the scan's index, its value, and how it is drawn (side in pixels, angle in radians)."""

    index: int
    value: str
    color: str
    x: float
    y: float
    side: float
    angle: float
    dark_on_light: bool


@dataclass(frozen=True)
class Scene:
    """What a picture shows: things from left to right, or one digit, or nothing; `ground` is its grey level."""

    things: tuple[Thing, ...] = ()
    digit: Digit | None = None
    ground: float = 40.0
    noise: int = 0


def scene(rng: np.random.Generator, count: int | None = None, **fixed: str) -> Scene:
    """A random scene of `count` things (1 to 3 when None) in different columns.

    `fixed` sets attributes of every thing: `scene(rng, 1, color="red")`.
    """
    count = int(rng.integers(1, 4)) if count is None else count
    if not 0 <= count <= 3:
        raise ValueError(f"count={count}: expected 0 to 3 things, one per column")
    places = sorted(rng.permutation(3)[:count])
    return Scene(tuple(_thing(rng, int(place), fixed) for place in places), None, *_ground(rng))


def digit_scene(rng: np.random.Generator, split: Split, value: str | None = None) -> Scene:
    """A picture of a random scan of the split, of a given digit when `value` is set."""
    rows = _rows_of(split, value)
    return digit_picture(int(rows[rng.integers(len(rows))]), split, rng)


def digit_picture(index: int, split: Split, rng: np.random.Generator) -> Scene:
    """A picture of the split's scan number `index` (0 to 1436 in training, 0 to 359 in test)."""
    _, targets = digits(split)
    middle, slack = SIDE / 2, 5.0
    digit = Digit(
        index=index if split == "train" else index + _TRAINING_DIGITS,
        value=DIGITS[targets[index]],
        color=COLORS[rng.integers(len(COLORS))],
        x=middle + rng.uniform(-slack, slack),
        y=middle + rng.uniform(-slack, slack),
        side=rng.uniform(42, 56),
        angle=rng.uniform(-0.15, 0.15),
        dark_on_light=bool(rng.random() < 0.3),
    )
    return Scene((), digit, *_ground(rng))


@cache
def _all_digits() -> tuple[np.ndarray, np.ndarray]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("the handwritten digits come from scikit-learn: pip install scikit-learn") from error

    bunch = load_digits()
    order = np.random.default_rng(1437).permutation(len(bunch.target))
    return (bunch.images[order] / 16.0).astype(np.float32), bunch.target[order]


def digits(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """The scans (n, 8, 8) in 0..1 and their values (n,) of a split."""
    images, targets = _all_digits()
    part = slice(0, _TRAINING_DIGITS) if split == "train" else slice(_TRAINING_DIGITS, None)
    return images[part], targets[part]


@cache
def _rows_of(split: Split, value: str | None) -> np.ndarray:
    targets = digits(split)[1]
    return np.arange(len(targets)) if value is None else np.flatnonzero(targets == int(value))


def _ground(rng: np.random.Generator) -> tuple[float, int]:
    return float(rng.uniform(25, 60)), int(rng.integers(2**31))


def _thing(rng: np.random.Generator, place: int, fixed: dict[str, str]) -> Thing:
    size = fixed.get("size") or SIZES[rng.integers(2)]
    return Thing(
        shape=fixed.get("shape") or SHAPES[rng.integers(len(SHAPES))],
        color=fixed.get("color") or COLORS[rng.integers(len(COLORS))],
        size=size,
        column=COLUMNS[place],
        x=_CENTERS[place] + rng.uniform(-1.0, 1.0),
        y=rng.uniform(12, SIDE - 12),
        radius=rng.uniform(*RADIUS[size]),
    )


# ---- pixels ---------------------------------------------------------------------------------------------------------


def render(scenes: list[Scene]) -> np.ndarray:
    """Scenes as pixels, uint8 (n, 64, 64, 3), edges antialiased."""
    canvas = np.empty((len(scenes), SIDE, SIDE, 3), np.float32)
    for row, item in enumerate(scenes):
        noise = np.random.default_rng(item.noise).integers(-9, 10, (SIDE, SIDE, 1), np.int8)
        canvas[row] = item.ground + noise
    for place in range(3):
        _paint_things(canvas, [(row, s.things[place]) for row, s in enumerate(scenes) if len(s.things) > place])
    _paint_digits(canvas, [(row, s.digit) for row, s in enumerate(scenes) if s.digit is not None])
    return canvas.clip(0, 255).astype(np.uint8)


def picture(item: Scene) -> Image.Image:
    """One scene as an RGB image of 64 x 64 pixels."""
    return Image.fromarray(render([item])[0])


def _paint_things(canvas: np.ndarray, things: list[tuple[int, Thing]]) -> None:
    for shape in SHAPES:
        chosen = [(row, thing) for row, thing in things if thing.shape == shape]
        if chosen:
            rows = np.array([row for row, _ in chosen])
            place = np.array([(thing.x, thing.y, thing.radius) for _, thing in chosen], np.float32)
            ink = np.array([RGB[thing.color] for _, thing in chosen], np.float32)[:, None, None]
            cover = (0.5 - _distance(shape, *_offsets(place), place[:, 2, None, None])).clip(0, 1)[..., None]
            canvas[rows] += cover * (ink - canvas[rows])


def _offsets(place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    axis = np.arange(SIDE, dtype=np.float32) + 0.5
    return axis[None, None, :] - place[:, 0, None, None], axis[None, :, None] - place[:, 1, None, None]


def _distance(shape: str, x: np.ndarray, y: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Signed distance to the shape's edge in pixels, negative inside; (n, 64, 64)."""
    if shape == "circle":
        return np.hypot(x, y) - radius
    if shape == "ring":
        return np.abs(np.hypot(x, y) - 0.78 * radius) - 0.22 * radius
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.88 * radius
    if shape == "cross":
        long, thin = 1.0 * radius, 0.3 * radius
        upright = np.maximum(np.abs(x) - thin, np.abs(y) - long)
        return np.minimum(upright, np.maximum(np.abs(x) - long, np.abs(y) - thin))
    return np.maximum(0.894 * np.abs(x) - 0.447 * (y + radius), y - 0.8 * radius)  # a triangle standing on its base


def _paint_digits(canvas: np.ndarray, drawn: list[tuple[int, Digit]]) -> None:
    if not drawn:
        return
    rows = np.array([row for row, _ in drawn])
    place = np.array([(d.x, d.y, d.side / 8, d.angle) for _, d in drawn], np.float32)
    x, y = _offsets(place)
    cell, angle = place[:, 2, None, None], place[:, 3, None, None]
    column = (np.cos(angle) * x + np.sin(angle) * y) / cell + 3.5
    line = (-np.sin(angle) * x + np.cos(angle) * y) / cell + 3.5
    scans = np.pad(_all_digits()[0][[d.index for _, d in drawn]], ((0, 0), (1, 1), (1, 1)))
    cover = _bilinear(scans, line + 1, column + 1)[..., None]
    ink = np.array([(20, 20, 20) if d.dark_on_light else RGB[d.color] for _, d in drawn], np.float32)
    light = np.array([d.dark_on_light for _, d in drawn])[:, None, None, None]
    paper = np.where(light, 0.65 * np.array([RGB[d.color] for _, d in drawn])[:, None, None] + 80, 0)
    paper = np.where(light, paper, canvas[rows])
    canvas[rows] = paper + cover * (ink[:, None, None] - paper)


def _bilinear(grid: np.ndarray, line: np.ndarray, column: np.ndarray) -> np.ndarray:
    last = grid.shape[1] - 1
    line, column = line.clip(0, last - 1e-3), column.clip(0, last - 1e-3)
    top, left = line.astype(int), column.astype(int)
    down, right = line - top, column - left
    n = np.arange(len(grid))[:, None, None]
    upper = grid[n, top, left] * (1 - right) + grid[n, top, left + 1] * right
    lower = grid[n, top + 1, left] * (1 - right) + grid[n, top + 1, left + 1] * right
    return upper * (1 - down) + lower * down
