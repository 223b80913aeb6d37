"""Checkpoints of a run: the complete state that the next step depends on, written while the training continues.

A checkpoint is written as `checkpoints/.step-00000500.partial` and renamed when every rank has finished, so a kill at
any time leaves the previous one intact. All ranks detect together that a checkpoint is damaged, and read the one before
it. `checkpoint_files` describes the files.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from flamboyance.processes import World
from flamboyance.training import checkpoint_files as files
from flamboyance.training.checkpoint_files import Damaged
from flamboyance.training.optimizer import state_tensors

NAME = re.compile(r"step-(\d{8,})$")
PATIENCE = 120  # seconds until another node must see the files that the first rank sees


class Checkpoints:
    """The checkpoints in a run's directory.

    Args:
        directory: made if missing.
        keep: number of checkpoints that are kept, the newest ones.
        identity: JSON that identifies the model; a checkpoint of another model is refused.
    """

    def __init__(self, directory: Path, world: World, keep: int, identity: dict[str, Any]):
        self.identity = identity
        self.directory = directory
        self.world = world
        self.keep = keep
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future | None = None
        self._step = 0
        # A separate group: the writing thread communicates at the same time as the training.
        self._group = dist.new_group(backend="gloo") if world.size > 1 else None
        if world.first:
            directory.mkdir(parents=True, exist_ok=True)
            for unfinished in directory.glob(".step-*"):
                _remove(unfinished)
        world.wait()

    def steps(self) -> list[int]:
        """Steps of the checkpoints, oldest first; one of them may be damaged."""
        found = (NAME.match(path.name) for path in self.directory.iterdir())
        return sorted(int(match[1]) for match in found if match)

    def save(
        self,
        step: int,
        trained: dict[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
        state: dict[str, Any],
    ) -> None:
        """Starts to write a checkpoint in a thread, after waiting for the previous one.

        Args:
            step: number of optimizer steps taken.
            state: JSON of this rank.

        Raises:
            OSError: the previous checkpoint could not be written.
        """
        self.wait()
        pieces = files.share(_tensors(trained, optimizer), self.world.rank, self.world.size)
        state = {**state, "random": _random_state(self.world.device)}
        self._step = step
        self._writing = self._writer.submit(self._write, step, pieces, state)

    def _write(self, step: int, pieces: dict[str, files.Piece], state: dict[str, Any]) -> None:
        """Runs in the thread. It fails on all ranks or on none."""
        part, entries, problem = self._path(step, part=True), {}, None
        try:
            entries = files.write_share(part, self.world.rank, pieces, state)
        except (OSError, ValueError, RuntimeError, MemoryError, TypeError) as error:
            problem = _described(error)
        every = self._exchange((entries, problem))
        problem = next((problem for _, problem in every if problem), None)
        if self.world.first and problem is None:
            about = {"step": step, "ranks": self.world.size, "model": self.identity}
            try:
                files.write_manifest(part, about, {name: e for entries, _ in every for name, e in entries.items()})
            except (OSError, ValueError, RuntimeError, MemoryError, TypeError) as error:
                problem = _described(error)
        if problem := self._exchange(problem)[0]:
            raise OSError(problem)

    def _exchange(self, value: Any) -> list[Any]:
        """Every rank's value; for the writing thread."""
        every = [value] * self.world.size
        if self._group:
            dist.all_gather_object(every, value, group=self._group)
        return every

    def wait(self) -> Path | None:
        """Waits until the checkpoint being written is complete. Returns its path, or None if none was being written.

        Raises:
            OSError: it could not be written; the previous one is untouched.
        """
        if self._writing is None:
            return None
        writing, self._writing = self._writing, None
        try:
            writing.result()
        except (OSError, RuntimeError) as error:
            good = self.steps()
            if self.world.first:  # free the space of its files
                shutil.rmtree(self._path(self._step, part=True), ignore_errors=True)
            raise OSError(
                f"the checkpoint of step {self._step} could not be written to {self.directory}: {_described(error)}; "
                + (f"the last good one is of step {good[-1]}; " if good else "there is none before it; ")
                + "remove the cause (free space on that disk, or restore access to it) and start the same command "
                "again to resume"
            ) from error
        if self.world.first:  # every rank has reported success
            if self._path(self._step).exists():
                self._discard(self._step)
            os.replace(self._path(self._step, part=True), self._path(self._step))
            for old in self.steps()[: -self.keep]:
                self._discard(old)
        return self._path(self._step)

    def _discard(self, step: int) -> None:
        # Renamed first, so that a half removed checkpoint is never read.
        removed = self.directory / f".{self._path(step).name}.removed"
        os.replace(self._path(step), removed)
        _remove(removed)

    @property
    def busy(self) -> bool:
        return self._writing is not None and not self._writing.done()

    def load(self, trained: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> list[dict[str, Any]] | None:
        """Reads the newest intact checkpoint into the parameters and the optimizer. Damaged newer ones are renamed to
        `step-….damaged`, with a warning.

        Returns:
            The `state` that each rank gave to `save`, with "step"; None if there is no checkpoint.

        Raises:
            ValueError: it is a checkpoint of another model, or all checkpoints are damaged.
        """
        # The first rank reads what each checkpoint contains. All ranks must find one intact before any reads it.
        steps, problems = self.world.broadcast(self.steps() if self.world.first else None), {}
        for step in reversed(steps):
            found = self.world.broadcast(_tried(self._opened, step) if self.world.first else None)
            if not isinstance(found, Problem):
                found = self._agreed(_tried(self._verified, step, found))
            if not isinstance(found, Problem):
                self._refuse_other_model(step, found, trained, optimizer)
                found = self._agreed(_tried(self._read, step, found, trained, optimizer))
            if isinstance(found, Problem):
                problems[step] = found.text
                continue
            if self.world.first:
                self._set_aside(problems, step)
            return [{**state, "step": step} for state in found["states"]]
        if problems:
            listed = "; ".join(f"{self._path(step).name}: {text}" for step, text in problems.items())
            raise ValueError(
                f"no checkpoint in {self.directory} can be read ({listed}): restore one from a copy, or start again "
                "with another output="
            )
        return None

    def _agreed(self, found: Any) -> Any:
        """This rank's result, or the first problem of any rank."""
        every = self.world.gather(found if isinstance(found, Problem) else None)
        return next((problem for problem in every if problem), found)

    def _opened(self, step: int) -> dict[str, Any]:
        """The manifest, with the "states" of the ranks that wrote the checkpoint, and the "shapes" of its tensors."""
        about = files.read_manifest(self._path(step))
        if about["step"] != step:
            raise Damaged(f"its manifest is of step {about['step']}")
        files.verify(self._path(step), about["files"], [f"rank-{rank}.json" for rank in range(about["ranks"])])
        states = files.read_states(self._path(step), about["ranks"])
        return {**about, "states": states, "shapes": files.shapes(states)}

    def _verified(self, step: int, about: dict[str, Any]) -> dict[str, Any]:
        """Compares the checksums of this rank's share of the tensor files."""
        for _ in range(0 if self.world.first else PATIENCE):  # a shared directory may appear later on other nodes
            if self._path(step).exists():
                break
            time.sleep(1)
        mine = range(self.world.rank, about["ranks"], self.world.size)
        files.verify(self._path(step), about["files"], [f"rank-{rank}.safetensors" for rank in mine])
        return about

    def _read(
        self, step: int, about: dict[str, Any], trained: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer
    ) -> dict[str, Any]:
        states = about["states"]
        files.read_tensors(self._path(step), states, _tensors(trained, optimizer))
        if len(states) == self.world.size:
            _restore_random_state(states[self.world.rank]["random"], self.world.device)
        return about

    def _refuse_other_model(
        self, step: int, about: dict[str, Any], trained: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer
    ) -> None:
        path, advice = self._path(step), "give the run another output=, or the model that it was started with"
        # Checkpoints of earlier versions have no digest of frozen weights.
        expected = {key: value for key, value in self.identity.items() if key in about["model"]}
        if about["model"] != expected:
            raise ValueError(
                f"{path} is a checkpoint of another model: of {about['model']}, expected {expected}; {advice}"
            )
        stored = about["shapes"]
        shapes = {name: tuple(tensor.shape) for name, tensor in _tensors(trained, optimizer).items()}
        for name in sorted(shapes.keys() | stored.keys()):
            if shapes.get(name) != stored.get(name):
                raise ValueError(
                    f"{path} is a checkpoint of another model: it has {name} as {stored.get(name)}, this model as "
                    f"{shapes.get(name)}; {advice}"
                )

    def _set_aside(self, problems: dict[int, str], good: int) -> None:
        for step, text in problems.items():
            path = self._path(step)
            aside = path.with_name(f"{path.name}.damaged")
            if aside.exists() or aside.is_symlink():
                _remove(aside)
            os.replace(path, aside)
            warnings.warn(
                f"the checkpoint {path} is damaged: {text}; it is renamed to {aside.name}, and the run resumes after "
                f"step {good}",
                stacklevel=3,
            )

    def _path(self, step: int, part: bool = False) -> Path:
        name = f"step-{step:08d}"
        return self.directory / (f".{name}.partial" if part else name)


class Problem:
    """Why a checkpoint cannot be used."""

    def __init__(self, text: str):
        self.text = text


def _tried(action: Callable[..., Any], *arguments: Any) -> Any:
    """The action's result, or a `Problem` if the files are damaged."""
    try:
        return action(*arguments)
    except (ValueError, OSError, RuntimeError, LookupError, TypeError, AttributeError) as error:
        return Problem(_described(error))


def _described(error: BaseException) -> str:
    """The error in one line, with its file if known."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    text = " ".join(str(error).split())
    return text if isinstance(error, (ValueError, OSError)) and text else f"{type(error).__name__} {text}".strip()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _tensors(trained: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The trainable parameters and their optimizer state, flat, by name: the tensors themselves, not copies."""
    tensors: dict[str, torch.Tensor] = {f"model.{name}": p.detach() for name, p in trained.items()}
    for name, state in state_tensors(trained, optimizer).items():
        tensors |= {f"optimizer.{name}.{key}": value for key, value in state.items()}
    return tensors


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
