"""Small tasks over pictures that the tests draw, and a tiny model that answers them."""

from pathlib import Path

import numpy as np
from PIL import Image

import flamboyance as fl
from flamboyance import templates
from flamboyance.evaluation.answers.flamingo import FlamingoAnswers
from flamboyance.evaluation.task import Example, Metric, Score, Task
from tests.tiny import save_tiny_flamingo

WORDS = ("a red circle", "a blue square", "green dog", "a cat", "red dog", "a green circle")
QUESTIONS = ("what is this ?", "is this a cat ?", "is this a blue circle ? yes no yes no")


def exact(examples, predictions) -> Score:
    items = {e.id: 100.0 * (p.answer in e.references) for e, p in zip(examples, predictions, strict=True)}
    value = float(np.mean(list(items.values())))
    return Score(value, items, (value, value))


EXACT = Metric("exact match", exact)


def draw(folder: Path, number: int, seed: int) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    paths = [folder / f"{i}.png" for i in range(number)]
    for path in paths:
        Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    return paths


def captions(folder: Path, support: int = 12, queries: int = 9, **options) -> Task:
    shown, asked = draw(folder / "shown", support, 0), draw(folder / "asked", queries, 1)
    return Task(
        "captions", "Captions", templates.caption,
        [Example(f"s{i}", path, WORDS[i % 6]) for i, path in enumerate(shown)],
        [Example(f"q{i}", path, WORDS[i % 6], references=(WORDS[i % 6],)) for i, path in enumerate(asked)],
        EXACT, **{"max_new_tokens": 4, **options},
    )  # fmt: skip


def questions(folder: Path, support: int = 12, queries: int = 9, **options) -> Task:
    shown, asked = draw(folder / "shown", support, 2), draw(folder / "asked", queries, 3)
    return Task(
        "questions", "Questions", templates.vqa,
        [Example(f"s{i}", path, ("yes", "no")[i % 2], (QUESTIONS[i % 3],)) for i, path in enumerate(shown)],
        [
            Example(f"q{i}", path, "yes", (QUESTIONS[i % 3],), references=("yes", "no")[i % 2 :][:1])
            for i, path in enumerate(asked)
        ],
        EXACT, **{"labels": ("yes", "no", "a red circle"), **options},
    )  # fmt: skip


def tiny_answers(folder: Path, **options) -> FlamingoAnswers:
    directory = save_tiny_flamingo(folder)
    model = fl.FlamingoForConditionalGeneration.from_pretrained(str(directory))
    return FlamingoAnswers(model, fl.FlamingoProcessor.from_pretrained(directory), **options)
