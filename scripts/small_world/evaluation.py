"""Evaluation files: episodes and questions on what is held out. JSONL; paths are relative to the world's folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flamboyance.files import json_line, write_text
from scripts.small_world.artists import DRAWING, PHOTOGRAPH
from scripts.small_world.concepts import Concept
from scripts.small_world.episodes import CONTENTS, FORMATS, Shelf, draw_pictures
from scripts.small_world.madeup import Words
from scripts.small_world.pictures import (
    HELD_OUT_ARTIST,
    HELD_OUT_CONCEPT,
    HELD_OUT_PHOTOGRAPH,
    TEST_ONLY,
    TRAIN,
)
from scripts.small_world.variants import Variant, random_for

TRIALS = 400  # episodes per file
SHOTS = {2: 16, 5: 20}  # demonstrations of an episode, by the number of classes
# What a query may have to be answered with; every task follows the same prompt.
TASKS = (("name", "plain"), ("kind", "plain"), *((code, "plain") for code in ("de", "fr", "es")), ("name", "brackets"))
TASKS = (*TASKS, ("name", "shout"))
TASK_SHOTS = 16

Row = dict[str, Any]


def write_evaluation(
    folder: Path,
    concepts: Sequence[Concept],
    variants: Sequence[Variant],
    words: Words,
    seed: int,
    trials: int = TRIALS,
) -> dict[str, int]:
    """Writes `evaluation/*.jsonl`; returns rows by file. Files for which the world lacks pictures are left out.

    A row of episodes: `demonstrations` (image, text, concept), of which the first n are the n shots, `query` (image,
    concept), `answer` and `candidates`. Among the first 2, 4, 6, … demonstrations (5, 10, … of five classes) each class
    is as often as the others. A row of naming: `image`, `text` and `concept`.
    """
    held_out = [concept for concept in concepts if concept.split != TRAIN]
    trained = [concept for concept in concepts if concept.split == TRAIN]
    files: dict[str, list[Row]] = {}
    for ways in SHOTS:
        for name, draw in _bindings(variants, held_out).items():
            rng = random_for(seed, "evaluation", name, ways)
            files[f"words-{ways}way-{name}"] = list(_words(draw, ways, words, trials, rng))
    rng = random_for(seed, "evaluation", "tasks")
    files["which-task"] = list(_which_task(variants, trained, trials, rng))
    for name, chosen in _naming(variants).items():
        known = {concept.name for concept in trained}
        files[name] = [_shown(v, v.concept) | {"artist": v.artist} for v in chosen if v.concept in known]
    files = {name: rows for name, rows in files.items() if rows}
    (folder / "evaluation").mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        write_text(folder / "evaluation" / f"{name}.jsonl", "".join(map(json_line, rows)))
    write_text(folder / "evaluation" / "names.txt", "".join(f"{concept.name}\n" for concept in trained))
    return {name: len(rows) for name, rows in files.items()}


# (classes, demonstrations, rng) -> the concepts, and the variants of the demonstrations and then of the query
Draw = Callable[[int, int, np.random.Generator], tuple[list[str], Sequence[str], list[Variant]] | None]


def _bindings(variants: Sequence[Variant], concepts: Sequence[Concept]) -> dict[str, Draw]:
    """Ways to choose pictures of held-out concepts."""
    shown = (HELD_OUT_CONCEPT, HELD_OUT_ARTIST)
    twemoji = Shelf([v for v in variants if v.split == HELD_OUT_ARTIST], concepts)
    across = Shelf([v for v in variants if v.split in shown and v.style == DRAWING], concepts)
    line_art = Shelf([v for v in variants if v.split == TEST_ONLY and v.artist == "OpenMoji"], concepts)
    photographs = Shelf([v for v in variants if v.style == PHOTOGRAPH and v.split == HELD_OUT_CONCEPT], concepts)
    stamps = Shelf([v for v in variants if v.style == PHOTOGRAPH and v.split == TEST_ONLY], concepts)
    return {
        "within-twemoji": _from(twemoji, twemoji),
        "across-artists": _from(across, across, other_artist=True),
        "drawing-to-openmoji": _from(across, line_art),
        "drawing-to-photograph": _from(across, photographs),
        "drawing-to-stamp": _from(across, stamps),
    }


def _from(demonstrations: Shelf, queries: Shelf, other_artist: bool = False) -> Draw:
    """Demonstrations of one shelf, the query of another; `other_artist`: by an artist who drew no demonstration of the
    query's class."""
    allowed = [name for name in demonstrations.names if name in set(queries.names)]

    def draw(ways: int, shots: int, rng: np.random.Generator) -> tuple[list[str], Sequence[str], list[Variant]] | None:
        if len(allowed) < ways:
            return None
        names = demonstrations.draw_classes(ways, allowed, rng)
        asked = names[int(rng.integers(ways))]
        order = [names[i] for _ in range(-(-shots // ways)) for i in rng.permutation(ways)][:shots]
        of = queries.of(asked)
        query = of[int(rng.integers(len(of)))]
        # A drawing that is asked for is no demonstration, in no variant; of one artist's two drawings the other may be.
        left = {name: [v for v in demonstrations.of(name) if v.picture != query.picture] for name in names}
        if other_artist:
            left[asked] = [v for v in left[asked] if v.artist != query.artist]
        else:
            left[asked] = left[asked] or [v for v in demonstrations.of(asked) if v.file != query.file]
        if not all(left.values()):
            return None
        shelf = Shelf([v for of in left.values() for v in of], [demonstrations.concepts[name] for name in names])
        return names, order, [*draw_pictures(shelf, order, rng), query]

    return draw


def _words(draw: Draw, ways: int, words: Words, trials: int, rng: np.random.Generator) -> Iterator[Row]:
    for number in range(trials):
        drawn = None
        for _ in range(100):  # some concepts have one artist alone
            drawn = drawn or draw(ways, SHOTS[ways], rng)
        if drawn is None:
            return
        names, order, (*shown, query) = drawn
        texts = dict(zip(names, words.draw(ways, "test", rng), strict=True))
        yield {
            "id": number,
            "demonstrations": [_shown(v, texts[name]) for v, name in zip(shown, order, strict=True)],
            "query": {"image": query.file, "concept": query.concept},
            "answer": texts[query.concept],
            "candidates": list(texts.values()),
        }


def _which_task(
    variants: Sequence[Variant], concepts: Sequence[Concept], trials: int, rng: np.random.Generator
) -> Iterator[Row]:
    """The held-out artist's pictures of concepts whose names were trained on. Texts of a query that are equal in two
    tasks, such as the name in two languages, are not asked: the demonstrations could not tell which is meant."""
    shelf = Shelf([v for v in variants if v.split == HELD_OUT_ARTIST], concepts)
    clear = [name for name in shelf.names if len(set(_answers(shelf.concepts[name]).values())) == len(TASKS)]
    if len(clear) <= TASK_SHOTS:
        return
    for number in range(trials):
        task = TASKS[number % len(TASKS)]
        names = [clear[i] for i in rng.choice(len(clear), size=TASK_SHOTS + 1, replace=False)]
        *shown, query = draw_pictures(shelf, names, rng)
        texts = {name: _answers(shelf.concepts[name]) for name in names}
        yield {
            "id": number,
            "task": " ".join(task),
            "demonstrations": [_shown(v, texts[v.concept][task]) for v in shown],
            "query": {"image": query.file, "concept": query.concept},
            "answer": texts[query.concept][task],
            "candidates": list(texts[query.concept].values()),
        }


def _answers(concept: Concept) -> Mapping[tuple[str, str], str]:
    return {(content, form): FORMATS[form](CONTENTS[content](concept)) for content, form in TASKS}


def _naming(variants: Sequence[Variant]) -> dict[str, list[Variant]]:
    """Pictures to name; of each the plain variant, and of the support for similar demonstrations too."""
    plain = [variant for variant in variants if variant.variant == 0]
    return {
        "naming-twemoji": [v for v in plain if v.split == HELD_OUT_ARTIST],
        "naming-openmoji": [v for v in plain if v.split == TEST_ONLY and v.artist == "OpenMoji"],
        "naming-photographs": [v for v in plain if v.split == HELD_OUT_PHOTOGRAPH],
        "naming-stamps": [v for v in plain if v.split == TEST_ONLY and v.style == PHOTOGRAPH],
        "naming-support": [v for v in plain if v.split == TRAIN],
    }


def _shown(variant: Variant, text: str) -> Row:
    return {"image": variant.file, "text": text, "concept": variant.concept}
