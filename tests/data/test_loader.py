"""Batches from worker processes: exactly resumed, and every way in which a process can end."""

import gc
import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flamboyance import FlamingoProcessor
from flamboyance.data.batch import Batch
from flamboyance.data.documents import Document, Record, Rejected, Source
from flamboyance.data.formats.pairs import Pairs
from flamboyance.data.loader import Loader, merge_states
from flamboyance.data.worker import WorkerDied
from flamboyance.images import ImageProcessor
from tests.data.files import pair_shards
from tests.processes import command_of, until
from tests.tiny import tiny_tokenizer

PROCESSOR = FlamingoProcessor(ImageProcessor.clip(16), tiny_tokenizer())


class Picky(Pairs):
    """Rejects at random, and fails in ways that it should not."""

    def document(self, record: Record, rng: np.random.Generator) -> Document:
        luck = rng.random()
        if luck < 0.2:
            raise Rejected("bad luck")
        if luck < 0.3:
            raise KeyError("worse luck")
        return super().document(record, rng)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Source]:
    folder = tmp_path_factory.mktemp("pairs")
    a, b = pair_shards(folder / "a", (5, 8, 3, 6)), pair_shards(folder / "b", (4, 2, 9))
    return {
        "a": Pairs(shards=a, batch_size=3, shuffle=7, leading_space=0.5),
        "b": Picky(shards=b, batch_size=2, shuffle=11, replacement=True),
        "c": Pairs(shards=b, batch_size=1, shuffle=0),
    }


def make(sources: dict[str, Source], workers: int = 0, **options: Any) -> Loader:
    return Loader(sources, PROCESSOR, **({"seed": 5, "workers": workers} | options))


def content(item: dict[str, Batch]) -> dict[str, Any]:
    """All of an item, to compare bit for bit."""
    return {
        name: {
            key: value.numpy().tobytes() if isinstance(value, torch.Tensor) else value
            for key, value in vars(batch).items()
        }
        for name, batch in item.items()
    }


def take(loader: Loader, count: int) -> list[dict[str, Any]]:
    return [content(item) for item in itertools.islice(loader, count)]


def stored(*loaders: Loader) -> dict[str, Any]:
    return json.loads(json.dumps(merge_states([loader.state() for loader in loaders])))


def test_an_item_is_a_batch_of_every_source(sources: dict[str, Source]) -> None:
    item = next(make(sources))
    assert {name: len(batch.input_ids) for name, batch in item.items()} == {"a": 3, "b": 2, "c": 1}
    assert item["a"].images.shape == (3, 3, 16, 16) and item["a"].images.dtype == torch.uint8
    assert item["a"].media_counts == (1, 1, 1) and item["a"].targets > 3


@pytest.mark.parametrize("workers", [0, 1, 2, 5])
def test_resumed_at_any_item_the_rest_is_the_same(sources: dict[str, Source], workers: int) -> None:
    loader = make(sources, workers, prefetch=3)
    states, items, drops = [stored(loader)], [], [loader.drops]
    for item in itertools.islice(loader, 24):
        items.append(content(item))
        states.append(stored(loader))
        drops.append(loader.drops)
    loader.close()
    assert len({json.dumps(item["a"], default=str) for item in items}) == 24
    for cut in [0, 1, 2, 5, 8, 13] if workers < 2 else [0, 1, 2, 8, 13]:
        resumed = make(sources, workers, state=states[cut])
        assert resumed.drops == drops[cut] and stored(resumed) == states[cut]
        assert take(resumed, 24 - cut) == items[cut:], f"after {cut} items"
        assert resumed.drops == drops[24] and stored(resumed) == states[24]
        resumed.close()


def test_no_worker_gives_what_one_gives(sources: dict[str, Source]) -> None:
    assert take(make(sources, 1), 12) == take(make(sources, 0), 12)


