"""RICES (Flamingo, appendix A.2): the demonstrations are the images of the support set that are most like the query's.

Like is cosine similarity of features; the most similar stands last, next to the query.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flamboyance.evaluation.rices.feature_store import Features
from flamboyance.evaluation.task import Task

SUPPORT, QUERIES, RESCORED = 8192, 1024, 128  # rows compared at a time: 32 MiB of scores, 30 MiB of exact ones
SPARE = 16  # candidates beyond k, among which near ties are told apart exactly


def retrieve(
    task: Task,
    k: int,
    features: Features,
    queries: Sequence[int],
    repeated: bool = False,
    device: str | torch.device = "cpu",
) -> list[tuple[int, ...]]:
    """For each query the places in `task.support` of k demonstrations, the most similar last.

    An image is a demonstration once, by the first example that has it; the query's own image never is, under whatever
    name, nor one that has no feature.

    Args:
        features: of the images of support and queries.
        queries: places in `task.queries` of those that are asked.
        repeated: an image is shown by as many of its examples as there is room for, as open_flamingo does: in VQAv2,
            with some five questions an image, 4 demonstrations are then one image.

    Raises:
        ValueError: the image of a query has no feature, or the support set has too few demonstrations for it.
    """
    images, examples = _support(task, features, repeated)
    asked, questions, which, own = _asked(task, features, queries, images)
    _check(task, k, features, queries, (asked, which, own), examples, repeated)
    nearest = min(k, len(images) - int((own >= 0).any()))
    best = top_k(features.take(questions), lambda i: features.take(images[i]), len(images), nearest, own, device)
    chosen = [tuple([place for image in row for place in examples[image]][:k][::-1]) for row in best.tolist()]
    return [chosen[i] for i in which]


def check(task: Task, k: int, features: Features, queries: Sequence[int], repeated: bool = False) -> None:
    """What `retrieve` needs, without comparing images.

    Raises:
        ValueError: as `retrieve`.
    """
    images, examples = _support(task, features, repeated)
    asked, _, which, own = _asked(task, features, queries, images)
    _check(task, k, features, queries, (asked, which, own), examples, repeated)


def _support(task: Task, features: Features, repeated: bool) -> tuple[np.ndarray, list[list[int]]]:
    images, examples = _by_image(features.rows(example.image for example in task.support))
    return images, examples if repeated else [places[:1] for places in examples]


def _asked(
    task: Task, features: Features, queries: Sequence[int], images: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Rows of the queries' images; these without repetitions; each query's place among them; and of each its own place
    in the support set's images, or -1."""
    asked = features.rows(task.queries[i].image for i in queries)
    questions, which = np.unique(asked, return_inverse=True)
    position = {image: i for i, image in enumerate(images.tolist())}
    return asked, questions, which, np.array([position.get(one, -1) for one in questions.tolist()], dtype=np.int64)


def _check(
    task: Task,
    k: int,
    features: Features,
    queries: Sequence[int],
    found: tuple[np.ndarray, np.ndarray, np.ndarray],
    examples: list[list[int]],
    repeated: bool,
) -> None:
    asked, which, own = found
    without = [task.queries[i] for i, row in zip(queries, asked, strict=True) if row < 0]
    if without:
        more = f"; {len(without) - 1} more queries have none" if len(without) > 1 else ""
        raise ValueError(f"{task.name}, query {without[0].id!r}: {features.broken[str(without[0].image)]}{more}")
    total = sum(map(len, examples))
    for i in np.flatnonzero([total - (len(examples[itself]) if itself >= 0 else 0) < k for itself in own]):
        query = task.queries[queries[int(np.flatnonzero(which == i)[0])]]
        raise ValueError(
            f"{task.name}, query {query.id!r}: {k} demonstrations were asked for, and the support set has {total} "
            f"{'examples' if repeated else 'different images'}{', its own among them' if own[i] >= 0 else ''}; "
            "ask for fewer"
        )


def _by_image(rows: np.ndarray) -> tuple[np.ndarray, list[list[int]]]:
    """Rows without repetitions and -1, in the order in which they come first; and the places of each."""
    places: dict[int, list[int]] = {}
    for place, row in enumerate(rows.tolist()):
        if row >= 0:
            places.setdefault(row, []).append(place)
    return np.array(list(places), dtype=np.int64), list(places.values())


