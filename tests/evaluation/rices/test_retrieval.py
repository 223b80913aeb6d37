"""Retrieval is exact, whatever the blocks; ties, duplicates and the query's own image."""

import itertools
import resource
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from flamboyance import templates
from flamboyance.evaluation import shots
from flamboyance.evaluation.rices import retrieval
from flamboyance.evaluation.rices.feature_store import Features
from flamboyance.evaluation.task import Example, Metric, Score, Task
from tests.processes import Child

NO_METRIC = Metric("none", lambda examples, predictions: Score(0.0, {}, (0.0, 0.0)))


def unit(rows: np.ndarray) -> torch.Tensor:
    """(n, D) float16 of length 1."""
    return torch.from_numpy(rows / np.linalg.norm(rows, axis=1, keepdims=True)).half()


def oracle(queries: torch.Tensor, support: torch.Tensor, k: int, own: Sequence[int] | None = None) -> np.ndarray:
    """By integers: float16 numbers are multiples of 2^-24."""
    a, b = ((x.double() * 2**24).numpy().astype(np.int64).astype(object) for x in (queries, support))
    found = []
    for i, row in enumerate(a):
        products = [(-int(sum(row * other)), j) for j, other in enumerate(b) if own is None or j != own[i]]
        found.append([j for _, j in sorted(products)[:k]])
    return np.array(found)


def top_k(queries: torch.Tensor, support: torch.Tensor, k: int, own: Sequence[int] | None = None) -> np.ndarray:
    hidden = None if own is None else np.array(own)
    return retrieval.top_k(queries, lambda rows: support[torch.from_numpy(rows)], len(support), k, hidden)


def small_blocks(monkeypatch, support: int, queries: int, rescored: int, spare: int) -> None:
    for name, value in (("SUPPORT", support), ("QUERIES", queries), ("RESCORED", rescored), ("SPARE", spare)):
        monkeypatch.setattr(retrieval, name, value)


@pytest.mark.parametrize("kind", ["spread", "close", "tied"])
@pytest.mark.parametrize("blocks", [(8192, 1024, 128, 16), (7, 3, 2, 1), (64, 5, 4, 2)])
def test_top_k_is_exact(monkeypatch, kind, blocks):
    small_blocks(monkeypatch, *blocks)
    random = np.random.default_rng(0)
    rows = random.standard_normal((230, 48))
    if kind == "close":  # products that differ by less than float32 can tell
        rows = random.standard_normal(48) + 1e-4 * rows
    support = unit(rows)
    if kind == "tied":
        support = support[torch.from_numpy(random.integers(0, 12, 230))]
    queries = torch.cat([unit(random.standard_normal((20, 48))), support[:10]])
    own = [*[-1] * 20, *range(10)]
    for k in (1, 5, 33):
        assert np.array_equal(top_k(queries, support, k), oracle(queries, support, k))
        assert np.array_equal(top_k(queries, support, k, own), oracle(queries, support, k, own))
    assert np.array_equal(top_k(queries, support, 229, own), oracle(queries, support, 229, own))


def test_float32_alone_would_not_do():
    """The case above can fail: sorted by float32's products, it comes out otherwise."""
    random = np.random.default_rng(0)
    support = unit(random.standard_normal(48) + 1e-4 * random.standard_normal((230, 48)))
    queries = unit(random.standard_normal((20, 48)))
    plain = (queries.float() @ support.float().T).argsort(dim=1, descending=True, stable=True)[:, :33]
    assert not np.array_equal(plain.numpy(), oracle(queries, support, 33))


def test_top_k_does_not_depend_on_who_else_asks():
    random = np.random.default_rng(1)
    queries, support = unit(random.standard_normal((40, 32))), unit(random.standard_normal((9000, 32)))
    together = top_k(queries, support, 8)
    for size in (1, 3, 16):
        parts = [top_k(queries[i : i + size], support, 8) for i in range(0, 40, size)]
        assert np.array_equal(np.concatenate(parts), together)


def test_a_setting_of_faster_products_changes_nothing():
    random = np.random.default_rng(1)
    queries, support = unit(random.standard_normal((4, 32))), unit(random.standard_normal((300, 32)))
    torch.set_float32_matmul_precision("medium")
    try:
        assert np.array_equal(top_k(queries, support, 8), oracle(queries, support, 8))
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def growth(queries: int, rows: int, wide: int, k: int) -> None:
    """Prints by how much (KiB) the process grows when it compares with so many rows."""
    part = torch.nn.functional.normalize(torch.randn(4096, wide), dim=1).half()

    def take(places: np.ndarray) -> torch.Tensor:
        return part[torch.from_numpy(places % 4096)]

    retrieval.top_k(part[:queries], take, 1000, k)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    retrieval.top_k(part[:queries], take, rows, k)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, flush=True)


