"""The order of records: the order of shards, a shuffle buffer, and the state that restores a stream.

Every random number is a function of the seed and of a number in the state. So only numbers are saved, and the records
of the buffer are read again from their shards.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from flamboyance.data.documents import Record, Source
from flamboyance.data.shards import records
from flamboyance.data.tar import Damage

BUFFER_BYTES = 256 << 20
"""The limit of a shuffle buffer, in bytes; it applies besides the number of records, and one record may exceed it."""

MOST_DROPPED = 100_000
"""After this many dropped records in a row, a source counts as unusable."""

LEAST_DROPPED = 200
"""After fewer dropped records than this, a source does not count as unusable: some are rejected at random."""

MOST_UNREADABLE = 100
"""After this many shards in a row without a record, a source counts as unreadable."""

_DRAWS = 1024
# The purpose of a random number: the first word of its seed.
_PERMUTATION, _REPLACEMENT, _DRAW, _RECORD = range(1, 5)


class NoDocuments(ValueError):
    """A source gives no documents to train on."""


@dataclass(frozen=True)
class ShardOrder:
    """The order in which shards are read. An ordinal counts the shards that are read, over all streams.

    Args:
        key: of the source, in the seeds of its random numbers.
        count: number of shards of the source.
    """

    seed: int
    key: int
    count: int
    replacement: bool

    def place(self, ordinal: int) -> int:
        """The shard's index in the list of shards."""
        if self.replacement:
            return int(np.random.default_rng([_REPLACEMENT, self.seed, self.key, ordinal]).integers(self.count))
        return int(_permutation(self.seed, self.key, self.count, ordinal // self.count)[ordinal % self.count])

    def epoch(self, ordinal: int) -> int:
        """Number of passes over all shards before this ordinal; 0 with replacement, which has no passes."""
        return 0 if self.replacement else ordinal // self.count


@lru_cache(maxsize=16)
def _permutation(seed: int, key: int, count: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([_PERMUTATION, seed, key, epoch]).permutation(count)


class _Buffered(NamedTuple):
    """A record in the buffer: the `index`-th item of the shard that was read as number `ordinal`, and its bytes."""

    ordinal: int
    index: int
    record: Record
    size: int


class Stream:
    """An endless iterator over (record, its random numbers).

    Stream `number` of `streams` reads every `streams`-th shard. The buffer runs empty at the end of an epoch, so that
    the records of two epochs do not mix.

    Args:
        name: of the source.
        shards: from `expand`.
        state: from `state()` or `fresh_state`.
    """

    def __init__(
        self, name: str, source: Source, shards: Sequence[str], seed: int, number: int, streams: int, state: dict
    ) -> None:
        self.name, self.drops = name, Counter(state["drops"])
        self._shards, self._most, self._streams = shards, max(source.shuffle, 1), streams
        self._outside = getattr(source, "outside", False)  # only users' own data has such paths
        self._order = ShardOrder(seed, source_key(name), len(shards), source.replacement)
        self._draw_key = [_DRAW, seed, source_key(name), number]
        self._ordinal, self._index, self._draws = state["ordinal"], state["index"], state["draws"]
        self._uniform: tuple[int, Any] = (-1, None)
        self._items: Iterator[Record | Damage] | None = None
        self._buffer: list[_Buffered] = []
        self._bytes = self._records = 0  # in the buffer; in the shard that is being read
        self._restore([(ordinal, index) for ordinal, index in state["buffer"]])
        self._accepted()

    def state(self) -> dict[str, Any]:
        """The state that restores the stream at this point: small, JSON-able, and a copy."""
        return {
            "ordinal": self._ordinal,
            "index": self._index,
            "draws": self._draws,
            "buffer": [buffered[:2] for buffered in self._buffer],
            "drops": dict(self.drops),
        }

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> tuple[Record, np.random.Generator]:
        """Raises `NoDocuments` where the records of a whole pass, or very many in a row, gave no document."""
        while len(self._buffer) < self._most and (self._bytes < BUFFER_BYTES or not self._buffer) and self._read():
            pass
        place = self._draw(len(self._buffer))
        drawn, last = self._buffer[place], self._buffer.pop()
        if drawn is not last:
            self._buffer[place] = last
        self._bytes -= drawn.size
        seed = [_RECORD, self._order.seed, self._order.key, drawn.ordinal, drawn.index]
        return drawn.record, np.random.default_rng(seed)

    def accepted(self) -> None:
        """To be called if the last record became an example."""
        if self._begun_since or self._barren or self._passed or self._unreadable:
            self._accepted()

    def dropped(self, reason: str, example: str = "") -> None:
        """To be called if the last record did not become an example."""
        self.drops[reason] += 1
        self._barren[reason] += 1
        self._dropped = True
        self._message = example or self._message
        if self._barren.total() >= MOST_DROPPED:
            raise self._no_documents(f"{MOST_DROPPED:,} records in a row")
        self._check_pass()

    def _accepted(self) -> None:
        # Since the last document: what was dropped; the shards that were read whole, and the ordinal at which these
        # were all shards; the shards in a row without a record. The current shard was begun before.
        self._barren: Counter[str] = Counter()
        self._message, self._passed, self._covered, self._unreadable = "", set[int](), -1, 0
        self._begun_since = self._dropped = False  # a shard was begun; a record was dropped, not only damage found

    def _read(self) -> bool:
        """Reads one more record into the buffer; False at an epoch's end, until the buffer is empty."""
        while True:
            if self._items is None:
                epoch = self._order.epoch(self._ordinal)
                if self._buffer and self._order.epoch(self._buffer[0].ordinal) != epoch:
                    return False
                self._items, self._begun_since = self._records_of(self._ordinal), True
            for item in self._items:
                self._index += 1
                if isinstance(item, Damage):
                    self._damaged(item.reason)
                    continue
                self._add(self._ordinal, self._index - 1, item)
                self._records += 1
                return True
            self._finish_shard()

    def _add(self, ordinal: int, index: int, record: Record) -> None:
        size = sum(map(len, record.fields.values()))
        self._buffer.append(_Buffered(ordinal, index, record, size))
        self._bytes += size

    def _finish_shard(self) -> None:
        if self._begun_since:
            self._passed.add(self._order.place(self._ordinal))
        if len(self._passed) == len(self._shards) and self._covered < 0:
            self._covered = self._ordinal
        self._unreadable = 0 if self._records else self._unreadable + 1
        self._items, self._index, self._records = None, 0, 0
        self._ordinal += self._streams
        if self._unreadable >= MOST_UNREADABLE:
            raise self._no_documents(f"{MOST_UNREADABLE} shards in a row")
        self._check_pass()

    def _damaged(self, reason: str) -> None:
        self.drops[reason] += 1
        self._barren[reason] += 1

    def _check_pass(self) -> None:
        """Raises if all shards were read since the last document, and the buffer holds no record of that pass."""
        if self._covered < 0 or (self._dropped and self._barren.total() < LEAST_DROPPED):
            return
        if all(buffered.ordinal > self._covered for buffered in self._buffer):
            raise self._no_documents(f"a whole pass over its {len(self._shards)} shard(s)")

    def _no_documents(self, searched: str) -> NoDocuments:
        reasons = ", ".join(f"{reason}: {count:,}" for reason, count in self._barren.most_common())
        message = f" (the last error: {self._message})" if self._message else ""
        return NoDocuments(
            f"the source '{self.name}' gave no document in {searched}, such as '{self._shards[0]}'; dropped: "
            f"{reasons or 'nothing'}{message}; check that the shards can be read, their format, and the source's limits"
        )

    def _records_of(self, ordinal: int) -> Iterator[Record | Damage]:
        return records(self._shard(ordinal), self._outside)

    def _shard(self, ordinal: int) -> str:
        return self._shards[self._order.place(ordinal)]

    def _draw(self, count: int) -> int:
        block, place = divmod(self._draws, _DRAWS)
        if self._uniform[0] != block:
            self._uniform = (block, np.random.default_rng([*self._draw_key, block]).random(_DRAWS))
        self._draws += 1
        return int(self._uniform[1][place] * count)

    def _restore(self, wanted: list[tuple[int, int]]) -> None:
        """Reads the shards again up to the state's position, and puts the same records in the same places."""
        found: dict[tuple[int, int], Record | Damage] = {}
        last: dict[int, int] = {self._ordinal: self._index} if self._index else {}
        for ordinal, index in wanted:
            last[ordinal] = max(last.get(ordinal, 0), index + 1)
        sought = set(wanted)
        for ordinal, end in last.items():
            items = self._records_of(ordinal)
            for index, item in enumerate(islice(items, end)):
                if (ordinal, index) in sought:
                    found[ordinal, index] = item
            if ordinal == self._ordinal:
                self._items = items
        for place in wanted:
            if isinstance(record := found.get(place), Record):
                self._add(*place, record)
            else:
                self.drops["not found again on resuming"] += 1


def source_key(name: str) -> int:
    """A source's number, from its name alone: another source in the run does not change it."""
    return zlib.crc32(name.encode())


def fresh_state(ordinal: int, draws: int = 0, drops: dict[str, int] | None = None) -> dict[str, Any]:
    """The state of a stream at the start of a shard."""
    return {"ordinal": ordinal, "index": 0, "draws": draws, "buffer": [], "drops": dict(drops or {})}


def redistributed(states: Sequence[dict[str, Any]], streams: int) -> list[dict[str, Any]]:
    """States of another number of streams, which continue at the first shards that none of the given ones had begun.

    The unread rest of begun shards and the records in buffers are lost. The first stream takes over all drops.
    """
    # The last shard that any stream has begun. Earlier ones that a slower stream had not read yet are lost too.
    begun = max(state["ordinal"] - (len(states) if state["index"] == 0 else 0) for state in states)
    draws = max(state["draws"] for state in states)
    drops = sum((Counter(state["drops"]) for state in states), Counter())
    return [fresh_state(max(begun + 1, 0) + number, draws, drops if number == 0 else None) for number in range(streams)]
