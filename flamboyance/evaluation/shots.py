"""Which demonstrations a query is shown, and which queries are asked.

random     other ones for each query
fixed      the same ones for all queries
balanced   other ones for each query, as many of each label as can be
rices      the most similar ones (see rices.py); draws nothing

What is drawn depends on the seed and the query's id alone: on no order, batch, process or number of queries. More shots
of the first two are the same demonstrations and more. A query's own image is never among them.

Under the protocol "openflamingo" random demonstrations and subsets of queries are those that open_flamingo 2.0.1's
evaluation draws on one process for the same seed, from the same support set and queries in the same order: numpy's
global generator is seeded; it permutes the test set; it draws 2048 demonstrations to choose from; Python's generator is
seeded, and samples for each query, in the order of a DistributedSampler. The limits: on several processes the reference
draws otherwise; a support set of less than 2048, where it stops, is taken whole; a demonstration that shows the query's
own image, which its data sets do not have, is drawn again; and the orders of prompt ensembling, which it draws between
the demonstrations of one batch and the next, are drawn for each query by itself.
"""

from __future__ import annotations

import os
import random
from collections.abc import Collection, Iterator, Sequence
from functools import cache
from hashlib import blake2b
from itertools import islice
from math import factorial
from pathlib import Path

import numpy as np
import torch

from flamboyance.evaluation.rices import index as rices
from flamboyance.evaluation.rices.feature_store import Features
from flamboyance.evaluation.task import Task

MODES = ("random", "fixed", "balanced", "rices")
TEXT_ONLY = 2  # demonstrations that are shown without their images where there are to be none (Flamingo, appendix A.2)
REFERENCE_POOL = 2048


def select(
    task: Task,
    shots: int,
    mode: str = "random",
    seed: int = 0,
    protocol: str = "papers",
    features: Features | None = None,
    queries: Sequence[int] | None = None,
) -> list[tuple[int, ...]]:
    """The demonstrations of each query: places in `task.support`, in the order of the prompt.

    Args:
        shots: how many; 0 gives the two whose text alone is shown.
        mode: one of `MODES`.
        features: of the images of support and queries, for "rices".
        queries: places in `task.queries` of those that are asked, as `choose_queries` gives them; default: all.

    Raises:
        ValueError: there is no such mode, the support set has too few demonstrations, the task has no labels to
            balance, or features are missing.
    """
    if mode not in MODES:
        raise ValueError(f"there is no way {mode!r} of choosing demonstrations; there are {', '.join(MODES)}")
    if shots < 0:
        raise ValueError(f"{shots} shots: expected 0 or more")
    k = shots or TEXT_ONLY
    asked = range(len(task.queries)) if queries is None else queries
    if mode == "rices":
        if features is None:
            raise ValueError(
                "demonstrations by rices need features of the images: features=build(images, encoder, cache)"
            )
        return rices.retrieve(task, k, features, asked, repeated=protocol == "openflamingo")
    own = own_images(task, asked)
    for i in asked:
        _check_number(task, i, k, len(own.get(task.queries[i].image, ())))
    if mode == "balanced":
        return _balanced(task, k, seed, asked, own)
    if mode == "random" and protocol == "openflamingo":
        return _reference(task, k, seed, queries, own)
    chosen, shared = [], tuple(islice(_shuffled(_generator(mode, seed), len(task.support)), k))
    for i in asked:
        query = task.queries[i]
        if mode == "fixed" and own.get(query.image, frozenset()).isdisjoint(shared):
            chosen.append(shared)
            continue
        draws = _shuffled(_generator(mode, seed, *([query.id] if mode == "random" else [])), len(task.support))
        chosen.append(tuple(islice(_without(draws, own.get(query.image, ())), k)))
    return chosen


def choose_queries(task: Task, number: int | None, seed: int, protocol: str = "papers") -> list[int]:
    """Places in `task.queries` of a random subset.

    They come in the order of the task; under "openflamingo" in that of the reference's draw.

    Args:
        number: how many; None, or more than there are: all.
    """
    whole = len(task.queries)
    if number is not None and number < 1:
        raise ValueError(f"{number} queries: expected 1 or more, or None for all {whole}")
    number = whole if number is None else min(number, whole)
    if protocol == "openflamingo":
        return np.random.RandomState(seed).choice(whole, number, replace=False).tolist()
    if number == whole:
        return list(range(whole))
    ranked = sorted(range(whole), key=lambda i: _hash("queries", seed, task.queries[i].id))
    return sorted(ranked[:number])


def permutations(
    demonstrations: int, number: int, seed: int, query: str = "", protocol: str = "papers"
) -> list[tuple[int, ...]]:
    """Orders of so many demonstrations, for prompt ensembling: the given one first, all different.

    As many as were asked for, or all there are. Under "openflamingo" each is the last one shuffled, so some may be
    equal, and the given one need not be among them.

    Args:
        query: its id: other queries have other orders.
    """
    most = factorial(demonstrations) if demonstrations < 20 else number  # more than anyone asks for
    order, drawn = list(range(demonstrations)), _generator("permutations", seed, query)
    if protocol == "openflamingo" and number > 1:
        orders = []
        for _ in range(min(number, most)):
            drawn.shuffle(order)
            orders.append(tuple(order))
        return orders
    found = {tuple(order): None}
    while len(found) < min(number, most):
        found[tuple(_shuffled(drawn, demonstrations))] = None
    return list(found)


