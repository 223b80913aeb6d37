"""Training documents: lists of entries with captions, questions or binding episodes.

An entry is an image and the text after it. The Flamingo reads `<image>Output:a red ring<|endofchunk|>`; the language
model, which sees text alone, reads a description in place of the image: `large red ring left Output:a ...;`. The text
after the image is that of `flamboyance.templates`, so that the same prompts work after training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from flamboyance.mini.world import scenes as world
from flamboyance.mini.world.sayings import binding_episode, caption, draw_question
from flamboyance.mini.world.scenes import Scene
from flamboyance.mini.world.words import Split

Source = Any  # where scenes come from: the module `scenes`, or anything with its `scene` and `digit_scene`


@dataclass(frozen=True)
class Entry:
    """An image, the prompt after it, and the answer; `hint` names the attribute that decides the answer."""

    scene: Scene
    prompt: str
    answer: str
    hint: str | None = None


# ---- documents ------------------------------------------------------------------------------------------------------


SIMPLE = ("color", "shape", "digit")  # concepts of one word


def binding_document(
    rng: np.random.Generator, split: Split, least: int, most: int, kinds: tuple[str, ...] = SIMPLE, **episode: Any
) -> list[Entry]:
    """A binding episode as entries, of one of the kinds."""
    kind = kinds[rng.integers(len(kinds))]
    one = binding_episode(rng, int(rng.integers(least, most + 1)), kind, split, **episode)
    pairs = [*one.demonstrations, (one.query, one.answer)]
    return [Entry(scene, "Output:", word, kind) for scene, word in pairs]


def caption_document(
    rng: np.random.Generator, split: Split, entries: int, count: int | None = None, source: Source = world
) -> list[Entry]:
    """Captioned scenes; with probability 1/4 an entry is a digit."""
    found = []
    for _ in range(entries):
        one = source.digit_scene(rng, split) if rng.random() < 0.25 else source.scene(rng, count)
        found.append(Entry(one, "Output:", caption(one)))
    return found


def question_document(
    rng: np.random.Generator, split: Split, entries: int, count: int | None = None, source: Source = world
) -> list[Entry]:
    """Scenes with a question each, all kinds equally likely; with probability 1/8 an entry is a digit."""
    found = []
    for _ in range(entries):
        one, question = draw_question(rng, count=count, digits=0.125, split=split, source=source)
        found.append(Entry(one, f"Question:{question.text} Short answer:", question.answer))
    return found


def describe(entry: Entry, rng: np.random.Generator, bare: float, clutter: float = 0.3) -> str:
    """A description in place of the image.

    In binding documents it is, with probability `bare`, the deciding attribute alone. Otherwise it has others too, in
    any order: color and shape with probability 0.8, size and column with probability `clutter`.
    """
    if entry.scene.digit is not None:
        return f"digit {entry.scene.digit.value}" if rng.random() < 0.5 else entry.scene.digit.value
    if entry.hint is not None and rng.random() < bare:
        return getattr(entry.scene.things[0], entry.hint)
    kept = {"size": clutter, "color": 0.8, "shape": 0.8, "column": clutter}
    facts = [fact for fact, chance in kept.items() if entry.hint in (None, fact) or rng.random() < chance]
    form = rng.permutation(len(facts))
    return ", ".join(" ".join(getattr(thing, facts[i]) for i in form) for thing in entry.scene.things)
