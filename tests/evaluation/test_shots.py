"""Which demonstrations are drawn: on what that depends, and on what it does not."""

import itertools
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader, Subset
from torch.utils.data.distributed import DistributedSampler

from flamboyance import templates
from flamboyance.evaluation import shots
from flamboyance.evaluation.shots import choose_queries, permutations, select
from flamboyance.evaluation.task import Example, Metric, Score, Task

NO_METRIC = Metric("none", lambda examples, predictions: Score(0.0, {}, (0.0, 0.0)))


def toy(support: int = 100, queries: int = 30, answers: Sequence[str] = ("cat", "dog", "bird")) -> Task:
    shown = [Example(f"s{i}", Path(f"train/{i}.jpg"), answers[i % len(answers)]) for i in range(support)]
    asked = [Example(f"q{i}", Path(f"test/{i}.jpg"), answers[i % len(answers)]) for i in range(queries)]
    return Task("toy", "Toy", templates.classification, shown, asked, NO_METRIC, labels=tuple(sorted(set(answers))))


def among_themselves(task: Task) -> Task:
    """The queries are the support set."""
    return replace(task, queries=task.support)


@pytest.mark.parametrize("mode", ["random", "fixed", "balanced"])
def test_a_draw_depends_on_seed_and_query_alone(mode):
    task = toy()
    every = select(task, 4, mode, seed=3)
    assert len(every) == 30
    for chosen in every:
        assert len(set(chosen)) == 4 and set(chosen) <= set(range(100))
    # In another order, among fewer, one at a time, by places in the whole.
    assert select(replace(task, queries=task.queries[::-1]), 4, mode, seed=3) == every[::-1]
    assert select(replace(task, queries=task.queries[7:9]), 4, mode, seed=3) == every[7:9]
    assert select(task, 4, mode, seed=3, queries=[20, 5]) == [every[20], every[5]]
    assert select(task, 4, mode, seed=4) != every
    assert len(set(every)) == (1 if mode == "fixed" else 30)
    # 0 shots: two, whose text is shown.
    assert select(task, 0, mode, seed=3) == select(task, 2, mode, seed=3)


def test_draws_stay_what_they_are():
    """Numbers that were published for a seed can be had again: in other versions of Python too."""
    task = toy()
    assert select(task, 4, seed=42)[:2] == [(74, 93, 89, 80), (45, 12, 81, 26)]
    assert select(task, 4, "fixed", seed=42)[0] == (30, 25, 74, 48)
    assert select(task, 4, "balanced", seed=42)[:2] == [(32, 93, 19, 64), (99, 52, 59, 43)]
    assert choose_queries(task, 5, 42) == [3, 11, 18, 23, 27]
    assert permutations(4, 3, 42, "q0") == [(0, 1, 2, 3), (0, 1, 3, 2), (3, 2, 1, 0)]


@pytest.mark.parametrize("mode", ["random", "fixed"])
def test_more_shots_are_the_same_and_more(mode):
    task = toy()
    most = select(task, 32, mode)
    for number in (1, 4, 16):
        assert select(task, number, mode) == [chosen[:number] for chosen in most]
    assert {len(set(chosen)) for chosen in most} == {32}


def test_random_takes_every_demonstration_as_often():
    task = toy(support=10, queries=3000)
    counts = Counter(itertools.chain.from_iterable(select(task, 3)))
    assert set(counts) == set(range(10))
    assert all(abs(count - 900) < 5 * (900 * 0.7) ** 0.5 for count in counts.values())
    places = Counter(chosen[0] for chosen in select(task, 3))
    assert all(abs(count - 300) < 5 * 270**0.5 for count in places.values())


