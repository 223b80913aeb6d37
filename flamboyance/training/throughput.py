"""How fast a run is, and how much of the machine it uses."""

from __future__ import annotations

import resource
import time
from typing import Any

import torch

from flamboyance.training.parallel import World
from flamboyance.training.step import Outcome


class Meter:
    """Times steps: from `begin` to `figures`.

    Attributes:
        waited: seconds of this step that were spent waiting for data; added to by the loop.
    """

    def __init__(self, model: Any, here: World):
        self.device, self.ranks = here.device, here.size
        self.waited = 0.0

    def begin(self) -> None:
        self.began, self.waited = time.perf_counter(), 0.0

    def figures(self, outcome: Outcome) -> dict[str, float]:
        """Seconds, rates over all ranks, and memory of this rank in GB."""
        seconds = time.perf_counter() - self.began
        return {
            "step_s": seconds,
            "data_wait_s": self.waited,
            "tokens": outcome.tokens,
            "images": outcome.images,
            "targets": outcome.targets,
            "tokens_per_s": outcome.tokens / seconds,
            "images_per_s": outcome.images / seconds,
            "memory_gb": peak_memory(self.device) / 1e9,
        }


def peak_memory(device: torch.device) -> int:
    """Most bytes held so far: of the device's memory, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
