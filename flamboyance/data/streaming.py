"""The order of records: which shard comes when, a buffer that shuffles, and the state that brings a stream back.

Everything random is a pure function of the seed and of a number that the state holds, so nothing but numbers is saved,
and the records that wait in the buffer are read again from their shards.
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
"""A buffer holds no more than this, or one record, whatever number of records it is told to hold."""

MOST_DROPPED = 100_000
"""Records dropped in a row, after which a source counts as useless."""

LEAST_DROPPED = 200
"""Fewer than this are not taken for the whole of a source: chance may have rejected them, as one-image documents."""

MOST_UNREADABLE = 100
"""Shards in a row without a single record, after which a source counts as out of reach."""

_DRAWS = 1024
# What a random number is for: the first word of its seed.
_PERMUTATION, _REPLACEMENT, _DRAW, _RECORD = range(1, 5)


class NoDocuments(ValueError):
    """A source gives nothing to train on."""


@dataclass(frozen=True)
class ShardOrder:
    """Which shard is read as the n-th, counted over all streams (its "ordinal").

    Args:
        key: of the source, for its random numbers.
        count: shards of the source.
    """

    seed: int
    key: int
    count: int
    replacement: bool

    def place(self, ordinal: int) -> int:
        """The shard's place in the list."""
        if self.replacement:
            return int(np.random.default_rng([_REPLACEMENT, self.seed, self.key, ordinal]).integers(self.count))
        return int(_permutation(self.seed, self.key, self.count, ordinal // self.count)[ordinal % self.count])

    def epoch(self, ordinal: int) -> int:
        """Passes over all shards before this ordinal; 0 with replacement, where there are none."""
        return 0 if self.replacement else ordinal // self.count


@lru_cache(maxsize=16)
def _permutation(seed: int, key: int, count: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([_PERMUTATION, seed, key, epoch]).permutation(count)


class _Held(NamedTuple):
    ordinal: int
    index: int
    record: Record
    size: int


class Stream:
    """An endless iterator over (record, its random numbers): every `streams`-th shard of a source from the first on.

    Each epoch is given to its end before the next begins: at its end the buffer runs empty.

    Args:
        name: of the source.
        shards: of `expand`.
        state: of `state()`, or of `fresh_state`.
        number, streams: which stream it is, of how many.
    """

    def __init__(
        self, name: str, source: Source, shards: Sequence[str], seed: int, number: int, streams: int, state: dict
    ) -> None:
        self.name, self.drops = name, Counter(state["drops"])
        self._shards, self._most, self._streams = shards, max(source.shuffle, 1), streams
        self._outside = getattr(source, "outside", False)  # only some sources have paths of their own
        self._order = ShardOrder(seed, source_key(name), len(shards), source.replacement)
        self._draw_key = [_DRAW, seed, source_key(name), number]
        self._ordinal, self._index, self._draws = state["ordinal"], state["index"], state["draws"]
        self._uniform: tuple[int, Any] = (-1, None)
        self._items: Iterator[Record | Damage] | None = None
        self._buffer: list[_Held] = []
        self._bytes = self._records = 0  # records: those of the shard that is being read
        self._restore([(ordinal, index) for ordinal, index in state["buffer"]])
        self._accepted()

    def state(self) -> dict[str, Any]:
        """What brings the stream back to here: small, JSON-able, and not changed by what follows."""
        return {
            "ordinal": self._ordinal,
            "index": self._index,
            "draws": self._draws,
            "buffer": [held[:2] for held in self._buffer],
            "drops": dict(self.drops),
        }

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> tuple[Record, np.random.Generator]:
        """Raises `NoDocuments` where a whole pass over the shards, or a very long way, has given no document."""
        while len(self._buffer) < self._most and (self._bytes < BUFFER_BYTES or not self._buffer) and self._read():
            pass
        place = self._draw(len(self._buffer))
        held, last = self._buffer[place], self._buffer.pop()
        if held is not last:
            self._buffer[place] = last
        self._bytes -= held.size
        seed = [_RECORD, self._order.seed, self._order.key, held.ordinal, held.index]
        return held.record, np.random.default_rng(seed)

    def accepted(self) -> None:
        """Tells that the last record became an example."""
        if self._begun_since or self._barren or self._passed or self._unreadable:
            self._accepted()

    def dropped(self, reason: str, example: str = "") -> None:
        """Tells that it did not."""
        self.drops[reason] += 1
        self._barren[reason] += 1
        self._dropped = True
        self._message = example or self._message
        if self._barren.total() >= MOST_DROPPED:
            raise self._no_documents(f"{MOST_DROPPED:,} records in a row")
        self._check_pass()

    def _accepted(self) -> None:
        # Since the last document: what was dropped, the shards read from begin to end, where they became all of them,
        # and the shards in a row without a record. The shard that is being read has begun before.
        self._barren: Counter[str] = Counter()
        self._message, self._passed, self._covered, self._unreadable = "", set[int](), -1, 0
        self._begun_since = self._dropped = False  # dropped: a record, not only what gave none

    def _read(self) -> bool:
        """Reads one more record into the buffer; False where what is left of an epoch comes first."""
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
                self._hold(self._ordinal, self._index - 1, item)
                self._records += 1
                return True
            self._finish_shard()

    def _hold(self, ordinal: int, index: int, record: Record) -> None:
        size = sum(map(len, record.fields.values()))
        self._buffer.append(_Held(ordinal, index, record, size))
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
        """Raises if all shards were read since the last document, and nothing of that pass is left in the buffer."""
        if self._covered < 0 or (self._dropped and self._barren.total() < LEAST_DROPPED):
            return
        if all(held.ordinal > self._covered for held in self._buffer):
            raise self._no_documents(f"a whole pass over its {len(self._shards)} shard(s)")

    def _no_documents(self, searched: str) -> NoDocuments:
        reasons = ", ".join(f"{reason}: {count:,}" for reason, count in self._barren.most_common())
        message = f" (the last error: {self._message})" if self._message else ""
        return NoDocuments(
            f"the source '{self.name}' gave no document in {searched}, such as '{self._shards[0]}'; dropped: "
            f"{reasons or 'nothing'}{message}; check that the shards can be read and are of this source's format, "
            "and its limits"
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
        """Reads the shards again up to where the state stands, and holds the same records in the same places."""
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
                self._hold(*place, record)
            else:
                self.drops["not found again on resuming"] += 1


def source_key(name: str) -> int:
    """A source's number: it comes of the name, so that adding a source leaves the others as they are."""
    return zlib.crc32(name.encode())


def fresh_state(ordinal: int, draws: int = 0, drops: dict[str, int] | None = None) -> dict[str, Any]:
    """The state of a stream that begins at the start of a shard."""
    return {"ordinal": ordinal, "index": 0, "draws": draws, "buffer": [], "drops": dict(drops or {})}


def redistributed(states: Sequence[dict[str, Any]], streams: int) -> list[dict[str, Any]]:
    """States of as many other streams, which go on at the first ordinals that none of the given ones had begun.

    What is lost: the unread rest of the begun shards, and what waited in buffers. The first takes over all drops.
    """
    # The last shard that any stream has begun; those before it that a slower stream had still to read are lost too.
    begun = max(state["ordinal"] - (len(states) if state["index"] == 0 else 0) for state in states)
    draws = max(state["draws"] for state in states)
    drops = sum((Counter(state["drops"]) for state in states), Counter())
    return [fresh_state(max(begun + 1, 0) + number, draws, drops if number == 0 else None) for number in range(streams)]
