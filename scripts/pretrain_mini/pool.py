"""Scenes drawn once, with the frozen tower's features of their pictures, so that no step computes them again."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import torch

from flamboyance.mini.world import scenes as world
from flamboyance.mini.world.scenes import Scene
from flamboyance.mini.world.words import Split
from scripts.pretrain_mini import tower

SIZES = {1: 8000, 2: 4000, 3: 4000, "digit": 6000}


class Pool:
    """A replacement for `world`: `scene` and `digit_scene` draw from precomputed scenes.

    Args:
        vision: the frozen tower, pixels (n, 3, 64, 64) -> patches (n, 64, 128).
    """

    def __init__(self, vision: torch.nn.Module, seed: int = 4) -> None:
        rng = np.random.default_rng((seed, 0))
        self._groups: dict[tuple, list[Scene]] = defaultdict(list)
        for name, size in SIZES.items():
            for _ in range(size):
                one = world.digit_scene(rng, "train") if name == "digit" else world.scene(rng, name)
                self._groups[(name,)].append(one)
                if name == "digit":
                    self._groups[("digit", one.digit.value)].append(one)
                elif name == 1:
                    for key in ("color", "shape"):
                        self._groups[(key, getattr(one.things[0], key))].append(one)
        scenes = [one for name in SIZES for one in self._groups[(name,)]]
        self._row = {one: row for row, one in enumerate(scenes)}
        self._patches = self._encode(vision, scenes)

    @staticmethod
    @torch.no_grad()
    def _encode(vision: torch.nn.Module, scenes: list[Scene]) -> torch.Tensor:
        device, found = next(vision.parameters()).device, []
        for start in range(0, len(scenes), 250):
            with torch.autocast(device.type, torch.bfloat16):
                found.append(vision(tower.pixels(scenes[start : start + 250]).to(device)).to(torch.bfloat16))
        return torch.cat(found)

    def patches(self, scenes: list[Scene]) -> torch.Tensor:
        """Features of drawn scenes, (n, 64, 128)."""
        return self._patches[[self._row[one] for one in scenes]].float()

    def scene(self, rng: np.random.Generator, count: int | None = None, **fixed: str) -> Scene:
        """As `world.scene`; of several fixed attributes all hold."""
        count = int(rng.integers(1, 4)) if count is None else count
        key = next(((name, fixed[name]) for name in ("color", "shape") if name in fixed), (count,))
        group = self._groups[key]
        for _ in range(2000):
            one = group[rng.integers(len(group))]
            if all(getattr(thing, name) == value for thing in one.things for name, value in fixed.items()):
                return one
        raise ValueError(f"no scene in the pool has count={count} and {fixed}")

    def digit_scene(self, rng: np.random.Generator, split: Split, value: str | None = None) -> Scene:
        """As `world.digit_scene`, for the training split alone."""
        if split != "train":
            raise ValueError(f"split={split!r}: expected 'train', as the pool has training digits only")
        group = self._groups[("digit",) if value is None else ("digit", value)]
        return group[rng.integers(len(group))]