@pytest.mark.parametrize("protocol", ["papers", "openflamingo"])
@pytest.mark.parametrize("mode", ["random", "fixed", "balanced"])
def test_a_querys_own_image_is_never_shown(mode, protocol):
    task = among_themselves(toy(support=12))
    twice = replace(task, support=[*task.support, *(replace(one, id=f"again {one.id}") for one in task.support)])
    for seed in range(20):
        for i, chosen in enumerate(select(twice, 20, mode, seed, protocol)):
            assert len(set(chosen)) == 20
            assert i not in {place % 12 for place in chosen}
        # `fixed` differs for those alone whose own image is in it.
        fixed = select(twice, 4, "fixed", seed, protocol)
        (usual, _), *_ = Counter(fixed).most_common(1)
        assert {i for i, chosen in enumerate(fixed) if chosen != usual} == {place % 12 for place in usual}


@pytest.mark.parametrize("mode", ["random", "fixed", "balanced"])
def test_none_of_several_images_is_shown_again(mode):
    """Pairs in both orders, behind a legend that all examples share."""
    pairs = [(a, b) for a in range(6) for b in (a - 1, a + 1) if b in range(6)]
    shown = [
        Example(f"{a} {b}", Path("legend.png"), "no" if a < b else "yes", further=(Path(f"{a}.png"), Path(f"{b}.png")))
        for a, b in pairs
    ]
    task = replace(toy(answers=("no", "yes")), support=shown, queries=shown)
    for seed in range(10):
        for pair, chosen in zip(pairs, select(task, 3, mode, seed), strict=True):
            assert all(set(pair).isdisjoint(pairs[place]) for place in chosen)
    alike = [one.showing([Path("legend.png")] * 3) for one in shown]
    with pytest.raises(ValueError, match="10 of them with its own image"):
        select(replace(task, support=alike, queries=alike), 3, mode)


def test_balanced_takes_as_many_of_each_label_as_can_be():
    task = toy(support=99)
    for k, counts in ((3, [1, 1, 1]), (6, [2, 2, 2]), (7, [2, 2, 3]), (8, [2, 3, 3])):
        drawn = select(task, k, "balanced")
        labels = [[task.support[i].answer for i in chosen] for chosen in drawn]
        assert all(sorted(Counter(one).values()) == counts for one in labels)
        if k != 3:
            assert len({tuple(one) for one in labels}) > 15  # in no order of labels, and the odd ones by lot
    few = replace(task, support=[*task.support[:40:3], task.support[1], task.support[2], task.support[5]])
    for chosen in select(few, 10, "balanced"):  # one dog, two birds, the rest cats
        assert Counter(few.support[i].answer for i in chosen) == {"cat": 7, "dog": 1, "bird": 2}
    many = toy(support=200, answers=[f"class {i}" for i in range(50)])
    for chosen in select(many, 32, "balanced"):
        assert len({many.support[i].answer for i in chosen}) == 32
    # A query's own image is not counted.
    own = among_themselves(toy(support=6))
    for query, chosen in zip(own.queries, select(own, 5, "balanced"), strict=True):
        others = sorted({"cat", "dog", "bird"} - {query.answer})
        assert Counter(own.support[i].answer for i in chosen) == {query.answer: 1, others[0]: 2, others[1]: 2}


def test_queries_are_chosen_by_the_seed_and_kept_in_order():
    task = toy(queries=200)
    some = choose_queries(task, 50, 0)
    assert len(set(some)) == 50 and some == sorted(some)
    assert set(choose_queries(task, 20, 0)) < set(some)
    assert choose_queries(task, 50, 1) != some
    backwards = choose_queries(replace(task, queries=task.queries[::-1]), 50, 0)
    assert sorted(199 - i for i in backwards) == some
    for number in (None, 200, 1000):
        assert choose_queries(task, number, 0) == list(range(200))
        assert sorted(choose_queries(task, number, 0, "openflamingo")) == list(range(200))


