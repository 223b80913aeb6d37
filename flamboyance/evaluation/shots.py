"""Chooses the queries of an evaluation, and the demonstrations of each query.

random     drawn for each query
fixed      the same for all queries
balanced   drawn for each query, equally many of each label if possible
rices      the most similar images (see rices/retrieval.py); nothing is drawn

A draw depends only on the seed and the query's id, not on the order, batch, process or number of queries. In modes
random and fixed, more shots add demonstrations to those of fewer shots. A query is never shown an image of its own.

Under the protocol "openflamingo" random demonstrations and subsets of queries are those that open_flamingo 2.0.1's
evaluation draws in one process for the same seed, support set and queries in the same order. It seeds numpy's global
generator, permutes the test set, and draws 2048 demonstrations to choose from; then it seeds Python's generator, and
samples for each query, in the order of a DistributedSampler. Differences from the reference: it draws
others on several processes; it refuses a support set of less than 2048, which is taken whole here; a demonstration that
shows the query's own image, which its data sets do not have, is drawn again here; and it draws the orders of prompt
ensembling between the demonstrations of two batches, which are drawn for each query separately here.
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

from flamboyance.evaluation.rices import retrieval
from flamboyance.evaluation.rices.feature_store import Features
from flamboyance.evaluation.task import Task

MODES = ("random", "fixed", "balanced", "rices")
TEXT_ONLY = 2  # with 0 shots, so many demonstrations are shown without their images (Flamingo, appendix A.2)
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
    """The demonstrations of each query: indices into `task.support`, in the order of the prompt.

    Args:
        shots: how many; 0 gives the two that are shown without their images.
        mode: one of `MODES`.
        features: the features of the images of support set and queries, for "rices".
        queries: indices into `task.queries`, as `choose_queries` gives them; default: all.

    Raises:
        ValueError: there is no such mode, the support set has too few demonstrations, the task has no labels to
            balance, or features are missing.
    """
    if mode not in MODES:
        raise ValueError(f"mode={mode!r}: expected one of {', '.join(MODES)}")
    if shots < 0:
        raise ValueError(f"{shots} shots: expected 0 or more")
    k = shots or TEXT_ONLY
    asked = range(len(task.queries)) if queries is None else queries
    if task.choose is not None:
        if mode != "random":
            raise ValueError(f"{task.name} fixes which demonstrations a query may have: use random, not {mode}")
        return [task.choose(task.queries[i], shots, seed) for i in asked]
    if mode == "rices":
        if features is None:
            raise ValueError("mode='rices' needs features of the images: features=build(images, encoder, cache)")
        return retrieval.retrieve(task, k, features, asked, repeated=protocol == "openflamingo")
    same = same_image(task, asked)
    for i in asked:
        _check_number(task, i, k, len(same.get(task.queries[i].images, ())))
    if mode == "balanced":
        return _balanced(task, k, seed, asked, same)
    if mode == "random" and protocol == "openflamingo":
        return _reference(task, k, seed, queries, same)
    chosen, shared = [], tuple(islice(shuffled(generator_of(mode, seed), len(task.support)), k))
    for i in asked:
        query = task.queries[i]
        if mode == "fixed" and same.get(query.images, frozenset()).isdisjoint(shared):
            chosen.append(shared)
            continue
        draws = shuffled(generator_of(mode, seed, *([query.id] if mode == "random" else [])), len(task.support))
        chosen.append(tuple(islice(_without(draws, same.get(query.images, ())), k)))
    return chosen


def choose_queries(task: Task, number: int | None, seed: int, protocol: str = "papers") -> list[int]:
    """A random subset of the queries: indices into `task.queries`.

    They are in the order of the task; under "openflamingo" in the order of the reference's draw.

    Args:
        number: how many; None for all. If there are fewer queries, all are taken.
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
    """Different orders of the demonstrations, for prompt ensembling; the given order comes first.

    If there are fewer orders than `number`, all are returned. Under "openflamingo" each order is the last one shuffled,
    so two may be equal, and the given one may be missing.

    Args:
        query: the id of the query; each query has its own orders.
    """
    most = factorial(demonstrations) if demonstrations < 20 else number  # 20! is more than any number
    order, drawn = list(range(demonstrations)), generator_of("permutations", seed, query)
    if protocol == "openflamingo" and number > 1:
        orders = []
        for _ in range(min(number, most)):
            drawn.shuffle(order)
            orders.append(tuple(order))
        return orders
    different = {tuple(order): None}
    while len(different) < min(number, most):
        different[tuple(shuffled(drawn, demonstrations))] = None
    return list(different)