def test_memory_does_not_grow_with_the_support(tmp_path):
    """All scores at once would take 500 x 131,072 x 4 = 262 MB; it takes a block of them, and what is kept."""
    child = Child(growth, 500, 131072, 64, 32, log=tmp_path / "log")
    assert child.wait() == 0, child.printed
    assert int(child.printed) < 80_000  # KiB


# ---- tasks ----------------------------------------------------------------------------------------------------------


def features(rows: torch.Tensor, images: dict[str, int], parts: int = 1) -> Features:
    """As `build` gives them: images by name, -1 for a broken one."""
    broken = {name: f"{name} is damaged" for name, row in images.items() if row < 0}
    return Features(list(rows.chunk(parts)), images, broken)


def task(support: Sequence[str], queries: Sequence[str]) -> Task:
    """Images by name; every example has an id of its own."""
    shown, asked = (
        [Example(f"{side}{i}", Path(name), f"answer {i}") for i, name in enumerate(names)]
        for side, names in (("s", support), ("q", queries))
    )
    return Task("toy", "Toy", templates.caption, shown, asked, NO_METRIC)


def test_retrieval_shows_an_image_once_the_most_similar_last_and_never_the_querys_own():
    random = np.random.default_rng(2)
    rows = unit(random.standard_normal((6, 16)))
    images = {"a": 0, "b": 1, "c": 2, "copy of a": 0, "bad": -1, "far/a": 0, "q": 4, "d": 3}
    found = features(rows, images, parts=3)
    # Three questions about a, a copy of it under another name, one that is broken.
    one = task(["a", "b", "a", "bad", "copy of a", "c", "a", "d"], ["q", "far/a", "b"])
    first = {0: 0, 1: 1, 2: 5, 3: 7}  # image: the first example that has it
    for query, own, chosen in zip([4, 0, 1], [None, 0, 1], shots.select(one, 3, "rices", features=found), strict=True):
        candidates = [i for i in first if i != own]
        order = oracle(rows[[query]], rows[candidates], 3)[0]
        assert chosen == tuple(first[candidates[i]] for i in order)[::-1]
    # 0 shots: the nearest two, whose text is shown.
    nearest = [chosen[-2:] for chosen in shots.select(one, 3, "rices", features=found)]
    assert shots.select(one, 0, "rices", features=found) == nearest
    # A part of the queries gets what it gets among all.
    assert shots.select(one, 3, "rices", features=found, queries=[2, 0]) == [
        shots.select(one, 3, "rices", features=found)[i] for i in (2, 0)
    ]


def test_equal_images_come_in_the_order_of_the_support():
    rows = unit(np.array([[1.0, 0.2], [1.0, 0.2], [1.0, 0.2], [0.0, 1.0], [1.0, 0.0]]))
    found = features(rows, {"c": 2, "a": 0, "b": 1, "d": 3, "q": 4})
    assert shots.select(task(["d", "c", "a", "b"], ["q"]), 3, "rices", features=found) == [(3, 2, 1)]


def test_the_reference_shows_an_image_again():
    rows = unit(np.array([[1.0, 0.1], [1.0, 0.5], [1.0, 0.9], [1.0, 0.0]]))
    found = features(rows, {"a": 0, "b": 1, "c": 2, "q": 3})
    one = task(["b", "a", "b", "a", "a", "c"], ["q", "a"])
    assert shots.select(one, 3, "rices", protocol="openflamingo", features=found) == [(4, 3, 1), (5, 2, 0)]
    assert shots.select(one, 2, "rices", features=found) == [(0, 1), (5, 0)]


def test_mistakes_name_the_query():
    rows = unit(np.eye(4))
    images = {"a": 0, "b": 1, "q": 3, "bad": -1}
    found = features(rows, images)
    with pytest.raises(ValueError, match=r"toy, query 'q1'.*2 demonstrations.* 2 "):
        shots.select(task(["a", "b", "bad", "a"], ["q", "b"]), 2, "rices", features=found)
    with pytest.raises(ValueError, match=r"query 'q0'.*3 demonstrations.* 2 "):
        shots.select(task(["a", "b", "a"], ["q"]), 3, "rices", features=found)
    with pytest.raises(ValueError, match=r" 4 examples"):
        shots.select(task(["a", "b", "a", "a"], ["a"]), 2, "rices", protocol="openflamingo", features=found)
    with pytest.raises(ValueError, match=r"query 'q1'.*bad"):
        shots.select(task(["a", "b"], ["q", "bad"]), 1, "rices", features=found)
    with pytest.raises(ValueError, match="unheard of"):
        shots.select(task(["a", "unheard of"], ["q"]), 1, "rices", features=found)
    with pytest.raises(ValueError, match="features"):
        shots.select(task(["a"], ["q"]), 1, "rices")


def test_rows_of_many_parts_are_taken_from_each():
    rows = unit(np.random.default_rng(0).standard_normal((50, 8)))
    found = features(rows, {}, parts=7)
    for numbers in itertools.chain([[]], ([i, 49, 0, i] for i in range(50))):
        assert torch.equal(found.take(np.array(numbers, dtype=np.int64)), rows[numbers])
