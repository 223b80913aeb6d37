"""The processes of an evaluation: one, or those that torchrun started, which share the results directory."""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

PATIENCE = timedelta(hours=12)


@dataclass(frozen=True)
class Ranks:
    """This process among all.

    Attributes:
        rank, size: of this process, and of all.
        local: place among the processes of this machine, which is that of its device.
    """

    rank: int = 0
    size: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        return self.rank == 0

    def wait(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            dist.barrier()

    def share(self, items: Sequence[Any]) -> list[Any]:
        """This process's part: every item is in exactly one part."""
        return list(items[self.rank :: self.size])


@contextmanager
def ranks() -> Generator[Ranks]:
    """Joins the processes that torchrun started, if it did; leaves them at the end."""
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1:
        yield Ranks()
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("gloo", timeout=PATIENCE)  # they exchange no tensors, only wait
    try:
        yield Ranks(dist.get_rank(), size, int(os.environ["LOCAL_RANK"]))
        dist.barrier()
    finally:
        dist.destroy_process_group()
