"""The pictures: held-out scenes, handwriting and made-up words, drawn from a seed and written to files.

The only file of the demonstration that knows the world; what it yields are tasks over image files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from flamboyance import templates
from flamboyance.demo.tasks import Example, Set, Task, TaskName
from flamboyance.files import naming
from flamboyance.mini import world
from flamboyance.mini.world import Episode, Scene

IMAGES = "images"
QUERIES_PER_SET = 8
QUESTIONS = ("color", "shape", "size", "position", "count", "yes-no")
WORDS_FOR = ("thing", "digit")
_SEED = 40_000_000  # training and its evaluation draw from other seeds

Answered = tuple[Scene, str | None, str]  # picture, question, answer


def write_examples(folder: Path, queries: int, shots: int, seed: int = 0) -> list[Task]:
    """Draws the tasks, `queries` queries each with up to `shots` demonstrations, and writes `folder/images/*.png`."""
    (folder / IMAGES).mkdir(parents=True, exist_ok=True)
    writer = _Writer(folder)
    draws: dict[TaskName, Draw] = {"captions": _captions, "questions": _questions, "digits": _digits, "words": _words}
    made = {}
    for number, (name, draw) in enumerate(draws.items()):
        rng = np.random.default_rng((_SEED + seed, number))
        made[name] = [writer.write(name, i, *drawn) for i, drawn in enumerate(draw(rng, queries, shots))]
    return [
        Task(
            "captions",
            "Captions",
            "Name one to three objects from left to right. Right only if every word is.",
            templates.caption,
            made["captions"],
        ),
        Task(
            "questions",
            "Questions",
            "Answer a question about colour, shape, size, position or number, or with yes or no.",
            templates.vqa,
            made["questions"],
        ),
        Task(
            "digits",
            "Handwritten digits",
            "Read a handwritten digit. The scans of queries and demonstrations were never trained on.",
            templates.vqa,
            made["digits"],
        ),
        Task(
            "words",
            "Made-up words",
            "Two words that nobody has seen before each stand for a kind of thing or a digit. Which one fits the "
            "query? Only the demonstrations can tell: without them it is a guess.",
            templates.classification,
            made["words"],
            chance=0.5,
        ),
    ]


class _Writer:
    """Turns what was drawn into files and examples."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(
        self, task: TaskName, number: int, shown: list[Answered], asked: list[Answered], words: list[str] | None
    ) -> Set:
        stem = f"{IMAGES}/{task}-{number:02d}"
        demonstrations = [self._save(f"{stem}-demonstration-{i + 1}.png", one) for i, one in enumerate(shown)]
        return Set(demonstrations, [self._save(f"{stem}-query-{i + 1}.png", one) for i, one in enumerate(asked)], words)

    def _save(self, name: str, one: Answered) -> Example:
        scene, question, answer = one
        with naming(self.folder / name):
            world.picture(scene).save(self.folder / name)
        return Example(name, answer, question)


Drawn = Iterator[tuple[list[Answered], list[Answered], list[str] | None]]  # demonstrations, queries, candidates
Draw = Callable[[np.random.Generator, int, int], Drawn]


def _sizes(queries: int) -> list[int]:
    """How many queries each set gets."""
    return [min(QUERIES_PER_SET, queries - start) for start in range(0, queries, QUERIES_PER_SET)]


def _captions(rng: np.random.Generator, queries: int, shots: int) -> Drawn:
    def draw(number: int) -> Answered:
        scene = world.scene(rng, 1 + number % 3)
        return scene, None, world.caption(scene)

    yield from _numbered(draw, queries, shots)


def _questions(rng: np.random.Generator, queries: int, shots: int) -> Drawn:
    def draw(number: int) -> Answered:
        kind = QUESTIONS[number % len(QUESTIONS)]
        while True:  # some scenes have no clear question of a kind
            scene = world.scene(rng)
            asked = [question for question in world.questions(scene, rng) if question.kind == kind]
            if asked:
                question = asked[rng.integers(len(asked))]
                return scene, question.text, question.answer

    yield from _numbered(draw, queries, shots)


def _digits(rng: np.random.Generator, queries: int, shots: int) -> Drawn:
    scans = rng.permutation(len(world.digits("test")[1]))  # no scan twice, while there are enough

    def draw(number: int) -> Answered:
        scene = world.digit_picture(int(scans[number % len(scans)]), "test", rng)
        question = world.questions(scene, rng)[0]
        return scene, question.text, question.answer

    yield from _numbered(draw, queries, shots, apart=True)


def _numbered(draw: Callable[[int], Answered], queries: int, shots: int, apart: bool = False) -> Drawn:
    """Sets whose queries are numbers 0, 1, …; their demonstrations begin anywhere, or (`apart`) after all queries."""
    asked = 0
    for number, size in enumerate(_sizes(queries)):
        first = queries + number * shots if apart else number
        shown = [draw(first + i) for i in range(shots)]
        yield shown, [draw(asked + i) for i in range(size)], None
        asked += size


def _words(rng: np.random.Generator, queries: int, shots: int) -> Drawn:
    for number in range(queries):
        episode = world.binding_episode(rng, shots, WORDS_FOR[number % len(WORDS_FOR)], "test")
        shown = [(scene, None, word) for scene, word in balanced(episode, rng)]
        yield shown, [(episode.query, None, episode.answer)], list(episode.candidates)


def balanced(episode: Episode, rng: np.random.Generator) -> list[tuple[Scene, str]]:
    """The demonstrations in an order whose first 2, 4, 8, … show both words equally often, each part shuffled."""
    left = {word: [shot for shot in episode.demonstrations if shot[1] == word] for word in episode.candidates}
    order: list[tuple[Scene, str]] = []
    while any(left.values()):
        take = max(1, len(order) // len(left))
        part = [shot for shots in left.values() for shot in shots[:take]]
        left = {word: shots[take:] for word, shots in left.items()}
        order += [part[i] for i in rng.permutation(len(part))]
    return order
