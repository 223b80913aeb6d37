"""Texts about scenes: captions, questions with their answers, and episodes that bind made-up words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from flamboyance.mini.world import scenes
from flamboyance.mini.world.scenes import Scene, Thing
from flamboyance.mini.world.words import COLORS, COUNTS, DIGITS, SHAPES, SIZES, Split, draw_words

BINDING_KINDS = ("thing", "digit", "color", "shape")
DIGIT_QUESTION = "which digit is this?"


@dataclass(frozen=True)
class Question:
    kind: str
    text: str
    answer: str


@dataclass(frozen=True)
class Episode:
    """Demonstrations (scene, made-up word), a query whose word is `answer`, one of the two `candidates`."""

    kind: str
    demonstrations: list[tuple[Scene, str]]
    query: Scene
    answer: str
    candidates: list[str]


def caption(scene: Scene) -> str:
    """`a large red circle, a small blue ring and a small red cross`, from left to right; `the digit 3`; `nothing`."""
    if scene.digit is not None:
        return f"the digit {scene.digit.value}"
    said = [f"a {thing.size} {thing.color} {thing.shape}" for thing in scene.things]
    return (", ".join(said[:-1]) + " and " if len(said) > 1 else "") + said[-1] if said else "nothing"


def questions(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """Every question with exactly one answer here; kinds: color, shape, size, position, count, yes-no, digit."""
    if scene.digit is not None:
        return [Question("digit", DIGIT_QUESTION, scene.digit.value)]
    asked = [Question("count", "how many objects are there?", COUNTS[len(scene.things)])]
    asked.append(_yes_or_no(scene, rng))
    for thing in scene.things:
        asked += _about(thing, scene)
    return asked


def _about(thing: Thing, scene: Scene) -> list[Question]:
    def alone(**same: str) -> bool:
        return sum(all(getattr(t, key) == value for key, value in same.items()) for t in scene.things) == 1

    asked = [
        Question("color", f"what color is the object on the {thing.column}?", thing.color),
        Question("shape", f"what shape is the object on the {thing.column}?", thing.shape),
    ]
    if alone(shape=thing.shape):
        asked.append(Question("color", f"what color is the {thing.shape}?", thing.color))
        asked.append(Question("size", f"what size is the {thing.shape}?", thing.size))
        asked.append(Question("position", f"where is the {thing.shape}?", thing.column))
    if alone(color=thing.color):
        asked.append(Question("shape", f"what shape is the {thing.color} object?", thing.shape))
        asked.append(Question("size", f"what size is the {thing.color} object?", thing.size))
        asked.append(Question("position", f"where is the {thing.color} object?", thing.column))
    return asked


def _yes_or_no(scene: Scene, rng: np.random.Generator) -> Question:
    thing = scene.things[rng.integers(len(scene.things))]
    color, shape = thing.color, thing.shape
    present = {(t.color, t.shape) for t in scene.things}
    truth = bool(rng.random() < 0.5)
    while not truth and (color, shape) in present:  # change one attribute, or both
        turn = rng.integers(3)
        color = COLORS[rng.integers(len(COLORS))] if turn != 1 else color
        shape = SHAPES[rng.integers(len(SHAPES))] if turn != 0 else shape
    return Question("yes-no", f"is there a {color} {shape}?", "yes" if truth else "no")


def draw_question(
    rng: np.random.Generator, kind: str | None = None, *, count: int | None = None, digits: float = 0.0,
    split: Split = "train", source: Any = scenes,
) -> tuple[Scene, Question]:  # fmt: skip
    """A random scene and a question about it.

    Args:
        kind: of the question; scenes are drawn until one allows it. None: every kind that the scene allows is equally
            likely.
        count: number of things in the scene; None: 1 to 3.
        digits: probability that the scene is a digit instead, of this `split`.
        source: the module `scenes`, or anything with its `scene` and `digit_scene`.
    """
    while True:
        scene = source.digit_scene(rng, split) if digits and rng.random() < digits else source.scene(rng, count)
        possible = questions(scene, rng)
        kinds = sorted({question.kind for question in possible})
        chosen = kind or kinds[rng.integers(len(kinds))]
        if chosen in kinds:
            possible = [question for question in possible if question.kind == chosen]
            return scene, possible[rng.integers(len(possible))]


def binding_episode(
    rng: np.random.Generator, shots: int, kind: str, split: Split, classes: int = 2, plain: float = 0.0,
    source: Any = scenes,
) -> Episode:  # fmt: skip
    """Binds each of `classes` made-up words to a thing (a color and shape), a digit, a color, or a shape.

    Each word gets the same number of the `shots` demonstrations, or one more, in random order. Irrelevant attributes
    vary from image to image or, with probability `plain`, are the same in the whole episode.

    Args:
        kind: one of `BINDING_KINDS`.
        source: the module `scenes`, or anything with its `scene` and `digit_scene`.
    """
    values = {"color": COLORS, "shape": SHAPES, "digit": DIGITS, "thing": SHAPES}.get(kind)
    if values is None:
        raise ValueError(f"kind={kind!r} is not one of {BINDING_KINDS}")
    chosen = [values[i] for i in rng.permutation(len(values))[:classes]]
    colors = [COLORS[i] for i in rng.permutation(len(COLORS))[:classes]] if kind == "thing" else []
    words = draw_words(rng, classes, split)
    still: dict[str, str] = {}
    if rng.random() < plain:
        still = {"shape": SHAPES[rng.integers(len(SHAPES))], "color": COLORS[rng.integers(len(COLORS))]}
        still |= {"size": SIZES[rng.integers(2)]}

    def draw(which: int) -> Scene:
        if kind == "digit":
            return source.digit_scene(rng, split, chosen[which])
        if kind == "thing":
            return source.scene(rng, 1, shape=chosen[which], color=colors[which])
        return source.scene(rng, 1, **{**still, kind: chosen[which]})

    start = int(rng.integers(classes))
    order = rng.permutation([(start + turn) % classes for turn in range(shots)]) if shots else []
    demonstrations = [(draw(int(which)), words[int(which)]) for which in order]
    asked = int(rng.integers(classes))
    return Episode(kind, demonstrations, draw(asked), words[asked], words)
