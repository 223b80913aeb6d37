"""In-context episodes: pictures whose texts only the earlier pairs of the same document define.

Either each class has a made-up word, or all texts follow one task: the name, the kind, the name in another language, a
format such as "[dog]". Training documents and evaluation episodes are drawn by the same functions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from scripts.small_world.artists import DRAWING, PHOTOGRAPH
from scripts.small_world.concepts import Concept
from scripts.small_world.madeup import Words
from scripts.small_world.variants import Variant

SHORTEST, LONGEST = 4, 16  # pictures of a training document
FEWEST, MOST = 2, 5  # classes
MADE_UP = 0.4  # share of the training documents; the others follow a task
DIFFERENT = 0.85  # share of a task's documents in which no concept comes twice, so that no text can be copied
ONE_KIND = 0.4  # share of the documents whose classes are of one kind: they are harder to tell apart
SETTINGS = (("within", 0.4), ("across", 0.45), ("photographs", 0.15))  # which pictures, and how often

CONTENTS: Mapping[str, Callable[[Concept], str]] = {
    "name": lambda concept: concept.name,
    "kind": lambda concept: concept.kind,
    "de": lambda concept: concept.names["de"],
    "fr": lambda concept: concept.names["fr"],
    "es": lambda concept: concept.names["es"],
}
FORMATS: Mapping[str, Callable[[str], str]] = {
    "plain": lambda text: text,
    "brackets": lambda text: f"[{text}]",
    "shout": lambda text: f"{text.upper()}!",
    "quotes": lambda text: f'"{text}"',
    "hash": lambda text: f"#{text.replace(' ', '')}",
    "twice": lambda text: f"{text} {text}",
}
CONTENT_SHARES = {"name": 0.3, "kind": 0.19, "de": 0.17, "fr": 0.17, "es": 0.17}
EVEN_SHARES = dict.fromkeys(CONTENTS, 0.2)  # of documents that follow a task alone
PLAIN = 0.6  # share of the documents with a task that have no other format than the text itself


@dataclass(frozen=True)
class Entry:
    """A picture and its text."""

    variant: Variant
    text: str


class Shelf:
    """Variants by concept and artist, for drawing episodes."""

    def __init__(self, variants: Sequence[Variant], concepts: Sequence[Concept]):
        kept = {concept.name for concept in concepts}
        self.concepts = {concept.name: concept for concept in concepts}
        self._of: dict[str, list[Variant]] = {}
        for variant in variants:
            if variant.concept in kept:
                self._of.setdefault(variant.concept, []).append(variant)
        self.names = sorted(self._of)
        self.kinds: dict[str, list[str]] = {}
        for name in self.names:
            self.kinds.setdefault(self.concepts[name].kind, []).append(name)
        self.photographed = [name for name in self.names if self.of(name, PHOTOGRAPH) and self.of(name, DRAWING)]
        self.drawn_by: dict[str, list[str]] = {}
        for name in self.names:
            for artist in sorted({variant.artist for variant in self.of(name, DRAWING)}):
                self.drawn_by.setdefault(artist, []).append(name)

    def of(self, name: str, style: str | None = None, artist: str | None = None) -> list[Variant]:
        return [
            v for v in self._of[name] if (style is None or v.style == style) and (artist is None or v.artist == artist)
        ]

    def draw_classes(self, count: int, allowed: Sequence[str], rng: np.random.Generator) -> list[str]:
        """Different concepts of `allowed`: of one kind with probability `ONE_KIND`, if there are enough."""
        if rng.random() < ONE_KIND:
            inside = set(allowed)
            groups = [[n for n in names if n in inside] for _, names in sorted(self.kinds.items())]
            groups = [names for names in groups if len(names) >= count]
            if groups:
                sizes = np.array([len(names) for names in groups], float)
                allowed = groups[int(rng.choice(len(groups), p=sizes / sizes.sum()))]
        return [allowed[i] for i in rng.choice(len(allowed), size=min(count, len(allowed)), replace=False)]


def training_document(shelf: Shelf, words: Words, rng: np.random.Generator) -> list[Entry]:
    """A document of 4 to 16 pictures in random order: of 2 to 5 concepts, or of different ones that follow a task."""
    settings, shares = zip(*SETTINGS, strict=True)
    setting = str(rng.choice(settings, p=shares))
    length = int(rng.integers(SHORTEST, LONGEST + 1))
    made_up = rng.random() < MADE_UP
    classes = int(rng.integers(FEWEST, min(MOST, length // 2) + 1))
    allowed, pick = _setting(shelf, setting, rng)
    different = not made_up and rng.random() < DIFFERENT
    names = shelf.draw_classes(length if different else classes, allowed, rng)
    if made_up:
        texts = dict(zip(names, words.draw(len(names), "train", rng), strict=True))
    else:
        texts = _task_texts([shelf.concepts[name] for name in names], rng)
    more = rng.integers(0, len(names), max(length - 2 * len(names), 0))
    order = names if different else [*names, *names, *(names[i] for i in more)]
    order = [order[i] for i in rng.permutation(len(order))]
    pictures = pick(order)
    return [Entry(variant, texts[name]) for name, variant in zip(order, pictures, strict=True)]


def task_document(shelf: Shelf, rng: np.random.Generator) -> list[Entry]:
    """A document of 4 to 16 pictures of different concepts that follow a task: each as often as the others."""
    setting = str(rng.choice(("within", "across")))
    allowed, pick = _setting(shelf, setting, rng)
    names = shelf.draw_classes(int(rng.integers(SHORTEST, LONGEST + 1)), allowed, rng)
    texts = _task_texts([shelf.concepts[name] for name in names], rng, EVEN_SHARES)
    return [Entry(variant, texts[name]) for name, variant in zip(names, pick(names), strict=True)]


def _task_texts(
    concepts: Sequence[Concept], rng: np.random.Generator, shares: Mapping[str, float] = CONTENT_SHARES
) -> dict[str, str]:
    """What one task says of each concept."""
    content = CONTENTS[str(rng.choice(list(shares), p=list(shares.values())))]
    form = "plain" if rng.random() < PLAIN else str(rng.choice(list(FORMATS)))
    return {concept.name: FORMATS[form](content(concept)) for concept in concepts}


Pick = Callable[[Sequence[str]], list[Variant]]


def _setting(shelf: Shelf, setting: str, rng: np.random.Generator) -> tuple[list[str], Pick]:
    """The concepts that a setting allows, and how it chooses a picture for each place of a document."""
    if setting == "photographs" and len(shelf.photographed) >= MOST:
        return shelf.photographed, lambda order: draw_photographs_last(shelf, order, rng)
    drawn_by = sorted((artist, names) for artist, names in shelf.drawn_by.items() if len(names) >= MOST)
    if setting == "within" and drawn_by:
        artist, names = drawn_by[int(rng.integers(len(drawn_by)))]
        return names, lambda order: draw_pictures(shelf, order, rng, artist=artist)
    return shelf.names, lambda order: draw_pictures(shelf, order, rng)


def draw_pictures(
    shelf: Shelf, order: Sequence[str], rng: np.random.Generator, style: str | None = None, artist: str | None = None
) -> list[Variant]:
    """A variant for each place; none twice in a document, while there are others."""
    left: dict[str, list[Variant]] = {}
    drawn = []
    for name in order:
        if not left.get(name):
            found = shelf.of(name, style, artist)
            left[name] = [found[i] for i in rng.permutation(len(found))]
        drawn.append(left[name].pop())
    return drawn


def draw_photographs_last(shelf: Shelf, order: Sequence[str], rng: np.random.Generator) -> list[Variant]:
    """Drawings up to a place in the second half of the document, photographs from there on."""
    turn = int(rng.integers(len(order) // 2, len(order)))
    drawings = draw_pictures(shelf, order[:turn], rng, style=DRAWING)
    return [*drawings, *draw_pictures(shelf, order[turn:], rng, style=PHOTOGRAPH)]
