"""The order of records: whole epochs, the same however it is interrupted, and an end where nothing can be used."""

import itertools
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flamboyance.data import streaming
from flamboyance.data.documents import Record, Source
from flamboyance.data.streaming import NoDocuments, ShardOrder, Stream, fresh_state, parts_of, redistributed, source_key
from tests.data.files import line_shards

SIZES = (5, 1, 9, 4, 7)
WHOLE = {(shard, line) for shard, size in enumerate(SIZES) for line in range(size)}

Drawn = tuple[tuple[int, int], float]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return line_shards(tmp_path_factory.mktemp("lines"), SIZES)


def stream(
    shards: list[str],
    state: dict[str, Any] | None = None,
    number: int = 0,
    streams: int = 1,
    seed: int = 3,
    **options: Any,
) -> Stream:
    source = Source(shards=tuple(shards), batch_size=1, **options)
    return Stream("lines", source, shards, seed, number, streams, state or fresh_state(number))


def draw(given: Stream, count: int) -> list[Drawn]:
    """((shard, line), a random number of the record's own), accepted one and all."""
    drawn = []
    for record, rng in itertools.islice(given, count):
        shard, line = json.loads(record.fields["json"])
        drawn.append(((shard, line), rng.random()))
        given.accepted()
    return drawn


def places(drawn: list[Drawn]) -> list[tuple[int, int]]:
    return [place for place, _ in drawn]


@pytest.mark.parametrize("shuffle", [0, 1, 4, 1000])
def test_each_epoch_gives_every_record_once(shards: list[str], shuffle: int) -> None:
    given, orders = stream(shards, shuffle=shuffle), []
    for _ in range(4):
        orders.append(places(draw(given, len(WHOLE))))
        assert set(orders[-1]) == WHOLE
    assert len(set(map(tuple, orders))) == 4  # another order each time


@pytest.mark.parametrize(
    "options", [{"shuffle": 0}, {"shuffle": 1}, {"shuffle": 2}, {"shuffle": 0, "replacement": True}]
)
@pytest.mark.parametrize("sizes", [(1,), (3,), (300,), (2, 1)])
@pytest.mark.parametrize("streams", [1, 2, 5])
def test_a_small_source_is_read_again_and_again(
    tmp_path: Path, sizes: tuple[int, ...], options: dict[str, Any], streams: int
) -> None:
    shards = line_shards(tmp_path, sizes)
    for number in range(streams):
        given = stream(shards, number=number, streams=streams, **options)
        found = Counter(places(draw(given, 4 * sum(sizes))))
        if streams == 1 and not options.get("replacement"):
            assert set(found.values()) == {4}


def test_one_good_record_a_pass_is_enough_without_shuffling(tmp_path: Path) -> None:
    shards = line_shards(tmp_path, (400,))
    given, accepted = stream(shards, shuffle=0), 0
    for record, _ in itertools.islice(given, 1600):
        if json.loads(record.fields["json"])[1] == 7:
            given.accepted()
            accepted += 1
        else:
            given.dropped("unlucky")
    assert accepted == 4


def test_without_shuffling_a_shard_keeps_its_order(shards: list[str]) -> None:
    for shard, lines in itertools.groupby(places(draw(stream(shards, shuffle=0), len(WHOLE))), lambda place: place[0]):
        assert [line for _, line in lines] == list(range(SIZES[shard]))


def test_the_buffer_mixes_shards(shards: list[str]) -> None:
    drawn = [shard for shard, _ in places(draw(stream(shards, shuffle=15), len(WHOLE)))]
    assert len(list(itertools.groupby(drawn))) > 2 * len(SIZES)


@pytest.mark.parametrize("streams", [1, 2, 3, 7, 12])
def test_streams_share_the_shards(tmp_path: Path, streams: int) -> None:
    # In as many epochs as there are streams, each stream has read as many shards, or parts of shards, as there are.
    found: Counter[tuple[int, int]] = Counter()
    sizes = (5, 3, 9, 4, 7)  # no part is empty
    shards, end = line_shards(tmp_path, sizes), streams * len(sizes) * parts_of(len(sizes), streams)
    for number in range(streams):
        given = stream(shards, number=number, streams=streams, shuffle=3)
        while given.state()["ordinal"] < end:
            found.update(places(draw(given, 1)))
        left = [o for o, _ in given.state()["buffer"] if o < end]
        extra = [o for o, _ in given.state()["buffer"] if o >= end]
        assert not extra  # an epoch is given to its end first
        found.update(places(draw(given, len(left))))
    assert found == {(shard, line): streams for shard, size in enumerate(sizes) for line in range(size)}


