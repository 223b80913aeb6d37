"""Checkpoints of a run: everything that the next step depends on, written beside the training and put in place whole.

`checkpoints/step-00000500/` holds what trains and the optimizer's state (torch.distributed.checkpoint, so they can be
read by another number of ranks), and one JSON file a rank: place in the data, random state, counts. It is written as
`.step-00000500.partial` and renamed when every rank is done: a kill at any moment leaves the last good one.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import time
import warnings
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.tensor import DTensor

from flamboyance.training.optimizer import state_tensors
from flamboyance.training.parallel import World

NAME = re.compile(r"step-(\d{8,})$")


class Checkpoints:
    """The checkpoints in a run's directory.

    Args:
        directory: made if missing.
        keep: how many of the newest stay.
        identity: of the model, for JSON; a checkpoint of another one is refused.
    """

    def __init__(self, directory: Path, world: World, keep: int, identity: dict[str, Any]):
        self.identity = identity
        self.directory = directory
        self.world = world
        self.keep = keep
        self._writing: Future | None = None
        self._step = 0
        # A group of its own: checkpoints are exchanged in a thread, beside the training's own exchanges.
        self._group = dist.new_group(backend="gloo") if world.size > 1 else None
        if world.size == 1:  # which is what was asked for: torch need not warn of it, here or in its thread
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        if world.first:
            directory.mkdir(parents=True, exist_ok=True)
            for left_over in directory.glob(".step-*"):
                shutil.rmtree(left_over)
        world.wait()

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, oldest first."""
        found = (NAME.match(path.name) for path in self.directory.iterdir())
        return sorted(int(match[1]) for match in found if match)

    def save(
        self,
        step: int,
        trained: dict[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
        state: dict[str, Any],
    ) -> None:
        """Starts to write; training may go on at once. Waits for the one before.

        Args:
            step: number of optimizer steps done.
            state: of this rank, for JSON.

        Raises:
            OSError: the one before could not be written.
        """
        self.wait()
        part, rank = self._path(step, part=True), self.world.rank
        if self.world.first:
            part.mkdir(parents=True)
        self.world.wait()
        own = {"step": step, "ranks": self.world.size, "model": self.identity, **state}
        own["random"] = _random_state(self.world.device)
        with open(part / f"rank-{rank}.json", "w") as file:
            json.dump(own, file)
            file.flush()
            os.fsync(file.fileno())
        tensors = _tensors(trained, optimizer)
        if not any(isinstance(tensor, DTensor) for tensor in tensors.values()):
            # Every rank has all of it (DDP): each copies and writes its share.
            tensors = {name: tensors[name] for name in sorted(tensors)[rank :: self.world.size]}
        if self.world.device.type == "cpu":  # training changes them in place while they are written
            tensors = {k: v.clone() for k, v in tensors.items()}
        group: dict[str, Any] = {"process_group": self._group} if self._group else {"no_dist": True}
        self._step = step
        answer = dcp.async_save(tensors, checkpoint_id=part, **group)
        assert isinstance(answer, Future)
        self._writing = answer

    def wait(self) -> None:
        """Until the checkpoint being written is in place.

        Raises:
            OSError: it could not be written; the last complete one is untouched.
        """
        if self._writing is None:
            return
        writing, self._writing = self._writing, None
        try:
            writing.result()
        except (OSError, RuntimeError, dcp.api.CheckpointException) as error:
            good = self.steps()
            raise OSError(
                f"The checkpoint of step {self._step} could not be written to {self.directory}: {error}. "
                + (f"The last good one is of step {good[-1]}. " if good else "There is none before it. ")
                + "Make room, or mend what it says, and start the same command again: it goes on from there."
            ) from error
        if self.world.first:  # has heard from every rank: the checkpoint is complete
            self._path(self._step).parent.mkdir(exist_ok=True)
            os.replace(self._path(self._step, part=True), self._path(self._step))
            for old in self.steps()[: -self.keep]:
                # Renamed first, so that one that is half removed is never taken for a good one.
                os.replace(self._path(old), self._path(old, part=True))
                shutil.rmtree(self._path(old, part=True))

    @property
    def busy(self) -> bool:
        return self._writing is not None and not self._writing.done()

    def load(self, trained: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> list[dict[str, Any]] | None:
        """Puts the newest checkpoint into the parameters and the optimizer.

        Returns:
            What `save` was given as state, of every rank that wrote it, with "step"; None where there is none.

        Raises:
            ValueError: it is of another model.
        """
        # The first rank decides which is the newest and what it says: other nodes may see the directory a little late.
        states = self.world.told(self._newest() if self.world.first else None)
        if states is None:
            return None
        path = self._path(states[0]["step"])
        for _ in range(120):
            if path.is_dir():
                break
            time.sleep(1)
        if states[0]["model"] != self.identity:
            raise ValueError(
                f"{path} is a checkpoint of another model: of {states[0]['model']}, this one is {self.identity}. Give "
                "the run another output=, or the model that it was begun with."
            )
        tensors = _tensors(trained, optimizer)
        known = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
        for name, tensor in tensors.items():
            shape = getattr(known.get(name), "size", None)
            if shape is None or tuple(shape) != tuple(tensor.shape):
                raise ValueError(
                    f"{path} is a checkpoint of another model: it has {name} as {shape and tuple(shape)}, this model "
                    f"as {tuple(tensor.shape)}. Give the run another output=, or the model that it was begun with."
                )
        group: dict[str, Any] = {"process_group": self._group} if self._group else {"no_dist": True}
        dcp.load(tensors, checkpoint_id=path, **group)
        if len(states) == self.world.size:
            _restore_random_state(states[self.world.rank]["random"], self.world.device)
        return states

    def _newest(self) -> list[dict[str, Any]] | None:
        """What every rank wrote beside the newest checkpoint; None where there is none."""
        steps = self.steps()
        if not steps:
            return None
        path = self._path(steps[-1])
        ranks = json.loads((path / "rank-0.json").read_text())["ranks"]
        return [json.loads((path / f"rank-{rank}.json").read_text()) for rank in range(ranks)]

    def _path(self, step: int, part: bool = False) -> Path:
        name = f"step-{step:08d}"
        return self.directory / (f".{name}.partial" if part else name)


def _tensors(trained: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """What trains and its optimizer state, flat, by name: the tensors themselves, not copies."""
    found: dict[str, torch.Tensor] = {f"model.{name}": p.detach() for name, p in trained.items()}
    for name, state in state_tensors(trained, optimizer).items():
        found |= {f"optimizer.{name}.{key}": value for key, value in state.items()}
    return found


def _random_state(device: torch.device) -> dict[str, str]:
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return {kind: base64.b64encode(state.numpy().tobytes()).decode() for kind, state in states.items()}


def _restore_random_state(states: dict[str, str], device: torch.device) -> None:
    read = {k: torch.frombuffer(bytearray(base64.b64decode(v)), dtype=torch.uint8) for k, v in states.items()}
    torch.set_rng_state(read["cpu"])
    if device.type == "cuda" and "cuda" in read:
        torch.cuda.set_rng_state(read["cuda"], device)