def test_orders_differ_and_begin_with_the_given_one():
    for number, wanted in ((1, 1), (6, 6), (24, 24), (100, 24)):
        orders = permutations(4, number, 0, "q")
        assert len(set(orders)) == len(orders) == wanted
        assert orders[0] == (0, 1, 2, 3)
        assert all(sorted(order) == [0, 1, 2, 3] for order in orders)
    assert permutations(32, 6, 0, "q") == permutations(32, 6, 0, "q") != permutations(32, 6, 0, "p")
    assert len(set(permutations(32, 6, 0))) == 6
    for protocol in ("papers", "openflamingo"):
        assert permutations(0, 6, 0, "q", protocol) == [()]
        assert permutations(1, 6, 0, "q", protocol) == [(0,)]
        assert len(permutations(2, 6, 0, "q", protocol)) == 2
        assert permutations(4, 1, 0, "q", protocol) == [(0, 1, 2, 3)]
    repeated = [permutations(2, 6, seed, "q", "openflamingo") for seed in range(20)]
    assert any(first == second for first, second in repeated)


# ---- the reference's draws ------------------------------------------------------------------------------------------


def reference(train: int, test: int, number: int, shots: int, seed: int, batch_size: int) -> dict[int, tuple[int, ...]]:
    """What open_flamingo 2.0.1's evaluation loop draws on one process, by the calls that it makes."""
    np.random.seed(seed)
    chosen = np.random.choice(test, number, replace=False)
    dataset = Subset(list(range(test)), chosen)
    loader = DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=DistributedSampler(dataset, num_replicas=1, rank=0),
        collate_fn=list,
    )
    query_set = np.random.choice(train, 2048, replace=False)
    query_set = [int(i) for i in query_set]
    random.seed(seed)
    shown = {}
    for batch in loader:
        demonstrations = [random.sample(query_set, shots or 2) for _ in range(len(batch))]
        shown.update(zip(map(int, batch), map(tuple, demonstrations), strict=True))
    return shown


@pytest.mark.parametrize("batch_size", [1, 8])
@pytest.mark.parametrize("number", [None, 57])
@pytest.mark.parametrize("k", [0, 4, 32])
def test_the_references_draws(k, number, batch_size):
    task = toy(support=3000, queries=211)
    for seed in (42, 7):
        expected = reference(3000, 211, number or 211, k, seed, batch_size)
        if number is None:
            drawn = dict(enumerate(select(task, k, "random", seed, "openflamingo")))
        else:
            asked = choose_queries(task, number, seed, "openflamingo")
            drawn = dict(zip(asked, select(task, k, "random", seed, "openflamingo", queries=asked), strict=True))
        assert drawn == expected


def test_the_references_draws_need_its_queries():
    task = toy(support=3000)
    asked = choose_queries(task, 5, 1, "openflamingo")
    with pytest.raises(ValueError, match=r"5 queries.*seed 2"):
        select(task, 4, "random", 2, "openflamingo", queries=asked)
    small = toy(support=10)
    assert {len(set(chosen)) for chosen in select(small, 8, "random", 0, "openflamingo")} == {8}


# ---- mistakes -------------------------------------------------------------------------------------------------------


def test_mistakes_say_what_to_do():
    task = toy(support=5)
    with pytest.raises(ValueError, match=r"'nearest'.*random, fixed, balanced, rices"):
        select(task, 4, "nearest")
    with pytest.raises(ValueError, match="-1 shots"):
        select(task, -1)
    for mode, protocol in itertools.product(("random", "fixed", "balanced"), ("papers", "openflamingo")):
        with pytest.raises(ValueError, match=r"toy, query 'q0'.*6 demonstrations.* 5"):
            select(task, 6, mode, protocol=protocol)
        with pytest.raises(ValueError, match=r"toy, query 's0'.*5 demonstrations.* 5.* 1 "):
            select(among_themselves(task), 5, mode, protocol=protocol)
    with pytest.raises(ValueError, match="random, fixed or rices"):
        select(replace(task, labels=None), 4, "balanced")
    with pytest.raises(ValueError, match="0 queries"):
        choose_queries(task, 0, 0)


def test_reference_pool_of_one_image(monkeypatch):
    monkeypatch.setattr(shots, "REFERENCE_POOL", 3)
    task = toy(support=30, queries=1)
    own = [replace(one, image=task.queries[0].image) for one in task.support[:29]]
    same = replace(task, support=[*own, *[task.support[29]] * 3])
    with pytest.raises(ValueError, match="3 demonstrations"):
        select(same, 3, "random", 0, "openflamingo")
