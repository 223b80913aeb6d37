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
_PERMUTATION, _REPLACEMENT, _DRAW, _RECORD, _PARTS, _SHIFTS = range(1, 7)


class NoDocuments(ValueError):
    """A source gives no documents to train on."""


@dataclass(frozen=True)
class ShardOrder:
    """The order in which shards are read, each in `parts`. An ordinal counts the parts that are read, over all streams.

    A part is a set of a shard's items, always the same ones. Of each `parts` items in a row it has one.

    Args:
        key: of the source, in the seeds of its random numbers.
        count: number of shards of the source.
        parts: of each shard, as `parts_of`; the streams that read a shard at the same time read different ones.
    """

    seed: int
    key: int
    count: int
    replacement: bool
    parts: int = 1

    def place(self, ordinal: int) -> int:
        """The shard's index in the list of shards."""
        turn = ordinal // self.parts
        if self.replacement:
            return int(np.random.default_rng([_REPLACEMENT, self.seed, self.key, turn]).integers(self.count))
        epoch, place = divmod(turn, self.count)
        return int(_permutation(_PERMUTATION, self.seed, self.key, self.count, epoch)[place])

    def part(self, ordinal: int) -> int:
        """The shard's part. Which stream reads which is drawn each time, as one may have no record in a short shard."""
        turn, place = divmod(ordinal, self.parts)
        return int(_permutation(_PARTS, self.seed, self.key, self.parts, turn)[place]) if self.parts > 1 else 0

    def holds(self, ordinal: int, index: int) -> bool:
        """Whether the part that is read as number `ordinal` has the `index`-th item of its shard."""
        if self.parts == 1:
            return True
        # The rows of a table may take turns, as a yes and a no. Not those of a part: one of each few, drawn at random.
        row, place = divmod(index, self.parts)
        block, row = divmod(row, _DRAWS)
        return (place + _shifts(self.seed, self.key, self.parts, block)[row]) % self.parts == self.part(ordinal)

    def epoch(self, ordinal: int) -> int:
        """Number of passes over all shards before this ordinal; 0 with replacement, which has no passes."""
        return 0 if self.replacement else ordinal // (self.count * self.parts)


def parts_of(shards: int, streams: int) -> int:
    """In how many parts a shard is read: 1, unless there are fewer shards than streams."""
    return -(-streams // shards)


@lru_cache(maxsize=16)
def _permutation(purpose: int, seed: int, key: int, count: int, number: int) -> np.ndarray:
    return np.random.default_rng([purpose, seed, key, number]).permutation(count)


@lru_cache(maxsize=16)
def _shifts(seed: int, key: int, parts: int, block: int) -> list[int]:
    return np.random.default_rng([_SHIFTS, seed, key, block]).integers(parts, size=_DRAWS).tolist()


class _Buffered(NamedTuple):
    """A record in the buffer: the `index`-th item of the shard that was read as number `ordinal`, and its bytes."""

    ordinal: int
    index: int
    record: Record
    size: int


class Stream:
    """An endless iterator over (record, its random numbers).

    Stream `number` of `streams` reads every `streams`-th shard, or part of a shard. The buffer runs empty at the end of
    an epoch, so that the records of two epochs do not mix.

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
        parts = parts_of(len(shards), streams)
        self._order = ShardOrder(seed, source_key(name), len(shards), source.replacement, parts)
        self._draw_key = [_DRAW, seed, source_key(name), number]
        self._ordinal, self._index, self._draws = state["ordinal"], state["index"], state["draws"]
        self._uniform: tuple[int, Any] = (-1, None)
        self._items: Iterator[Record | Damage] | None = None
        self._buffer: list[_Buffered] = []
        self._bytes = self._records = 0  # in the buffer; in the shard that is being read, of all its parts
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
        # Since the last document: what was dropped; the parts of shards that were read whole, and the ordinal at which
        # these were all; the shards in a row without a record. The current shard was begun before.
        self._barren: Counter[str] = Counter()
        self._message, self._passed, self._covered, self._unreadable = "", set[tuple[int, int]](), -1, 0
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
                mine = self._order.holds(self._ordinal, self._index - 1)
                if isinstance(item, Damage):
                    self._damaged(item.reason, mine)
                    continue
                self._records += 1
                if mine:
                    self._add(self._ordinal, self._index - 1, item)
                    return True
            self._finish_shard()

    def _add(self, ordinal: int, index: int, record: Record) -> None:
        size = sum(map(len, record.fields.values()))
        self._buffer.append(_Buffered(ordinal, index, record, size))
        self._bytes += size

    def _finish_shard(self) -> None:
        order = self._order
        if self._begun_since:  # without a record in the whole shard, its other parts need not be read
            parts = [order.part(self._ordinal)] if self._records else range(order.parts)
            self._passed.update((order.place(self._ordinal), part) for part in parts)
        if len(self._passed) == order.count * order.parts and self._covered < 0:
            self._covered = self._ordinal
        self._unreadable = 0 if self._records else self._unreadable + 1
        self._items, self._index, self._records = None, 0, 0
        self._ordinal += self._streams
        if self._unreadable >= MOST_UNREADABLE:
            raise self._no_documents(f"{MOST_UNREADABLE} shards in a row")
        self._check_pass()

    def _damaged(self, reason: str, mine: bool) -> None:
        """`mine`: in another stream's part, damage is counted there, but it may be why there is no record here."""
        if mine:
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
    """The state of a stream at the start of a shard, or of a part of one."""
    return {"ordinal": ordinal, "index": 0, "draws": draws, "buffer": [], "drops": dict(drops or {})}


def redistributed(
    states: Sequence[dict[str, Any]], streams: int, parts_before: int = 1, parts: int = 1
) -> list[dict[str, Any]]:
    """States of another number of streams, which continue at the first shards that none of the given ones had begun.

    The unread rest of begun shards and the records in buffers are lost. The first stream takes over all drops.

    Args:
        parts_before, parts: in which a shard was read, and will be.
    """
    # The last shard that any stream has begun. Earlier ones that a slower stream had not read yet are lost too.
    begun = max(state["ordinal"] - (len(states) if state["index"] == 0 else 0) for state in states)
    draws = max(state["draws"] for state in states)
    drops = sum((Counter(state["drops"]) for state in states), Counter())
    first = -(-max(begun + 1, 0) // parts_before) * parts
    return [fresh_state(first + number, draws, drops if number == 0 else None) for number in range(streams)]
