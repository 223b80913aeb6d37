"""Few-shot accuracy on held-out images and made-up words, in seconds."""

from __future__ import annotations

from typing import Any

import numpy as np

from flamboyance import templates
from flamboyance.few_shot import FewShotTask
from flamboyance.mini.world import (
    DIGIT_QUESTION,
    binding_episode,
    caption,
    digit_picture,
    digit_scene,
    draw_question,
    picture,
    scene,
)
from flamboyance.templates import Template

SEED = 30_000_000  # of scenes that no shard holds
BATCH = 32
QUESTIONS = ("color", "shape", "size", "position", "count", "yes-no")
BOUND = ("color", "shape", "digit")

Shown = tuple[Any, ...]  # a picture, then a template's fields


def evaluate(model: Any, processor: Any, trials: int = 24) -> dict[str, float]:
    """Accuracy by `task@shots`. Captions are of one object.

    Binding is a choice between two made-up words (chance is 0.5); the other answers are generated.

    Args:
        trials: queries per task and number of shots; for binding, per kind of concept.
    """
    found: dict[str, float] = {}
    for shots in (0, 4):
        found |= _captions(model, processor, shots, trials)
        found |= _questions(model, processor, shots, trials)
        found |= _digits(model, processor, shots, trials)
    for shots in (2, 4):
        found[f"binding@{shots}"] = _binding(model, processor, shots, trials)
    return found


def _answers(model: Any, processor: Any, template: Template, shown: list[Shown], queries: list[Shown]) -> list[str]:
    task = FewShotTask(model, processor, shown, template)
    return task(queries, max_new_tokens=6, batch_size=BATCH)


def _share(said: list[str], true: list[str]) -> float:
    return float(np.mean([one.split() == other.split() for one, other in zip(said, true, strict=True)]))


def _captions(model: Any, processor: Any, shots: int, trials: int) -> dict[str, float]:
    rng = np.random.default_rng((SEED, 1, shots))
    shown = [(picture(one), caption(one)) for one in (scene(rng, 1) for _ in range(shots))]
    asked = [scene(rng, 1) for _ in range(trials)]
    said = _answers(model, processor, templates.caption, shown, [(picture(one),) for one in asked])
    return {f"captions@{shots}": _share(said, [caption(one) for one in asked])}


def _questions(model: Any, processor: Any, shots: int, trials: int) -> dict[str, float]:
    rng = np.random.default_rng((SEED, 2, shots))
    drawn = [draw_question(rng, QUESTIONS[number % len(QUESTIONS)]) for number in range(shots + trials)]
    shown = [(picture(one), question.text, question.answer) for one, question in drawn[:shots]]
    queries = [(picture(one), question.text) for one, question in drawn[shots:]]
    answers = _answers(model, processor, templates.vqa, shown, queries)
    return {f"questions@{shots}": _share(answers, [question.answer for _, question in drawn[shots:]])}


def _digits(model: Any, processor: Any, shots: int, trials: int) -> dict[str, float]:
    rng = np.random.default_rng((SEED, 3, shots))
    drawn = [digit_scene(rng, "train") for _ in range(shots)]
    drawn += [digit_picture(int(index), "test", rng) for index in rng.permutation(360)[:trials]]
    values = [one.digit.value if one.digit else "" for one in drawn]
    shown = [(picture(one), DIGIT_QUESTION, value) for one, value in zip(drawn[:shots], values, strict=False)]
    said = _answers(model, processor, templates.vqa, shown, [(picture(one), DIGIT_QUESTION) for one in drawn[shots:]])
    return {f"digits@{shots}": _share(said, values[shots:])}


def _binding(model: Any, processor: Any, shots: int, trials: int) -> float:
    right = []
    for number, kind in enumerate(BOUND):
        rng = np.random.default_rng((SEED, 4, number, shots))
        for _ in range(trials):
            episode = binding_episode(rng, shots, kind, "test")
            shown = [(picture(one), word) for one, word in episode.demonstrations]
            task = FewShotTask(model, processor, shown, templates.caption)
            ((chosen, _),) = task.classify([picture(episode.query)], episode.candidates)
            right.append(chosen == episode.answer)
    return float(np.mean(right))