def taken_in_turn(shards: list[str], streams: int, count: int, **options: Any) -> list[list[Drawn]]:
    """What each stream gives, of so many records in all."""
    return [draw(stream(shards, None, n, streams, **options), count // streams) for n in range(streams)]


@pytest.mark.parametrize("shuffle", [0, 1000])
@pytest.mark.parametrize("streams", [1, 2, 4, 8])
@pytest.mark.parametrize("sizes", [(160,), (80, 80)])
def test_an_epoch_gives_every_record_once_where_streams_share_a_shard(
    tmp_path: Path, sizes: tuple[int, ...], streams: int, shuffle: int
) -> None:
    shards = line_shards(tmp_path, sizes)
    for epochs in (1, 3):
        found: Counter[tuple[int, int]] = Counter()
        for drawn in taken_in_turn(shards, streams, 160 * epochs, shuffle=shuffle):
            found.update(places(drawn))
        assert len(found) == 160 and set(found.values()) == {epochs}


@pytest.mark.parametrize("sizes, streams", [((100,), 8), ((30, 70), 3), ((10, 20, 70), 8)])
def test_nearly_every_record_comes_where_a_shard_is_not_divided_evenly(
    tmp_path: Path, sizes: tuple[int, ...], streams: int
) -> None:
    parts = taken_in_turn(line_shards(tmp_path, sizes), streams, 1000)
    found = Counter(place for drawn in parts for place in places(drawn))
    assert len(found) == 100 and set(found.values()) <= set(range(5, 16))  # in ten epochs


def test_with_replacement_streams_do_not_read_the_same_part_of_a_shard(tmp_path: Path) -> None:
    parts = taken_in_turn(line_shards(tmp_path, (160,)), 8, 160, shuffle=0, replacement=True)
    assert len({place for drawn in parts for place in places(drawn)}) == 160


def test_rows_that_take_turns_are_mixed_where_streams_share_a_table(tmp_path: Path) -> None:
    for drawn in taken_in_turn(line_shards(tmp_path, (400,)), 2, 400):
        assert 60 < sum(line % 2 for _, line in places(drawn)) < 140  # of 200


# The order of the first release: a checkpoint of a run with enough shards resumes with what would have followed.
FIRST = {
    False: ("23 20 25 21 27 26 10 28 22 24 02 01", 0.1297032624475114),
    True: ("43 40 45 41 00 46 02 42 04 01 03 10", 0.5905324856725267),
}


@pytest.mark.parametrize("replacement", [False, True])
def test_the_order_is_that_of_earlier_versions(shards: list[str], replacement: bool) -> None:
    drawn = draw(stream(shards, None, 1, 2, shuffle=4, replacement=replacement), 12)
    found = " ".join(f"{shard}{line}" for shard, line in places(drawn)), drawn[-1][1]
    assert found == FIRST[replacement]


def test_with_replacement_the_same_shard_may_come_again(shards: list[str]) -> None:
    drawn = places(draw(stream(shards, replacement=True, shuffle=0), 400))
    order = [shard for shard, lines in itertools.groupby(drawn, lambda place: place[0])]
    epochs = [order[start : start + 5] for start in range(0, len(order) - 5, 5)]
    assert any(len(set(epoch)) < 5 for epoch in epochs) and {shard for shard, _ in drawn} == set(range(5))


OPTIONS = [
    {"shuffle": 0},
    {"shuffle": 6},
    {"shuffle": 6, "replacement": True},
    {"shuffle": 1000},
    {"shuffle": 40, "replacement": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("number, streams", [(0, 1), (1, 2), (2, 3), (7, 12)])
def test_a_resumed_stream_is_the_uninterrupted_one(
    shards: list[str], options: dict[str, Any], number: int, streams: int
) -> None:
    true = draw(stream(shards, None, number, streams, **options), 120)
    for cut in range(0, 60, 2):
        first = stream(shards, None, number, streams, **options)
        draw(first, cut)
        second = stream(shards, json.loads(json.dumps(first.state())), number, streams, **options)
        assert second.state() == first.state()
        assert draw(second, 120 - cut) == true[cut:]


def test_a_state_is_not_changed_by_what_follows(shards: list[str]) -> None:
    given = stream(shards, shuffle=6)
    draw(given, 10)
    state = given.state()
    before = json.dumps(state)
    given.dropped("bad")
    draw(given, 10)
    assert json.dumps(state) == before


def test_random_numbers_depend_on_the_record_and_its_epoch_alone(shards: list[str]) -> None:
    whole = dict(draw(stream(shards, shuffle=0), len(WHOLE)))
    assert len(set(whole.values())) == len(WHOLE)
    assert dict(draw(stream(shards, shuffle=9), len(WHOLE))) == whole
    spread: dict[tuple[int, int], float] = {}
    for number in range(5):
        size = SIZES[ShardOrder(3, source_key("lines"), 5, False).place(number)]
        spread |= dict(draw(stream(shards, None, number, 5, shuffle=2), size))
    assert spread == whole
    assert dict(draw(stream(shards, shuffle=0, seed=4), len(WHOLE))) != whole


def test_resuming_reads_only_the_shards_of_its_buffer(shards: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    given = stream(shards, shuffle=6, replacement=True)
    draw(given, 200)
    state, opened = given.state(), []
    true_records = streaming.records
    monkeypatch.setattr(streaming, "records", lambda shard, *given: opened.append(shard) or true_records(shard, *given))
    stream(shards, state, shuffle=6, replacement=True)
    assert len(opened) == len({o for o, _ in state["buffer"]} | {state["ordinal"]}) < 7


def test_a_record_that_is_gone_is_counted_and_the_stream_goes_on(tmp_path: Path) -> None:
    shards = line_shards(tmp_path, SIZES)
    given = stream(shards, shuffle=6)
    draw(given, 3)
    state = given.state()
    for shard in shards:
        Path(shard).write_text(Path(shard).read_text(encoding="utf-8").splitlines(keepends=True)[0], encoding="utf-8")
    resumed = stream(shards, state, shuffle=6)
    assert resumed.drops["not found again on resuming"] > 0
    assert len(draw(resumed, 20)) == 20


def test_the_buffer_is_bounded_in_bytes_too(shards: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "BUFFER_BYTES", 20)  # a line has 6 bytes
    given = stream(shards, shuffle=1000)
    assert set(places(draw(given, len(WHOLE)))) == WHOLE
    draw(given, 3)
    assert len(given.state()["buffer"]) == 3
    monkeypatch.setattr(streaming, "BUFFER_BYTES", 1)
    assert set(places(draw(stream(shards, shuffle=1000), len(WHOLE)))) == WHOLE


# Sources that give nothing


def exhaust(given: Stream, reason: str = "bad") -> int:
    for count, _ in enumerate(given, 1):
        given.dropped(reason, f"error {count}")
        assert count < 10_000
    raise AssertionError


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_pass_without_a_document_ends_it(
    shards: list[str], options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = stream(shards, **options)
    with pytest.raises(NoDocuments, match=r"'lines'.* 5 shard"):
        exhaust(given)
    assert given.drops["bad"] >= streaming.LEAST_DROPPED
    # Of a larger source it is the pass: for each shard as often as there are records.
    monkeypatch.setattr(streaming, "LEAST_DROPPED", 1)
    given = stream(shards, **options)
    with pytest.raises(NoDocuments):
        exhaust(given)
    if not options.get("replacement"):
        assert given.drops == {"bad": len(WHOLE)}


def test_the_end_tells_why(shards: list[str]) -> None:
    with pytest.raises(NoDocuments, match=r"bad: 200 .*error 200"):
        exhaust(stream(shards, shuffle=0))


def test_missing_shards_end_it_too(tmp_path: Path) -> None:
    shards = [str(tmp_path / f"{n}.tar") for n in range(3)]
    with pytest.raises(NoDocuments, match=r"FileNotFoundError: 3\b"):
        next(stream(shards))


@pytest.mark.parametrize("number", range(8))
def test_each_stream_can_tell_why_a_shared_shard_gives_nothing(tmp_path: Path, number: int) -> None:
    given = stream([str(tmp_path / "gone.tar")], None, number, 8)
    with pytest.raises(NoDocuments, match=r"FileNotFoundError: 1\b"):
        next(given)


def test_the_damage_of_a_shared_shard_is_counted_once(tmp_path: Path) -> None:
    table = tmp_path / "a.csv"  # damaged after the last of its rows
    table.write_text("image,text\n" + "a.jpg,b\n" * 80 + 'a.jpg,"b\n', encoding="utf-8")
    drops: Counter[str] = Counter()
    for number in range(4):
        given = stream([str(table)], None, number, 4)
        for _, _ in itertools.islice(given, 20):
            given.accepted()
        drops += given.drops
    assert drops == {"damaged table": 1}


def test_many_unreadable_shards_in_a_row_end_it(tmp_path: Path, shards: list[str]) -> None:
    gone = [str(tmp_path / f"{n}.tar") for n in range(5000)]
    with pytest.raises(NoDocuments, match="100 shards"):
        draw(stream([*shards, *gone]), 1000)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("streams", [1, 2, 8])
def test_few_good_records_are_enough(shards: list[str], options: dict[str, Any], streams: int) -> None:
    # One record of the smallest shard in 26; a stream of two may go several epochs without that shard.
    for number in {0, streams - 1}:
        given, good = stream(shards, None, number, streams, **options), 0
        for record, _ in itertools.islice(given, 4000):
            if json.loads(record.fields["json"]) == [1, 0]:
                given.accepted()
                good += 1
            else:
                given.dropped("bad")
        assert good > 50


def test_a_long_row_of_drops_ends_it(shards: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "MOST_DROPPED", 12)
    with pytest.raises(NoDocuments, match="12 records"):
        exhaust(stream(shards))


def test_drops_go_on_after_resuming(shards: list[str]) -> None:
    given = stream(shards)
    next(given)
    given.dropped("bad")
    next(given)
    given.accepted()
    resumed = stream(shards, given.state())
    next(resumed)
    resumed.dropped("bad")
    assert resumed.state()["drops"] == {"bad": 2}


@pytest.mark.parametrize("number", range(4))
def test_a_pass_over_a_shared_shard_without_a_document_ends_it(tmp_path: Path, number: int) -> None:
    with pytest.raises(NoDocuments, match=r"1 shard"):
        exhaust(stream(line_shards(tmp_path, (400,)), None, number, 4))


# Another number of streams


@pytest.mark.parametrize("before, after, first", [(1, 8, 8), (8, 1, 1), (8, 4, 4), (2, 8, 8)])
def test_other_streams_go_on_at_the_next_pass_over_a_shared_shard(
    tmp_path: Path, before: int, after: int, first: int
) -> None:
    shards = line_shards(tmp_path, (80,))
    states = []
    for number in range(before):
        given = stream(shards, None, number, before, shuffle=2)
        draw(given, 3)
        states.append(given.state())
    others = redistributed(states, after, parts_of(1, before), parts_of(1, after))
    assert [other["ordinal"] for other in others] == list(range(first, first + after))


@pytest.mark.parametrize("before, after, steps", [(1, 2, 7), (2, 3, 11), (4, 1, 3), (2, 2, 0)])
def test_other_streams_go_on_at_shards_that_none_had_begun(
    shards: list[str], before: int, after: int, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: set[int] = set()

    def watched(state: Any) -> Iterator[int]:
        yield from {o for o, _ in state["buffer"]} | ({state["ordinal"]} if state["index"] else set())

    states = []
    for number in range(before):
        given = stream(shards, None, number, before, shuffle=2)
        for _ in range(steps):
            draw(given, 1)
            begun.update(watched(given.state()))
        given.drops["bad"] = 1
        states.append(given.state())
    others = redistributed(states, after)
    assert [other["ordinal"] for other in others] == [max(begun, default=-1) + 1 + n for n in range(after)]
    assert sum((Counter(other["drops"]) for other in others), Counter()) == {"bad": before}
    assert all(isinstance(next(stream(shards, o, n, after))[0], Record) for n, o in enumerate(others))