def test_streams_give_the_same_however_they_are_spread(sources: dict[str, Source]) -> None:
    one = make(sources, 2)
    items = take(one, 12)
    two = [make(sources, 1, rank=rank, ranks=2) for rank in range(2)]
    dealt = [take(loader, 6) for loader in two]
    assert [dealt[k % 2][k // 2] for k in range(12)] == items
    # … and go on so when they are spread otherwise in between.
    assert merge_states([one.state()])["states"] == merge_states([loader.state() for loader in two])["states"]
    rest = take(one, 8)
    four = [make(sources, 1, rank=rank, ranks=2, state=stored(one)) for rank in range(2)]
    back = make(sources, 2, state=stored(*two))
    assert take(back, 8) == rest
    assert take(four[0], 2) + take(four[1], 2) != rest[:4]  # `one` has gone on meanwhile


def test_three_ranks_are_merged_and_resumed(sources: dict[str, Source]) -> None:
    ranks = [make(sources, 0, rank=rank, ranks=3) for rank in range(3)]
    for loader in ranks:
        take(loader, 5)
    state = stored(*ranks)
    rest = [take(loader, 4) for loader in ranks]
    again = make(sources, 3, state=state)
    assert take(again, 12) == [rest[k % 3][k // 3] for k in range(12)]


def test_another_number_of_streams_goes_on_elsewhere(sources: dict[str, Source]) -> None:
    loader = make(sources, 0)
    take(loader, 3)
    drops, state = loader.drops, stored(loader)
    others = [make(sources, 0, rank=rank, ranks=2, state=state) for rank in range(2)]
    assert sum((other.drops for other in others), Counter()) == drops
    begun = {name: one["ordinal"] for name, one in state["states"]["0"].items()}
    for other in others:
        assert all(
            one["ordinal"] > begun[name] for one in other.state()["states"].values() for name, one in one.items()
        )
        assert len(take(other, 5)) == 5


def test_a_state_of_other_shards_warns_and_goes_on(sources: dict[str, Source]) -> None:
    loader = make({"a": sources["a"]})
    take(loader, 2)
    changed = {"a": Pairs(shards=sources["b"].shards, batch_size=1), "new": sources["c"]}
    with pytest.warns(UserWarning, match="shards of 'a'"):
        other = make(changed, state=stored(loader))
    assert len(take(other, 3)) == 3
    with pytest.warns(UserWarning, match="seed"):
        make({"a": sources["a"]}, seed=6, state=stored(loader))


def test_a_state_of_an_earlier_version_resumes_exactly_with_enough_shards(
    sources: dict[str, Source],
) -> None:
    loaders = [make({"a": sources["a"]}, rank=rank, ranks=2) for rank in range(2)]
    for loader in loaders:
        take(loader, 4)
    state = stored(*loaders)
    del state["parts"]
    again = [make({"a": sources["a"]}, rank=rank, ranks=2, state=state) for rank in range(2)]
    assert [take(loader, 3) for loader in again] == [take(loader, 3) for loader in loaders]


def test_a_state_of_an_earlier_version_with_few_shards_warns_and_goes_on(sources: dict[str, Source]) -> None:
    loaders = [make({"c": sources["c"]}, rank=rank, ranks=4) for rank in range(4)]
    state = stored(*loaders)
    del state["parts"]
    with pytest.warns(UserWarning, match="'c' has fewer shards"):
        assert len(take(make({"c": sources["c"]}, rank=1, ranks=4, state=state), 5)) == 5


def test_a_shard_that_streams_share_is_passed_over_once_all_have_read_their_part(tmp_path: Path) -> None:
    shared = {"d": Pairs(shards=pair_shards(tmp_path, (12,)), batch_size=1, shuffle=0)}
    loader = make(shared, rank=3, ranks=4)
    assert loader.passes == {"d": 1}
    take(loader, 3)
    assert loader.passes == {"d": 1}
    take(loader, 1)
    assert loader.passes == {"d": 2}


def test_a_source_more_does_not_change_the_others(sources: dict[str, Source]) -> None:
    alone = take(make({"a": sources["a"]}), 6)
    assert [item["a"] for item in take(make(sources), 6)] == [item["a"] for item in alone]


def test_states_that_do_not_belong_together(sources: dict[str, Source]) -> None:
    ranks = [make(sources, rank=rank, ranks=2) for rank in range(2)]
    with pytest.raises(ValueError, match=r"\[0\] of 2.*merge_states"):
        make(sources, state=ranks[0].state())
    next(ranks[1])
    with pytest.raises(ValueError, match="items"):
        make(sources, state=stored(*ranks))
    with pytest.raises(ValueError, match="2 ranks"):
        merge_states([ranks[0].state(), make(sources).state()])


@pytest.mark.parametrize("options", [{"seed": -1}, {"workers": -1}, {"rank": 2, "ranks": 2}])
def test_settings_that_cannot_be(sources: dict[str, Source], options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="negative"):
        make(sources, **options)


def test_the_seed_decides(sources: dict[str, Source]) -> None:
    assert take(make(sources, seed=1), 3) == take(make(sources, seed=1), 3) != take(make(sources, seed=2), 3)


def test_drops_are_counted_by_source_and_reason(sources: dict[str, Source]) -> None:
    loader = make(sources, 1)
    take(loader, 30)
    assert set(loader.drops) == {("b", "bad luck"), ("b", "KeyError")}
    assert 2 < loader.drops["b", "bad luck"] < 30


def test_the_runs_own_random_numbers_are_left_alone(sources: dict[str, Source]) -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    take(make(sources, 1), 2)
    assert torch.rand(1) == expected


def test_waiting_is_measured(sources: dict[str, Source]) -> None:
    class Slow(Pairs):
        def document(self, record: Record, rng: np.random.Generator) -> Document:
            time.sleep(0.05)
            return super().document(record, rng)

    loader = make({"slow": Slow(shards=sources["a"].shards, batch_size=4)})
    next(loader)
    assert loader.waited > 0.2


# Ends


@pytest.mark.parametrize("workers", [0, 2])
def test_a_source_of_which_nothing_can_be_used(sources: dict[str, Source], workers: int) -> None:
    class Strict(Pairs):
        def document(self, record: Record, rng: np.random.Generator) -> Document:
            raise Rejected("never good enough")

    loader = make(sources | {"strict": Strict(shards=sources["a"].shards, batch_size=1)}, workers)
    with pytest.raises(ValueError, match=r"'strict'.*never good enough: \d+") as error:
        next(loader)
    assert "Traceback" not in str(error.value)
    with pytest.raises(ValueError, match="closed"):
        next(loader)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_mistake_in_a_source_is_not_a_damaged_document(sources: dict[str, Source], workers: int) -> None:
    class Unfinished(Pairs):
        def document(self, record: Record, rng: np.random.Generator) -> Document:
            raise ImportError("needs scipy")

    with pytest.raises(ImportError, match="scipy"):
        next(make({"x": Unfinished(shards=sources["a"].shards, batch_size=1)}, workers))


def children(parent: int | None = None) -> set[int]:
    """Processes that `parent` (this one) has started."""
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(parent or os.getpid())], capture_output=True, check=False)
    return {pid for pid in map(int, found.stdout.split()) if Path(f"/proc/{pid}").exists()}


def test_a_killed_worker_is_an_error_that_says_so(sources: dict[str, Source]) -> None:
    before = children()
    loader = make(sources, 2)
    next(loader)
    victim = sorted(children() - before)[0]
    os.kill(victim, signal.SIGKILL)
    with pytest.raises(WorkerDied, match=rf"worker {victim} .*SIGKILL.*memory"):
        list(loader)
    until(lambda: not children() - before)


@pytest.mark.parametrize("error", [ConnectionResetError(104, "reset"), EOFError(), FileNotFoundError(2, "no socket")])
def test_a_death_in_the_middle_of_a_batch_is_an_error_that_says_so(
    sources: dict[str, Source], error: Exception
) -> None:
    class Broken:
        """An iterator whose worker dies while its batch is being received."""

        def __next__(self) -> None:
            os.kill(victim, signal.SIGKILL)
            raise error

    before = children()
    loader = make(sources, 2)
    victim = sorted(children() - before)[1]
    real, loader._iterator = loader._iterator, Broken()  # ty: ignore[invalid-assignment]
    with pytest.raises(WorkerDied, match=rf"worker {victim} .*SIGKILL"):
        next(loader)
    del real


def test_an_error_of_a_file_is_no_death(sources: dict[str, Source]) -> None:
    class Unreadable:
        def __next__(self) -> None:
            raise PermissionError(13, "not allowed")

    loader = make(sources)
    loader._iterator = Unreadable()  # ty: ignore[invalid-assignment]
    with pytest.raises(PermissionError):
        next(loader)


def test_a_worker_that_dies_raises_only_where_an_item_is_asked_for(sources: dict[str, Source]) -> None:
    loader = make(sources, 2)
    next(loader)
    for process in multiprocessing.active_children():
        os.kill(process.pid or 0, signal.SIGKILL)
    end = time.monotonic() + 1
    while time.monotonic() < end:  # the SIGCHLDs come here, and in what follows
        time.sleep(0.001)
    loader.close()
    gc.collect()


def test_workers_told_to_end_at_birth_do_not_count_as_killed(sources: dict[str, Source]) -> None:
    for _ in range(5):
        others = set(multiprocessing.active_children())
        loader = make(sources, 2)
        workers = set(multiprocessing.active_children()) - others
        loader.close()
        for process in workers:
            process.join(300)
        assert [process.exitcode for process in workers] == [0, 0]


def test_signals_to_the_whole_group_leave_workers_to_their_parent(sources: dict[str, Source]) -> None:
    before = children()
    loader = make(sources, 1)
    first = take(loader, 1)
    (worker,) = children() - before
    for name in ("TERM", "INT"):
        subprocess.run(["kill", f"-{name}", str(worker)], check=True)  # not from the parent
    time.sleep(0.2)
    assert first + take(loader, 9) == take(make(sources, 0), 10)
    loader.close()
    until(lambda: not children() - before)


def test_close_ends_workers_that_are_busy(sources: dict[str, Source]) -> None:
    class Stuck(Pairs):
        def document(self, record: Record, rng: np.random.Generator) -> Document:
            time.sleep(600)
            raise AssertionError

    before = children()
    loader = make({"stuck": Stuck(shards=sources["a"].shards, batch_size=1)}, 1)
    until(lambda: children() - before)
    time.sleep(0.5)
    loader.close()
    until(lambda: not children() - before)


def test_workers_end_with_their_parent(sources: dict[str, Source], tmp_path: Path) -> None:
    code = f"""
import os, signal
from tests.data.test_loader import PROCESSOR, make, children
from flamboyance.data.formats.pairs import Pairs
from flamboyance.data.worker import WorkerDied
if __name__ == "__main__":
    loader = make({{"a": Pairs(shards={sources["a"].shards!r}, batch_size=3)}}, 2, prefetch=50)
    next(loader)
    print(*children(), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=600)
    workers = [int(pid) for pid in run.stdout.split()]
    assert len(workers) >= 2, run.stderr

    until(lambda: not any(map(command_of, workers)))
