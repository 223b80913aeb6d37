"""Answers without a model, to compare a model's with (`evaluate --ablate`).

majority     the most frequent answer of the support set, the first of equals
neighbours   the vote of as many examples of the support set as the prompt has demonstrations: those whose images are
             the most similar to the query's, as RICES finds them; of equals the answer of the most similar one. In a
             task that fixes the demonstrations of a query, the answer of the most similar demonstration.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from flamboyance.evaluation import shots
from flamboyance.evaluation.prompts import Prompt
from flamboyance.evaluation.results import Row, row
from flamboyance.evaluation.rices import retrieval
from flamboyance.evaluation.rices.feature_store import Features
from flamboyance.evaluation.task import Example, Task

MAJORITY, NEIGHBOURS = "majority", "neighbours"
BASELINE = "baseline"  # the change of their cells
TITLES = {MAJORITY: "the most frequent answer", NEIGHBOURS: "the nearest neighbours' vote"}


def answered(task: Task, queries: Sequence[int], shown: Sequence[Sequence[int]], cell_mode: str, number: int,
             features: Features | None) -> list[Row]:  # fmt: skip
    """The rows of a baseline's predictions.

    Args:
        queries: indices into `task.queries`.
        shown: the demonstrations of each in the model's prompt, as indices into `task.support`.
        cell_mode: MAJORITY or NEIGHBOURS.
        number: of demonstrations.
        features: of the images, for NEIGHBOURS.

    Raises:
        ValueError: features are missing.
    """
    if cell_mode == MAJORITY:
        voters: list[Sequence[int]] = [()] * len(queries)
        counts = Counter(one.answer for one in task.support)
        answers = [counts] * len(queries)
    else:
        if features is None:
            raise ValueError("neighbours need features of the images: features=build(images, encoder, cache)")
        voters = _voters(task, queries, shown, number, features)
        answers = [Counter(task.support[i].answer for i in reversed(some)) for some in voters]
    return [
        _row(Prompt(task, task.queries[i], tuple(task.support[j] for j in some)), votes, cell_mode)
        for i, some, votes in zip(queries, voters, answers, strict=True)
    ]


def _row(prompt: Prompt, votes: Counter[str], by: str) -> Row:
    (answer, _), labels = votes.most_common(1)[0], prompt.task.labels
    scores = None
    if labels is not None:  # a label without a vote is possible too
        whole = votes.total() + 1.0
        scores = [math.log((votes[label] + 1.0 / len(labels)) / whole) for label in labels]
    return row(prompt, None, answer, scores, by)


def _voters(
    task: Task, queries: Sequence[int], shown: Sequence[Sequence[int]], number: int, features: Features
) -> list[Sequence[int]]:
    """The voting examples of each query, the most similar last."""
    if task.choose is None:
        count = nearest_count(task, number, features)
        if not any(one.further for one in task.support):
            return [*retrieval.retrieve(task, count, features, queries)]
        return _of_several(task, queries, count, features)
    voters: list[Sequence[int]] = []
    for i, some in zip(queries, shown, strict=True):
        asked = _vector(task.queries[i], features)
        known = [j for j in some if _has(task.support[j], features)]
        if not known:
            raise ValueError(f"{task.name}, query {task.queries[i].id!r}: no demonstration's image has a feature")
        likeness = torch.stack([_vector(task.support[j], features) for j in known]) @ asked
        voters.append([known[int(likeness.argmax())]])
    return voters


def _of_several(task: Task, queries: Sequence[int], count: int, features: Features) -> list[Sequence[int]]:
    """As `_voters` of a task with several images per example: the examples that are the most similar in all of them.
    As RICES does, each set of images votes once, by its first example, and none with an image of the query."""
    first = {one.images: place for place, one in reversed([*enumerate(task.support)]) if _has(one, features)}
    known = sorted(first.values())
    vectors = torch.stack([_vector(task.support[j], features) for j in known])
    same, voters = shots.same_image(task, queries), []
    for query in (task.queries[i] for i in queries):
        likeness = vectors @ _vector(query, features)
        likeness[[j in same.get(query.images, ()) for j in known]] = -torch.inf
        ranked = likeness.sort(descending=True, stable=True)
        some = [known[j] for j in ranked.indices[ranked.values > -torch.inf][:count].tolist()]
        if not some:
            raise ValueError(f"{task.name}, query {query.id!r}: no other example has features of its images")
        voters.append(some[::-1])
    return voters


def nearest_count(task: Task, number: int, features: Features) -> int:
    """How many examples vote: as many as there are demonstrations, or fewer in a small support set."""
    different = {tuple(features.rows(iter(one.images)).tolist()) for one in task.support}
    return max(1, min(number, sum(min(rows) >= 0 for rows in different) - 1))


def _has(example: Example, features: Features) -> bool:
    return bool((features.rows(iter(example.images)) >= 0).all())


def _vector(example: Example, features: Features) -> torch.Tensor:
    """The features of an example's images, one behind the other."""
    rows = features.rows(iter(example.images))
    if (rows < 0).any():
        missing: Path = example.images[int((rows < 0).argmax())]
        raise ValueError(f"{example.id}: {features.broken[str(missing)]}")
    return features.take(rows).double().flatten()
