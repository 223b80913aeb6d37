"""RICES (Flamingo, appendix A.2): the demonstrations are the images of the support set that are most similar to the
query's, by the cosine of their features. The most similar one comes last, next to the query.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from flamboyance.evaluation.rices.feature_store import Features
from flamboyance.evaluation.task import Task

SUPPORT, QUERIES, RESCORED = 8192, 1024, 128  # rows compared at a time: 32 MiB of scores, 30 MiB of exact ones
SPARE = 16  # candidates beyond k, to resolve near ties exactly


def retrieve(
    task: Task,
    k: int,
    features: Features,
    queries: Sequence[int],
    repeated: bool = False,
    device: str | torch.device = "cpu",
) -> list[tuple[int, ...]]:
    """For each query the indices into `task.support` of k demonstrations, the most similar last.

    Each image is shown once, by the first example that has it. The query's own image is never shown, under any name,
    nor an image without a feature.

    Args:
        features: the features of the images of support set and queries.
        queries: indices into `task.queries`.
        repeated: an image is shown by as many of its examples as fit, as in open_flamingo: in VQAv2, with about five
            questions per image, 4 demonstrations are then one image.

    Raises:
        ValueError: the image of a query has no feature, or the support set has too few demonstrations for it.
    """
    images = _Images.of(task, k, features, queries, repeated)
    nearest = min(k, len(images.shown) - int((images.own >= 0).any()))
    best = top_k(
        features.take(images.asked),
        lambda i: features.take(images.shown[i]),
        len(images.shown),
        nearest,
        images.own,
        device,
    )
    chosen = [tuple([place for image in row for place in images.examples[image]][:k][::-1]) for row in best.tolist()]
    return [chosen[i] for i in images.of_query]


def check(task: Task, k: int, features: Features, queries: Sequence[int], repeated: bool = False) -> None:
    """Checks what `retrieve` needs, without comparing images.

    Raises:
        ValueError: as `retrieve`.
    """
    _Images.of(task, k, features, queries, repeated)


class _Images(NamedTuple):
    """The different images of a task, as rows of its features.

    Attributes:
        shown: (s,) those of the support set, in the order of their first examples.
        examples: for each of these the examples that may show it.
        asked: (q,) those of the queries, sorted.
        of_query: for each query its place in `asked`.
        own: (q,) the place in `shown` of the same image, or -1.
    """

    shown: np.ndarray
    examples: list[list[int]]
    asked: np.ndarray
    of_query: np.ndarray
    own: np.ndarray

    @classmethod
    def of(cls, task: Task, k: int, features: Features, queries: Sequence[int], repeated: bool) -> _Images:
        by_row: dict[int, list[int]] = {}
        for place, row in enumerate(features.rows(example.image for example in task.support).tolist()):
            if row >= 0:
                by_row.setdefault(row, []).append(place)
        examples = [places if repeated else places[:1] for places in by_row.values()]
        query_rows = features.rows(task.queries[i].image for i in queries)
        without = [task.queries[i] for i, row in zip(queries, query_rows, strict=True) if row < 0]
        if without:
            more = f"; {len(without) - 1} more queries have none" if len(without) > 1 else ""
            raise ValueError(f"{task.name}, query {without[0].id!r}: {features.broken[str(without[0].image)]}{more}")
        asked, of_query = np.unique(query_rows, return_inverse=True)
        position = {row: i for i, row in enumerate(by_row)}
        own = np.array([position.get(row, -1) for row in asked.tolist()], dtype=np.int64)
        total = sum(map(len, examples))
        for i, place in enumerate(own.tolist()):
            if total - (len(examples[place]) if place >= 0 else 0) < k:
                query = task.queries[queries[int(np.flatnonzero(of_query == i)[0])]]
                counted = "examples" if repeated else "different images"
                itself = ", its own among them" if place >= 0 else ""
                raise ValueError(
                    f"{task.name}, query {query.id!r}: {k} demonstrations were requested, and the support set has "
                    f"{total} {counted}{itself}; request fewer"
                )
        return cls(np.array(list(by_row), dtype=np.int64), examples, asked, of_query, own)


def top_k(
    queries: Tensor,
    take: Callable[[np.ndarray], Tensor],
    support: int,
    k: int,
    own: np.ndarray | None = None,
    device: str | torch.device = "cpu",
) -> np.ndarray:
    """For each query the k rows of largest inner product, exactly: the largest first, equal ones by row.

    Products are compared as real numbers, so the result depends neither on blocks nor on the device. Blocks are
    multiplied in float32, whose error is bounded. Candidates are then multiplied in float64, where a sum of products of
    float16 numbers of length 1 is exact (multiples of 2^-48 that stay below 2). If the products of more than `SPARE`
    rows are too close to the k-th to be ordered by float32, the query is compared with all rows in float64.

    Args:
        queries: (q, D) float16, of length 1.
        take: numbers of rows (m,) -> these rows (m, D) float16, of length 1.
        support: the number of rows: at least k, and k + 1 for a query with an excluded row.
        own: for each query the row to exclude, or -1.

    Returns:
        (q, k) int64. Memory grows with q (D + k), not with the number of rows.
    """
    hidden = torch.from_numpy(np.full(len(queries), -1) if own is None else own)
    with _whole_float32():
        scores, places = _candidates(queries, take, support, min(k + SPARE, support), hidden, device)
    found = np.empty((len(queries), k), dtype=np.int64)
    error = 1.01 * queries.shape[1] * 2.0**-24  # bound for a sum of D products in float32, for vectors of length 1
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
            left_out = scores[here, -1].double() + error  # the most that a row outside the candidates can have
            unsure += (start + torch.nonzero(exact[:, k - 1] <= left_out).flatten()).tolist()
    for start in range(0, len(unsure), RESCORED):
        rest = unsure[start : start + RESCORED]
        found[rest] = _exhaustive(queries[rest], take, support, k, hidden[rest])
    return found


def _candidates(
    queries: Tensor,
    take: Callable[[np.ndarray], Tensor],
    support: int,
    k: int,
    hidden: Tensor,
    device: str | torch.device,
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
    """Computes float32 products in full precision: faster settings round, which the error bound does not cover."""
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
        # Earlier candidates have lower rows, and a stable sort leaves them before equal ones.
        best, order = torch.cat([best, scores], 1).sort(dim=1, descending=True, stable=True)
        places = torch.cat([places, torch.from_numpy(numbers).expand_as(scores)], 1).gather(1, order)[:, :k]
        best = best[:, :k]
    return places.numpy()


def _hide(scores: Tensor, columns: Tensor) -> None:
    """Sets one column of each row to -inf, if it is in the block."""
    rows = torch.nonzero((columns >= 0) & (columns < scores.shape[1])).flatten()
    scores[rows, columns[rows]] = -torch.inf
