"""Processes that come together again find each other, and nobody who was there before."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from flamboyance.processes import fresh_part


@pytest.fixture
def store():
    return dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=300))


def meet(store, ranks: int) -> list:
    """Every rank from a thread of its own, the first one last."""

    def come(rank: int):
        return fresh_part(dist.TCPStore("localhost", store.port, timeout=timedelta(seconds=300)), rank, ranks, 300)

    with ThreadPoolExecutor(ranks) as pool:
        later = [pool.submit(come, rank) for rank in range(1, ranks)]
        return [come(0), *(one.result() for one in later)]


def test_every_meeting_has_a_part_of_its_own(store):
    for meeting in range(3):
        parts = meet(store, 3)
        assert not any(part.check(["address"]) for part in parts)  # nothing of earlier meetings
        parts[0].set("address", str(meeting))
        assert [part.get("address") for part in parts] == [str(meeting).encode()] * 3


def test_who_does_not_come_is_missed(store):
    with pytest.raises(TimeoutError, match="processes"):
        fresh_part(store, 0, 2, longest=0.2)
