"""What is said about scenes: captions, questions, binding episodes, and documents as lists of entries.

An entry is a picture and what follows it. For the Flamingo it reads `<image>Output:a red ring<|endofchunk|>`; for the
language model, which sees text alone, words about the scene stand in for the picture: `large red ring left Output:a
...;`. The strings after the picture are those of `flamboyance.templates`, so that the same prompts serve after
training.
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
    """A picture, the prompt after it, and the answer; `hint` names what matters about it, for plain descriptions."""

    scene: Scene
    prompt: str
    answer: str
    hint: str | None = None


# ---- documents ------------------------------------------------------------------------------------------------------


SIMPLE = ("color", "shape", "digit")  # one word says what matters


def binding_document(
    rng: np.random.Generator, split: Split, least: int, most: int, kinds: tuple[str, ...] = SIMPLE, **episode: Any
) -> list[Entry]:
    """An episode as entries; the kinds differ only in what matters about a picture."""
    kind = kinds[rng.integers(len(kinds))]
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
        one, question = draw_question(rng, count=count, digits=0.125, split=split, source=source)
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