def same_image(task: Task, asked: Sequence[int]) -> dict[tuple[Path, ...], frozenset[int]]:
    """For the images of each query of which the support set holds one too, the examples there with such an image.

    Different paths to one file count as the same image. Of several images, one that all examples show, as a legend,
    does not count.
    """
    places: dict[str, set[int]] = {}
    for place, example in enumerate(task.support):
        for image in example.images:
            places.setdefault(_real(image), set()).add(place)
    common = {image for image, some in places.items() if len(some) == len(task.support)}
    for query in task.queries if common else ():
        common.intersection_update(map(_real, query.images))
    found = {}
    for images in {task.queries[i].images for i in asked}:
        own = set(map(_real, images))
        if some := frozenset[int]().union(*(places.get(image, ()) for image in own - common or own)):
            found[images] = some
    return found


@cache
def _real(image: Path) -> str:
    return os.path.realpath(image)


def _check_number(task: Task, query: int, k: int, same: int) -> None:
    if len(task.support) - same < k:
        besides = f", {same} of them with its own image" if same else ""
        raise ValueError(
            f"{task.name}, query {task.queries[query].id!r}: {k} demonstrations were requested, and the support set "
            f"has {len(task.support)}{besides}; request fewer"
        )


# ---- draws ----------------------------------------------------------------------------------------------------------


def _hash(*key: object) -> int:
    return int.from_bytes(blake2b("\0".join(map(str, key)).encode("utf-8", "surrogatepass"), digest_size=16).digest())


def generator_of(*key: object) -> random.Random:
    """A generator of random numbers that depends on the key alone."""
    return random.Random(_hash(*key))


def shuffled(generator: random.Random, number: int) -> Iterator[int]:
    """range(number) in random order, drawn one by one.

    Only `random()` is used: it gives the same numbers in every version of Python, unlike `sample` and `shuffle`.
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
    task: Task, k: int, seed: int, asked: Sequence[int], same: dict[tuple[Path, ...], frozenset[int]]
) -> list[tuple[int, ...]]:
    if task.labels is None:
        raise ValueError(
            f"{task.name}: balanced demonstrations need labels, and the answers of this task are free text; use "
            "random, fixed or rices"
        )
    groups: dict[str, list[int]] = {}
    for place, example in enumerate(task.support):
        groups.setdefault(example.answer, []).append(place)
    examples, number = list(groups.values()), {label: i for i, label in enumerate(groups)}
    whole = [len(group) for group in examples]
    chosen = []
    for i in asked:
        query = task.queries[i]
        generator, excluded = generator_of("balanced", seed, query.id), same.get(query.images, frozenset())
        sizes = whole.copy()
        for place in excluded:
            sizes[number[task.support[place].answer]] -= 1
        shown = []
        for label, share in _shares(sizes, k, generator).items():
            group = examples[label]
            draws = (group[j] for j in shuffled(generator, len(group)))
            shown += islice(_without(draws, excluded), share)
        chosen.append(tuple(shown[j] for j in shuffled(generator, k)))
    return chosen


def _shares(sizes: Sequence[int], k: int, generator: random.Random) -> dict[int, int]:
    """How many demonstrations of each label, k in all: equally many if the sizes allow, the rest by random labels."""
    shares: dict[int, int] = {}
    for label in _rounds(sizes, generator):
        if sum(shares.values()) == k:
            break
        shares[label] = shares.get(label, 0) + 1
    return shares


def _rounds(sizes: Sequence[int], generator: random.Random) -> Iterator[int]:
    """Labels in random order, each once; then again those with a second example; and so on."""
    given = 0
    while any(size > given for size in sizes):
        yield from (label for label in shuffled(generator, len(sizes)) if sizes[label] > given)
        given += 1


# ---- the reference's draws ------------------------------------------------------------------------------------------


def _reference(
    task: Task, k: int, seed: int, queries: Sequence[int] | None, same: dict[tuple[Path, ...], frozenset[int]]
) -> list[tuple[int, ...]]:
    drawn = np.random.RandomState(seed)
    whole = len(task.queries)
    order = drawn.choice(whole, whole if queries is None else len(queries), replace=False)
    pool = drawn.choice(len(task.support), min(REFERENCE_POOL, len(task.support)), replace=False).tolist()
    if queries is not None and set(order.tolist()) != set(queries):
        raise ValueError(
            f"{task.name}: these {len(queries)} queries are not those that the protocol openflamingo draws with "
            f"seed {seed}; get them from choose_queries"
        )
    sampler = random.Random(seed)  # the reference seeds with seed + rank; here the rank is 0
    visited = torch.randperm(len(order), generator=torch.Generator().manual_seed(0))  # DistributedSampler's
    chosen: dict[int, tuple[int, ...]] = {}
    for i in order[visited.numpy()].tolist():
        excluded = same.get(task.queries[i].images, frozenset())
        if len(pool) - len(excluded.intersection(pool)) < k:
            raise ValueError(
                f"{task.name}, query {task.queries[i].id!r}: fewer than {k} of the {len(pool)} demonstrations have "
                "another image than the query; request fewer"
            )
        chosen[i] = tuple(sampler.sample(pool, k))
        while not excluded.isdisjoint(chosen[i]):
            chosen[i] = tuple(sampler.sample(pool, k))
    return [chosen[i] for i in (range(whole) if queries is None else queries)]