def top_k(
    queries: Tensor,
    take: Callable[[np.ndarray], Tensor],
    support: int,
    k: int,
    own: np.ndarray | None = None,
    device: str | torch.device = "cpu",
) -> np.ndarray:
    """For each query the k rows of largest inner product, exactly: largest first, of equal ones the lowest row first.

    Products are compared as real numbers, so the result depends neither on blocks nor on the device. Blocks are
    multiplied in float32, whose error is bounded; candidates are then multiplied in float64, where a sum of products
    of float16 numbers of length 1 is exact (multiples of 2^-48 that stay below 2). Where more than `SPARE` rows come
    too close to the k-th to be told apart by float32, a query is compared with all rows in float64.

    Args:
        queries: (q, D) float16, of length 1.
        take: numbers of rows (m,) -> these rows (m, D) float16, of length 1.
        support: how many rows there are; more than k by those that are left out.
        own: for each query the row to leave out, or -1.

    Returns:
        (q, k) int64. Memory grows with q (D + k), not with the support.
    """
    hidden = torch.from_numpy(np.full(len(queries), -1) if own is None else own)
    with _whole_float32():
        scores, places = _candidates(queries, take, support, min(k + SPARE, support), hidden, device)
    found = np.empty((len(queries), k), dtype=np.int64)
    error = 1.01 * queries.shape[1] * 2.0**-24  # of a sum of D products, by float32's unit roundoff; lengths are 1
    unsure = []
    for start in range(0, len(queries), RESCORED):
        here = slice(start, start + RESCORED)
        rows, order = places[here].sort(dim=1)
        candidates = take(rows.flatten().numpy()).double().unflatten(0, rows.shape)
        exact = torch.einsum("qd,qcd->qc", queries[here].double(), candidates)
        exact = exact.masked_fill(scores[here].gather(1, order).isneginf(), -torch.inf)
        exact, order = exact.sort(dim=1, descending=True, stable=True)
        found[here] = rows.gather(1, order)[:, :k].numpy()
        if support > places.shape[1] and k:
            left_out = scores[here, -1].double() + error  # nothing that is no candidate has more
            unsure += (start + torch.nonzero(exact[:, k - 1] <= left_out).flatten()).tolist()
    for start in range(0, len(unsure), RESCORED):
        rest = unsure[start : start + RESCORED]
        found[rest] = _exhaustive(queries[rest], take, support, k, hidden[rest])
    return found


def _candidates(
    queries: Tensor, take: Callable[[np.ndarray], Tensor], support: int, k: int, hidden: Tensor, device: Any
) -> tuple[Tensor, Tensor]:
    """The k rows of largest product in float32: (products (q, k), largest first; rows (q, k)), on the CPU."""
    queries, hidden = queries.to(device), hidden.to(device)
    best = torch.full((len(queries), k), -torch.inf, device=device)
    places = torch.zeros((len(queries), k), dtype=torch.int64, device=device)
    for begin in range(0, support, SUPPORT):
        block = take(np.arange(begin, min(begin + SUPPORT, support))).to(device).float().T
        for start in range(0, len(queries), QUERIES):
            here = slice(start, start + QUERIES)
            scores = queries[here].float() @ block
            _hide(scores, hidden[here] - begin)
            values, found = scores.topk(min(k, scores.shape[1]))
            values, order = torch.cat([best[here], values], 1).topk(k)
            places[here] = torch.cat([places[here], found + begin], 1).gather(1, order)
            best[here] = values
    return best.cpu(), places.cpu()


@contextmanager
def _whole_float32() -> Generator[None]:
    """Products of float32 as such: faster settings round them first, which the error's bound leaves out."""
    setting = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(setting)


def _exhaustive(
    queries: Tensor, take: Callable[[np.ndarray], Tensor], support: int, k: int, hidden: Tensor
) -> np.ndarray:
    """As `top_k`, in float64 throughout: (q, k)."""
    best = torch.empty(len(queries), 0, dtype=torch.float64)
    places = torch.empty(len(queries), 0, dtype=torch.int64)
    for begin in range(0, support, SUPPORT):
        numbers = np.arange(begin, min(begin + SUPPORT, support))
        scores = queries.double() @ take(numbers).double().T
        _hide(scores, hidden - begin)
        # What was found before has lower rows, and a stable sort leaves it before its equals.
        best, order = torch.cat([best, scores], 1).sort(dim=1, descending=True, stable=True)
        places = torch.cat([places, torch.from_numpy(numbers).expand_as(scores)], 1).gather(1, order)[:, :k]
        best = best[:, :k]
    return places.numpy()


def _hide(scores: Tensor, columns: Tensor) -> None:
    """Makes one column of each row -inf, where it is in the block."""
    rows = torch.nonzero((columns >= 0) & (columns < scores.shape[1])).flatten()
    scores[rows, columns[rows]] = -torch.inf
