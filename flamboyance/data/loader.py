"""Batches of all sources, made in worker processes, and resumed exactly after the last one."""

from __future__ import annotations

import multiprocessing
import os
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from flamboyance.data.documents import Rejected, Source
from flamboyance.data.examples import WorkerProcessor
from flamboyance.data.features import FeatureTable
from flamboyance.data.pairs import PairProcessor
from flamboyance.data.shards import expand
from flamboyance.data.streaming import NoDocuments, Stream, fresh_state, parts_of, redistributed
from flamboyance.data.worker import (
    DECODER_ERRORS,
    PATIENCE,
    WorkerDied,
    death,
    sheltered_start,
    start_worker,
    threads_of_tokenizers,
    unwatch,
)

if TYPE_CHECKING:
    from flamboyance.processing import FlamingoProcessor


class Loader:
    """An endless iterator: each item is a batch of every source, {name: Batch}.

    There are ranks × workers streams (no workers count as one), and items are taken from them in turn. The same number
    of streams gives the same items: 1 rank × 2 workers gives those of 2 ranks × 1 worker, interleaved.

    Args:
        sources: by name. The order of a source's data depends on its name.
        processor: the model's; a `PairProcessor` makes batches of another kind.
        seed: of order and augmentation, 0 or more.
        workers: processes that read and decode; 0: this process.
        prefetch: items that each worker prepares ahead.
        rank, ranks: number of this process among those that train together.
        state: from `merge_states`. With the same number of streams, the items are exactly those that would have
            followed. With another number, or if a source's shards have changed, reading continues at shards that no
            stream had begun; the rest of begun shards, and the records in shuffle buffers, are skipped.
        pin_memory: put batches into page-locked memory, if CUDA is available.
        features: the tower's features, in the place of decoded images.
        frames: the number of the model's time embeddings, and of frames of a video; None for a model of still images.

    Raises:
        ValueError: shards that are not found, or a state that lacks ranks. While iterating: a source without usable
            documents; says what was dropped and why.
        WorkerDied: a worker died, while iterating.
    """

    def __init__(
        self,
        sources: dict[str, Source],
        processor: FlamingoProcessor | PairProcessor,
        *,
        seed: int,
        workers: int,
        prefetch: int = 2,
        rank: int = 0,
        ranks: int = 1,
        state: dict[str, Any] | None = None,
        pin_memory: bool = False,
        features: FeatureTable | None = None,
        frames: int | None = None,
    ) -> None:
        if not sources or seed < 0 or workers < 0 or not 0 <= rank < ranks:
            raise ValueError(
                f"given {len(sources)} sources, seed={seed}, workers={workers}, rank={rank}, ranks={ranks}; expected "
                "one or more sources, no negative number, and rank below ranks"
            )
        self._per_rank, self._rank, self._ranks = max(workers, 1), rank, ranks
        shards = {name: expand(source.shards) for name, source in sources.items()}
        self._shards = {name: len(found) for name, found in shards.items()}
        self._parts = {name: parts_of(len(found), self._per_rank * ranks) for name, found in shards.items()}
        self._prints = {name: _fingerprint(seed, source, shards[name]) for name, source in sources.items()}
        self._items = _items_of(state, rank, ranks)
        self._states = {number: {} for number in range(rank, self._per_rank * ranks, ranks)}
        for name in sources:
            given = _stream_states(state, name, self._prints[name], self._per_rank * ranks, self._parts[name])
            for number, stream in enumerate(given):
                if number in self._states:
                    self._states[number][name] = stream
        self.waited = 0.0
        # torch takes the next item from its first worker, so that gets the stream whose turn it is.
        turns = [(self._items + turn) % self._per_rank * ranks + rank for turn in range(self._per_rank)]
        pairs = isinstance(processor, PairProcessor)
        worker = processor if pairs else WorkerProcessor.of(processor, features, frames)
        dataset = _Batches(sources, shards, worker, seed, self._per_rank * ranks, turns, self._states)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "This DataLoader will create")  # torch's advice on the number of cores
            loader = DataLoader(
                dataset,
                batch_size=None,
                num_workers=workers,
                prefetch_factor=max(prefetch, 1) if workers else None,
                multiprocessing_context="fork"
                if workers and "fork" in multiprocessing.get_all_start_methods()
                else None,
                worker_init_fn=partial(start_worker, parent=os.getpid()),
                collate_fn=_uncollated,
                pin_memory=pin_memory and torch.cuda.is_available(),
                generator=torch.Generator(),  # without it, torch draws from the run's random numbers
            )
        others = set(multiprocessing.active_children())
        with threads_of_tokenizers(off=workers > 0), sheltered_start(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "This DataLoader will create")
            self._iterator: Iterator[_Item | _Failure] | None = iter(loader)
        unwatch(self._iterator)
        self._workers = [process for process in multiprocessing.active_children() if process not in others]

    def __iter__(self) -> Loader:
        return self

    def __next__(self) -> dict[str, Any]:
        if self._iterator is None:
            raise ValueError("the loader is closed; make a new one")
        started = time.perf_counter()
        try:
            item = next(self._iterator)
        except (RuntimeError, OSError, EOFError) as error:
            # The type of the error depends on what the dead worker was about to send.
            noticed = "DataLoader worker" in str(error)
            died = death(self._workers, 0 if noticed else PATIENCE)
            self.close()
            if not died and not noticed:
                raise
            raise WorkerDied(
                f"a data worker died: {died or error}. If it was killed, memory may have run out (also in /dev/shm): "
                "use fewer workers, a smaller prefetch, or a smaller shuffle buffer in the sources"
            ) from error
        if isinstance(item, _Failure):
            self.close()
            raise ValueError(item.message)
        self.waited = time.perf_counter() - started
        self._items += 1
        self._states[item.stream] = item.states
        return item.batches

    @property
    def drops(self) -> Counter[tuple[str, str]]:
        """Number of records that this rank's streams dropped up to the last item, by (source, reason)."""
        found: Counter[tuple[str, str]] = Counter()
        for states in self._states.values():
            for name, state in states.items():
                found.update({(name, reason): count for reason, count in state["drops"].items()})
        return found

    @property
    def passes(self) -> dict[str, int]:
        """Number of passes over each source that all streams together have begun, 1 or more. With replacement
        they are counted by the number of shards that were read."""
        found = dict.fromkeys(self._shards, 0)
        for states in self._states.values():
            for name, state in states.items():
                found[name] = max(found[name], state["ordinal"] // (self._shards[name] * self._parts[name]) + 1)
        return found

    def state(self) -> dict[str, Any]:
        """The state of this rank's streams after the last item; JSON-able."""
        return {
            "streams": self._per_rank * self._ranks,
            "ranks": self._ranks,
            "items": {str(self._rank): self._items},
            "sources": dict(self._prints),
            "parts": dict(self._parts),
            "states": {str(number): states for number, states in self._states.items()},
        }

    def close(self) -> None:
        """Terminates the workers."""
        for process in self._workers:
            process.terminate()
        self._iterator, self._workers = None, []


def merge_states(states: list[dict[str, Any]]) -> dict[str, Any]:
    """The states of all ranks, after the same number of items -> the `state` for every rank.

    Raises:
        ValueError: they are not of one run.
    """

    def run(state: dict[str, Any]) -> tuple[Any, ...]:
        return state["streams"], state["ranks"], state["sources"]

    if not states or any(run(state) != run(states[0]) for state in states):
        raise ValueError(f"the states of {len(states)} ranks are not of one run: expected the same sources and streams")
    merged = {**states[0], "items": {}, "states": {}}
    for state in states:
        merged["items"].update(state["items"])
        merged["states"].update(state["states"])
    return merged


def _items_of(state: dict[str, Any] | None, rank: int, ranks: int) -> int:
    """Number of items in a state that fall to this rank."""
    if state is None:
        return 0
    given, before = {int(number): items for number, items in state["items"].items()}, state["ranks"]
    if len(given) != before or len(state["states"]) != state["streams"]:
        raise ValueError(
            f"the state holds rank(s) {sorted(given)} of {before}; expected the result of merge_states for all ranks"
        )
    total = sum(given.values())
    if any(items != _share(total, number, before) for number, items in given.items()):
        raise ValueError(f"the ranks' states were taken after different numbers of items: {given} by rank")
    return _share(total, rank, ranks)


def _share(total: int, rank: int, ranks: int) -> int:
    """Number of a rank's items among the first `total`, which are dealt in turn."""
    return (total - rank + ranks - 1) // ranks


def _stream_states(
    state: dict[str, Any] | None, name: str, fingerprint: int, streams: int, parts: int
) -> list[dict[str, Any]]:
    if state is None or name not in state["sources"]:
        return [fresh_state(number) for number in range(streams)]
    before = [state["states"][str(number)][name] for number in range(state["streams"])]
    parts_before = state.get("parts", {}).get(name, 1)  # earlier versions read every shard whole
    if state["sources"][name] != fingerprint:
        changed = f"the seed or the shards of '{name}' have changed"
    elif streams != len(before):
        changed = ""
    elif parts != parts_before:
        changed = f"'{name}' has fewer shards than streams, and was read by an earlier version"
    else:
        return before
    if changed:
        warnings.warn(f"{changed}: it does not resume exactly, but at another shard", stacklevel=3)
    return redistributed(before, streams, parts_before, parts)


def _fingerprint(seed: int, source: Source, shards: list[str]) -> int:
    """A checksum of what decides the order. The shards may move to another folder."""
    names = [shard.rstrip("/").rpartition("/")[2] for shard in shards]
    return zlib.crc32(repr((seed, source.replacement, names)).encode())


@dataclass(frozen=True)
class _Item:
    stream: int
    batches: dict[str, Any]
    states: dict[str, dict[str, Any]]

    def pin_memory(self) -> _Item:
        return _Item(self.stream, {name: batch.pin_memory() for name, batch in self.batches.items()}, self.states)


@dataclass(frozen=True)
class _Failure:
    message: str


def _uncollated(item: Any) -> Any:
    return item


@dataclass(frozen=True, eq=False)
class _Batches(IterableDataset):
    """The items of the stream of the worker that iterates.

    Attributes:
        turns: number of the stream of each worker.
        states: by stream and source.
    """

    sources: dict[str, Source]
    shards: dict[str, list[str]]
    processor: WorkerProcessor | PairProcessor
    seed: int
    streams: int
    turns: list[int]
    states: dict[int, dict[str, dict[str, Any]]]

    def __iter__(self) -> Iterator[_Item | _Failure]:
        worker = get_worker_info()
        number = self.turns[worker.id if worker else 0]
        streams = {
            name: Stream(name, source, self.shards[name], self.seed, number, self.streams, self.states[number][name])
            for name, source in self.sources.items()
        }
        while True:
            try:
                batches = {name: self._batch(self.sources[name], stream) for name, stream in streams.items()}
            except NoDocuments as error:
                yield _Failure(str(error))
                return
            yield _Item(number, batches, {name: stream.state() for name, stream in streams.items()})

    def _batch(self, source: Source, stream: Stream) -> Any:
        examples: list[Any] = []
        for record, rng in stream:
            try:
                example = self.processor.example(source.document(record, rng), source, rng)
            except Rejected as rejected:
                stream.dropped(rejected.reason)
            except DECODER_ERRORS as error:
                stream.dropped(type(error).__name__, f"{record.key}: {error}")
            else:
                stream.accepted()
                examples.append(example)
                if len(examples) == source.batch_size:
                    break
        return self.processor.collate(examples)