def own_images(task: Task, asked: Sequence[int]) -> dict[Path, frozenset[int]]:
    """Images that are both asked about and shown: the examples that show them, however their paths are written."""
    places: dict[str, set[int]] = {}
    for place, example in enumerate(task.support):
        places.setdefault(_real(example.image), set()).add(place)
    images = {task.queries[i].image for i in asked}
    return {image: frozenset(places[_real(image)]) for image in images if _real(image) in places}


@cache
def _real(image: Path) -> str:
    return os.path.realpath(image)


def _check_number(task: Task, query: int, k: int, own: int) -> None:
    if len(task.support) - own < k:
        besides = f", {own} of them with its own image" if own else ""
        raise ValueError(
            f"{task.name}, query {task.queries[query].id!r}: {k} demonstrations were asked for, and the support set "
            f"has {len(task.support)}{besides}; ask for fewer"
        )


# ---- draws ----------------------------------------------------------------------------------------------------------


def _hash(*key: object) -> int:
    return int.from_bytes(blake2b("\0".join(map(str, key)).encode("utf-8", "surrogatepass"), digest_size=16).digest())


def _generator(*key: object) -> random.Random:
    return random.Random(_hash(*key))


def _shuffled(generator: random.Random, number: int) -> Iterator[int]:
    """range(number) in random order, each as it is asked for.

    By `random()` alone, which gives the same numbers in every version of Python, as `sample` and `shuffle` need not.
    """
    moved: dict[int, int] = {}
    for i in range(number):
        j = i + int(generator.random() * (number - i))
        yield moved.get(j, j)
        moved[j] = moved.get(i, i)


def _without(draws: Iterator[int], left_out: Collection[int]) -> Iterator[int]:
    return (i for i in draws if i not in left_out)


# ---- balanced -------------------------------------------------------------------------------------------------------


def _balanced(
    task: Task, k: int, seed: int, asked: Sequence[int], own: dict[Path, frozenset[int]]
) -> list[tuple[int, ...]]:
    if task.labels is None:
        raise ValueError(
            f"{task.name}: demonstrations balanced by label need labels to choose from, and this task's answers are "
            "free text; choose them by random, fixed or rices"
        )
    groups: dict[str, list[int]] = {}
    for place, example in enumerate(task.support):
        groups.setdefault(example.answer, []).append(place)
    examples, number = list(groups.values()), {label: i for i, label in enumerate(groups)}
    whole = [len(group) for group in examples]
    chosen = []
    for i in asked:
        query = task.queries[i]
        generator, itself = _generator("balanced", seed, query.id), own.get(query.image, frozenset())
        sizes = whole.copy()
        for place in itself:
            sizes[number[task.support[place].answer]] -= 1
        found = []
        for label, share in _shares(sizes, k, generator).items():
            group = examples[label]
            draws = (group[j] for j in _shuffled(generator, len(group)))
            found += islice(_without(draws, itself), share)
        chosen.append(tuple(found[j] for j in _shuffled(generator, k)))
    return chosen


def _shares(sizes: Sequence[int], k: int, generator: random.Random) -> dict[int, int]:
    """How many of each label: as equal as their sizes allow, the odd ones to labels by lot. k in all."""
    shares: dict[int, int] = {}
    for label in _rounds(sizes, generator):
        if sum(shares.values()) == k:
            break
        shares[label] = shares.get(label, 0) + 1
    return shares


def _rounds(sizes: Sequence[int], generator: random.Random) -> Iterator[int]:
    """Labels in random order, each once; then those that have more again; and so on."""
    given = 0
    while any(size > given for size in sizes):
        yield from (label for label in _shuffled(generator, len(sizes)) if sizes[label] > given)
        given += 1


# ---- the reference's draws ------------------------------------------------------------------------------------------


def _reference(
    task: Task, k: int, seed: int, queries: Sequence[int] | None, own: dict[Path, frozenset[int]]
) -> list[tuple[int, ...]]:
    drawn = np.random.RandomState(seed)
    whole = len(task.queries)
    order = drawn.choice(whole, whole if queries is None else len(queries), replace=False)
    pool = drawn.choice(len(task.support), min(REFERENCE_POOL, len(task.support)), replace=False).tolist()
    if queries is not None and set(order.tolist()) != set(queries):
        raise ValueError(
            f"{task.name}: these {len(queries)} queries are not those that the protocol openflamingo draws with seed "
            f"{seed}; take them from choose_queries"
        )
    sampler = random.Random(seed)  # the reference's on its first process, which adds its number: 0
    visited = torch.randperm(len(order), generator=torch.Generator().manual_seed(0))  # DistributedSampler's
    chosen: dict[int, tuple[int, ...]] = {}
    for i in order[visited.numpy()].tolist():
        itself = own.get(task.queries[i].image, frozenset())
        if len(pool) - len(itself.intersection(pool)) < k:
            raise ValueError(
                f"{task.name}, query {task.queries[i].id!r}: too many of the {len(pool)} demonstrations that were "
                f"drawn to choose from have its own image, to leave {k}; ask for fewer"
            )
        chosen[i] = tuple(sampler.sample(pool, k))
        while not itself.isdisjoint(chosen[i]):
            chosen[i] = tuple(sampler.sample(pool, k))
    return [chosen[i] for i in (range(whole) if queries is None else queries)]
