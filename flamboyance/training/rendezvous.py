"""A fresh part of torchrun's store for each time that the processes come together.

After a restart the store still holds addresses of the processes before it, and process groups beyond the first would
find those (torch 2.13, gloo). torchrun's own count of restarts does not tell the times apart on several nodes: each
node's agent counts for itself.
"""

from __future__ import annotations

import time
import uuid

import torch.distributed as dist

EVERY = 0.02  # seconds between looks
LONGEST = 1800.0


def fresh_part(store: dist.Store, rank: int, size: int, longest: float = LONGEST) -> dist.Store:
    """A part of the store that no earlier processes have written to, the same on every rank.

    Each rank says hello with a name of its own that no process had before; rank 0 answers every name that it finds with
    its own, again and again, until all ranks that are alive now have thanked for it.

    Raises:
        TimeoutError: not all came within `longest` seconds.
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
