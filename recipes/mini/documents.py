"""What is said about scenes: captions, questions, binding episodes, and documents as lists of entries.

An entry is a picture and what follows it. For the Flamingo it reads `<image>Output:a red ring<|endofchunk|>`; for the
language model, which sees text alone, words about the scene stand in for the picture: `large red ring left Output:a ...;`.
The strings after the picture are those of `flamboyance.templates`, so that the same prompts serve after training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from recipes.mini import world
from recipes.mini.words import COLORS, COUNTS, DIGITS, SHAPES, SIZES, Split, draw_words
from recipes.mini.world import Scene, Thing

Source = Any  # where scenes come from: the module `world`, or anything with its `scene` and `digit_scene`
BINDING_KINDS = ("color", "shape", "digit")


@dataclass(frozen=True)
class Question:
    kind: str
    text: str
    answer: str


@dataclass(frozen=True)
class Entry:
    """A picture, the prompt after it, and the answer; `hint` names the attribute that matters, for plain descriptions."""

    scene: Scene
    prompt: str
    answer: str
    hint: str | None = None


@dataclass(frozen=True)
class Episode:
    """Demonstrations (scene, made-up word), a query whose word is `answer`, one of the two `candidates`."""

    kind: str
    demonstrations: list[tuple[Scene, str]]
    query: Scene
    answer: str
    candidates: list[str]


# ---- captions and questions -----------------------------------------------------------------------------------------


def caption(scene: Scene) -> str:
    """`a large red circle, a small blue ring and a small red cross`, from left to right; `the digit 3`; `nothing`."""
    if scene.digit is not None:
        return f"the digit {scene.digit.value}"
    said = [f"a {thing.size} {thing.color} {thing.shape}" for thing in scene.things]
    return (", ".join(said[:-1]) + " and " if len(said) > 1 else "") + said[-1] if said else "nothing"


def questions(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """Every kind of question that has one clear answer here: color, shape, size, position, count, yes-no, digit."""
    if scene.digit is not None:
        return [Question("digit", "which digit is this?", scene.digit.value)]
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


# ---- binding --------------------------------------------------------------------------------------------------------


def binding_episode(
    rng: np.random.Generator, shots: int, kind: str, split: Split, classes: int = 2, plain: float = 0.0,
    source: Source = world,
) -> Episode:  # fmt: skip
    """Binds each of `classes` made-up words to a value of `kind` ("color", "shape", "digit").

    The `shots` demonstrations are shared out evenly over the words in random order; attributes that do not matter vary,
    except, with probability `plain`, when the whole episode holds them still.
    """
    values = {"color": COLORS, "shape": SHAPES, "digit": DIGITS}.get(kind)
    if values is None:
        raise ValueError(f"kind={kind!r} is not one of {BINDING_KINDS}")
    chosen = [values[i] for i in rng.permutation(len(values))[:classes]]
    words = draw_words(rng, classes, split)
    still: dict[str, str] = {}
    if rng.random() < plain:
        still = {"shape": SHAPES[rng.integers(len(SHAPES))], "color": COLORS[rng.integers(len(COLORS))]}
        still |= {"size": SIZES[rng.integers(2)]}

    def draw(which: int) -> Scene:
        if kind == "digit":
            return source.digit_scene(rng, split, chosen[which])
        return source.scene(rng, 1, **{**still, kind: chosen[which]})

    start = int(rng.integers(classes))
    order = rng.permutation([(start + turn) % classes for turn in range(shots)]) if shots else []
    demonstrations = [(draw(int(which)), words[int(which)]) for which in order]
    asked = int(rng.integers(classes))
    return Episode(kind, demonstrations, draw(asked), words[asked], words)


# ---- documents ------------------------------------------------------------------------------------------------------


def binding_document(rng: np.random.Generator, split: Split, least: int, most: int, **episode: Any) -> list[Entry]:
    """An episode as entries; the kinds differ only in the attribute that matters."""
    kind = BINDING_KINDS[rng.integers(3)]
    one = binding_episode(rng, int(rng.integers(least, most + 1)), kind, split, **episode)
    pairs = [*one.demonstrations, (one.query, one.answer)]
    return [Entry(scene, "Output:", word, kind) for scene, word in pairs]


def caption_document(
    rng: np.random.Generator, split: Split, entries: int, count: int | None = None, source: Source = world
) -> list[Entry]:
    """Captioned scenes, and digits one in four."""
    found = []
    for _ in range(entries):
        one = source.digit_scene(rng, split) if rng.random() < 0.25 else source.scene(rng, count)
        found.append(Entry(one, "Output:", caption(one)))
    return found


def question_document(
    rng: np.random.Generator, split: Split, entries: int, count: int | None = None, source: Source = world
) -> list[Entry]:
    """Scenes with a question each, all kinds equally likely; digits one in eight."""
    found = []
    for _ in range(entries):
        one = source.digit_scene(rng, split) if rng.random() < 0.125 else source.scene(rng, count)
        asked = questions(one, rng)
        kinds = sorted({question.kind for question in asked})
        kind = kinds[rng.integers(len(kinds))]
        asked = [question for question in asked if question.kind == kind]
        question = asked[rng.integers(len(asked))]
        found.append(Entry(one, f"Question:{question.text} Short answer:", question.answer))
    return found


def describe(entry: Entry, rng: np.random.Generator, bare: float, clutter: float = 0.3) -> str:
    """Words that stand in for the picture.

    In binding documents, with probability `bare`, only the attribute that matters; else others in any order beside it:
    color and shape four times in five, size and column with probability `clutter`.
    """
    if entry.scene.digit is not None:
        return f"digit {entry.scene.digit.value}" if rng.random() < 0.5 else entry.scene.digit.value
    if entry.hint is not None and rng.random() < bare:
        return getattr(entry.scene.things[0], entry.hint)
    kept = {"size": clutter, "color": 0.8, "shape": 0.8, "column": clutter}
    facts = [fact for fact, chance in kept.items() if entry.hint in (None, fact) or rng.random() < chance]
    form = rng.permutation(len(facts))
    return ", ".join(" ".join(getattr(thing, facts[i]) for i in form) for thing in entry.scene.things)
