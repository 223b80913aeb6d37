"""The processes of a run: one, or those that torchrun started. Training and evaluation use this."""

from __future__ import annotations

import os
import time
import uuid
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from flamboyance.files import output_lock

PATIENCE = timedelta(hours=12)  # one process may compute or write for hours while the others wait
EVERY = 0.02  # seconds between looks at the store
LONGEST = 1800.0  # seconds until all processes have come together


@dataclass(frozen=True)
class World:
    """This process among all processes of a run.

    Attributes:
        rank, size: of this process, and of all.
        local_rank, local_size: the same on this node; local_rank is the index of the process's device.
        device: what this process computes on.
        patient: a group of all processes that waits for hours, in main memory.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    patient: Any = None

    @property
    def first(self) -> bool:
        return self.rank == 0

    def wait(self) -> None:
        """Waits until every process is here, however long the first one prepares or writes."""
        if self.size > 1:
            dist.barrier(group=self.patient)

    @contextmanager
    def locked(self, directory: Path, patience: float = 0.0) -> Generator[None]:
        """Makes the directory, and keeps other runs from writing to it. The first process holds the lock, for all.

        Raises:
            BlockingIOError: another run still writes to it after `patience` seconds.
        """
        directory.mkdir(parents=True, exist_ok=True)
        with output_lock(directory, patience) if self.first else nullcontext():
            yield

    def share(self, items: Sequence[Any]) -> list[Any]:
        """This process's part of the items; every item is in exactly one part."""
        return list(items[self.rank :: self.size])

    def broadcast(self, value: Any) -> Any:
        """The first process's value, for plain objects."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, group=self.patient)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, by rank, for plain objects; all processes get all values."""
        found = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(found, value, group=self.patient)
        return found

    def sum(self, values: Sequence[float]) -> list[float]:
        """Each value summed over all processes, in double precision."""
        if self.size == 1:
            return [float(v) for v in values]
        table = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(table)
        return table.tolist()

    def sum_counts(self, counts: dict[str, int]) -> dict[str, int]:
        """Counts summed over all processes, by name; each may know other names. The most frequent first."""
        return dict(sum(map(Counter, self.gather(counts)), Counter()).most_common())


@contextmanager
def world() -> Generator[World]:
    """Joins the processes that torchrun started, if there are any, and leaves them at the end."""
    size, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    local, local_size = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", size))
    if torch.cuda.is_available():
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
    if size == 1:
        yield World(device=device)
        return
    # gloo beside NCCL: checkpoints are written from main memory while the devices compute.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    store, rank, size = next(iter(dist.rendezvous("env://")))
    store = fresh_part(store, rank, size)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    try:
        patient = dist.new_group(backend="gloo", timeout=PATIENCE)
        yield World(rank, size, local, local_size, device, patient)
        dist.barrier(group=patient)  # no process leaves while another one waits for it
    finally:
        dist.destroy_process_group()


def fresh_part(store: dist.Store, rank: int, size: int, longest: float = LONGEST) -> dist.Store:
    """A part of the store that no earlier processes have written to, the same on every rank.

    After a restart the store still has the addresses of earlier processes, and process groups beyond the first would
    use those (torch 2.13, gloo). torchrun's count of restarts does not help on several nodes, because each node's agent
    counts by itself.

    Each rank writes a hello with a new unique name. Rank 0 answers every name that it finds with its own name,
    repeatedly, until all current ranks have confirmed that answer.

    Raises:
        TimeoutError: not all ranks came within `longest` seconds.
    """
    own, until = uuid.uuid4().hex, time.monotonic() + longest
    if rank:
        store.set(f"hello/{rank}", own)
        _wait(lambda: store.check([f"answer/{own}"]), until, rank)
        token = store.get(f"answer/{own}").decode()
        store.set(f"thanks/{token}/{rank}", own)
        return dist.PrefixStore(token, store)
    missing = set(range(1, size))

    def all_here() -> bool:
        for other in sorted(missing):
            if store.check([f"thanks/{own}/{other}"]):
                missing.discard(other)
            elif store.check([f"hello/{other}"]):
                store.set(f"answer/{store.get(f'hello/{other}').decode()}", own)
        return not missing

    _wait(all_here, until, rank)
    return dist.PrefixStore(own, store)


def _wait(done, until: float, rank: int) -> None:
    while not done():
        if time.monotonic() > until:
            raise TimeoutError(f"rank {rank}: not all processes came together; are all nodes started?")
        time.sleep(EVERY)
