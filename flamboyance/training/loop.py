"""The training loop, top to bottom.

The same call starts a run, resumes one that was stopped or killed, and exports the model of one that is finished.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import time
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, NoReturn

import torch
from transformers.utils import logging as transformers_logging

from flamboyance.data.documents import HELD_OUT
from flamboyance.data.loader import Loader, merge_states
from flamboyance.processes import World, world
from flamboyance.training.checkpoint import Checkpoints
from flamboyance.training.config import TrainingConfig, check
from flamboyance.training.features import prepare_features
from flamboyance.training.few_shot import FewShotTasks
from flamboyance.training.logging import Log
from flamboyance.training.optimizer import make_optimizer
from flamboyance.training.parallel import Parallel, set_precision
from flamboyance.training.run import TrainingRun
from flamboyance.training.run_directory import EXPORT, explaining_full_disk, export, identity, write_settings
from flamboyance.training.schedule import learning_rate_at
from flamboyance.training.signals import NUMBERS, Interrupted, Signals, handling_signals
from flamboyance.training.step import Stepper, StepResult
from flamboyance.training.throughput import Meter, ModelFlops
from flamboyance.training.trained_parts import TrainedParts

PATIENCE = 10  # seconds until a run that was just killed has ended
SELDOM = 100  # steps between figures that need every rank: dropped documents, and the gates of a sharded model


def train(run: TrainingRun, command: list[str] | None = None) -> Path:
    """Trains from the run's newest checkpoint, or from the start.

    Writes to `output`: training.json (the resolved settings), log.jsonl, checkpoints/, and at the end model/, which
    `from_pretrained` opens.

    Args:
        command: the command that started the run, for training.json.

    Returns:
        The directory of the model.

    Raises:
        ValueError: settings or data that cannot be trained on, or an output of another run.
        OSError: a file cannot be written; names it.
        NotFinite: `max_skipped_steps` steps in a row had no finite gradient.
        OutOfMemory: a step needs more memory than the device has.
        Interrupted: SIGTERM or SIGINT during training, after a checkpoint is written; or SIGTERM before training.
        KeyboardInterrupt: SIGINT before training, or a second SIGINT.
    """
    check(run.training)
    if run.training.evaluate_every and run.evaluate is None and not run.training.evaluate:
        raise ValueError(
            f"evaluate_every={run.training.evaluate_every}: this recipe has no evaluation of its own; add "
            "evaluate=TASKS, such as birds.csv, or leave the setting out"
        )
    tasks = FewShotTasks.open(run.training) if run.training.evaluate else None  # before a model is loaded
    output = Path(run.training.output)
    with (
        world() as here,
        here.locked(output, PATIENCE),
        explaining_full_disk(output),
        handling_signals(here.first) as signals,
    ):
        try:
            if here.first and run.prepare is not None:
                run.prepare()
            here.wait()
            configure_torch(run.training, here)
            trainer = (run.trainer or Trainer)(run, here, signals, tasks)
        except Interrupted:
            print("stopped before the first step; the same command resumes", file=sys.stderr)
            raise
        with signals.deferred():
            try:
                if here.first:
                    write_settings(output, run, command)
                trainer.steps()
            finally:
                trainer.close()
        directory = trainer.export()
        here.wait()
    return directory


class NotFinite(FloatingPointError, ValueError):
    """Too many steps in a row had no finite gradient."""


class OutOfMemory(MemoryError, ValueError):
    """A step needs more memory than the device has."""


class Trainer:
    """All parts of a run, restored from its newest checkpoint. The methods from `parallelized` to `export` are of a
    Flamingo; a subclass has those of another model."""

    def __init__(self, run: TrainingRun, here: World, signals: Signals, tasks: FewShotTasks | None = None):
        self.signals, self.tasks = signals, tasks
        self.here, self.config, self.evaluate = here, run.training, run.evaluate
        config, output = self.config, Path(run.training.output)
        self.model, self.processor = run.build()
        self.parallel = self.parallelized()
        self.trained = self.model.trained_parameters()
        self.optimizer = self.make_optimizer()
        self.checkpoints = Checkpoints(output / "checkpoints", here, config.keep_checkpoints, self.identity())
        states = self.checkpoints.load(self.trained, self.optimizer)
        self.first = states[0]["step"] if states else 0
        self.skipped = states[0]["skipped"] if states else 0
        if self.first > config.steps:
            raise ValueError(
                f"steps={config.steps}: the run in {output} has taken {self.first} steps, and none is taken back; give "
                f"steps={self.first} or more, or another output="
            )
        if not states and (output / EXPORT).exists():
            raise ValueError(
                f"{output} holds a finished model and no checkpoint to go on from: a new run would replace it; give "
                f"another output=, or remove {output / EXPORT}"
            )
        self.loader = Loader(
            config.sources, self.processor, seed=config.seed, workers=config.workers, prefetch=config.prefetch,
            rank=here.rank, ranks=here.size, state=merge_states([s["data"] for s in states]) if states else None,
            pin_memory=here.device.type == "cuda", **self.reading(),
        )  # fmt: skip
        self.stepper = self.make_stepper()
        self.meter = Meter(self.flops(), here, config.precision)
        self.log = None
        if here.first:
            self.log = Log(output, self.first, config.steps, config.track, dataclasses.asdict(config))
            self.say(_opening(self.model, config, here, self.first))

    def parallelized(self) -> Parallel:
        """The model in the run's precision, ready to train."""
        TrainedParts.of(self.config).apply(self.model)
        set_precision(self.model, self.config.precision)
        return Parallel(self.model.train(), self.config, self.here)

    def make_optimizer(self) -> torch.optim.Optimizer:
        return make_optimizer(self.trained, self.config)

    def identity(self) -> dict[str, Any]:
        """Identifies the model that a checkpoint belongs to."""
        return identity(self.model)

    def reading(self) -> dict[str, Any]:
        """Options of the loader."""
        features = None
        if self.config.cache_features:
            features = prepare_features(self.model.vision, self.processor, self.config, self.here)
        return {"features": features, "frames": self.model.config.resampler["max_frames"]}

    def make_stepper(self) -> Any:
        return Stepper(self.parallel, self.optimizer, self.config, self.processor.image_processor.normalized)

    def flops(self) -> ModelFlops:
        return ModelFlops.of(self.model, self.config.cache_features)

    def extra_figures(self, result: Any, seldom: bool) -> dict[str, Any]:
        """Figures of the model itself after a step."""
        if self.parallel.sharded and not seldom:
            return {}
        return {
            "gates/attention": self.parallel.tanh([b.attention_gate for b in self.model.blocks]),
            "gates/feed_forward": self.parallel.tanh([b.feed_forward_gate for b in self.model.blocks]),
        }

    def export(self, step: int | None = None) -> Path:
        """Writes the model, at the end or after so many steps; returns its directory. Every rank must call this."""
        return export(self.parallel, self.processor, self.config, step)

    def steps(self) -> None:
        """Takes the steps that remain."""
        config, in_a_row, figures = self.config, 0, {}
        self._catch_up()
        for step in range(self.first + 1, config.steps + 1):
            saving = step % config.checkpoint_every == 0 or step == config.steps
            result, figures = self._step(step, saving or step % SELDOM == 0)
            if config.evaluate_every and step % config.evaluate_every == 0:
                figures |= self._evaluation(step, figures)
            self._write(step, figures)
            in_a_row = in_a_row + 1 if result.skipped else 0
            if in_a_row == config.max_skipped_steps:
                self._finish_checkpoint()
                raise NotFinite(_explain(step, result, config))
            stop = self._stopped()
            if stop or saving:
                self.save(step)
            elif not self.checkpoints.busy:
                self._finish_checkpoint()
            if stop and step < config.steps:
                self._stop(step, stop)
            if config.export_every and step % config.export_every == 0 and step < config.steps:
                self._export(step)
        self._finish_checkpoint()
        self._say_left_out(figures.get("dropped", {}))

    def _catch_up(self) -> None:
        """Does what belongs to the step that the run begins or resumes after: the baseline before the first step, or
        what a signal or an error prevented then."""
        config, step, last = self.config, self.first, self.log.last if self.log else {}
        evaluated = last.get("step") == step and "evaluation_s" in last
        evaluated = self.here.broadcast(evaluated)  # the first rank has the log
        if config.evaluate_every and step % config.evaluate_every == 0 and not evaluated:
            found = self._evaluation(step)
            if self.log:
                self.log.complete(step, found)
        if config.export_every and step % config.export_every == 0 and 0 < step < config.steps:
            self._export(step)

    def _export(self, step: int) -> None:
        self.say(f"model: {self.export(step)}")

    def _stopped(self) -> int:
        """The signal that any rank received, or 0."""
        if self.here.size == 1:
            return self.signals()
        counts = self.here.sum([self.signals() == number for number in NUMBERS])
        return next((number for number, count in zip(NUMBERS, counts, strict=True) if count), 0)

    def _stop(self, step: int, number: int) -> NoReturn:
        self._finish_checkpoint()
        self.say(f"stopped after step {step}; its checkpoint is written, and the same command resumes")
        raise Interrupted(number, step)

    def _finish_checkpoint(self) -> None:
        """Waits for the checkpoint being written."""
        path = self.checkpoints.wait()
        if path:
            self.say(f"checkpoint: {path}")

    def _say_left_out(self, dropped: dict[str, int]) -> None:
        """Reports the documents that were not trained on. `dropped` counts a document once per pass over the data."""
        passes, left_out = self.loader.passes, {}
        for key, count in dropped.items():
            source, _, reason = key.partition(": ")
            if reason != HELD_OUT:
                left_out[key] = -(-count // max(passes.get(source, 1), 1))
        if left_out:
            each = " in each pass over the data" if max(passes.values()) > 1 else ""
            listed = ", ".join(f"{key} ({count:,})" for key, count in left_out.items())
            self.say(f"documents left out{each}: {listed}")

    def _step(self, step: int, seldom: bool) -> tuple[StepResult, dict[str, Any]]:
        """One optimizer step, and its figures for log.jsonl."""
        self.meter.begin()
        items = []
        for _ in range(self.config.gradient_accumulation_steps):
            items.append(next(self.loader))
            self.meter.waited += self.loader.waited
        rate = learning_rate_at(step - 1, self.config)
        try:
            result = self.stepper(items, rate)
        except torch.OutOfMemoryError as error:
            raise OutOfMemory(_too_large(step, self.config, self.here)) from error
        self.skipped += result.skipped
        figures = {
            "loss": result.loss,
            **{f"loss/{name}": loss for name, loss in result.losses.items()},
            "gradient_norm": result.gradient_norm,
            "learning_rate": rate,
            "skipped": self.skipped,
        }
        figures |= self.extra_figures(result, seldom)
        figures |= self.meter.figures(result)
        if seldom:
            figures["dropped"] = self.here.sum_counts({": ".join(key): n for key, n in self.loader.drops.items()})
        return result, figures

    def _evaluation(self, step: int, figures: dict[str, Any] | None = None) -> dict[str, Any]:
        """Every rank evaluates, because a sharded model needs every rank. In a single process a signal interrupts the
        evaluation, because it may take long.

        Args:
            figures: of the step that was just taken: if the evaluation fails, they and a checkpoint are written first.
        """
        began, device = time.perf_counter(), self.here.device
        try:
            with (
                self.signals.at_once() if self.here.size == 1 else nullcontext(),
                torch.random.fork_rng([device] if device.type == "cuda" else []),
                torch.no_grad(),
                self.parallel.readable() as model,
            ):
                found = dict(self.evaluate(model, self.processor)) if self.evaluate else {}
                if self.tasks:
                    found |= self.tasks.scores(model, self.processor, step, self.here, self.parallel.sharded)
        except BaseException as error:
            if figures is not None:
                self._write(step, figures)
                self.save(step)
                if isinstance(error, Interrupted | KeyboardInterrupt):
                    self._stop(step, signal.SIGINT if isinstance(error, KeyboardInterrupt) else error.number)
                self._finish_checkpoint()
            raise
        found = {f"evaluation/{name}": float(value) for name, value in found.items()}
        return {**found, "evaluation_s": round(time.perf_counter() - began, 3)}

    def save(self, step: int) -> None:
        state = {"skipped": self.skipped, "data": self.loader.state()}
        self.checkpoints.save(step, self.trained, self.optimizer, state)

    def say(self, text: str) -> None:
        if self.log:
            self.log.say(text)

    def _write(self, step: int, figures: dict[str, Any]) -> None:
        if self.log:
            self.log.write(step, figures)

    def close(self) -> None:
        """Also called after an error. A single process still finishes the checkpoint that is being written."""
        self.loader.close()
        if self.here.size == 1:
            with suppress(OSError):
                self.checkpoints.wait()
        if self.log:
            self.log.close()


def configure_torch(config: TrainingConfig, here: World) -> None:
    """Torch's settings for this process: threads, determinism, the seed."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    wanted = here.device.type == "cpu" if config.deterministic is None else config.deterministic
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # required by cuBLAS
    torch.use_deterministic_algorithms(wanted, warn_only=config.deterministic is None)
    # Filling new memory shows where it is read before anybody wrote to it; it makes a step 1 to 2 % slower.
    torch.utils.deterministic.fill_uninitialized_memory = False  # ty: ignore[missing-attribute]
    torch.manual_seed(config.seed)
    if not sys.stderr.isatty() or not here.first:
        transformers_logging.disable_progress_bar()


def _explain(step: int, result: StepResult, config: TrainingConfig) -> str:
    losses = ", ".join(f"{name} {loss:.3g}" for name, loss in result.losses.items())
    return (
        f"step {step}: the gradient was not finite in {config.max_skipped_steps} steps in a row (losses: {losses}). "
        "The newest checkpoint is kept. Common causes: too high a learning rate "
        f"(learning_rate={config.learning_rate:g}), no warm-up (warmup_steps={config.warmup_steps}), a language "
        f"model that overflows in precision={config.precision}. Give a lower learning_rate, or precision=fp32."
    )


def _too_large(step: int, config: TrainingConfig, here: World) -> str:
    sizes = ", ".join(f"{name}.batch_size={source.batch_size}" for name, source in config.sources.items())
    return (
        f"step {step} needs more memory than {here.device} has ({sizes}, checkpoint_activations="
        f"{str(config.checkpoint_activations).lower()}, precision={config.precision}). Give a smaller batch_size with "
        "more gradient_accumulation_steps, checkpoint_activations=true, or precision=bf16. `flamboyance plan` "
        "estimates the memory of a run."
    )


def _opening(model: Any, config: TrainingConfig, here: World, first: int) -> str:
    trained = sum(p.numel() for p in model.trained_parameters().values())
    whole = sum(p.numel() for p in model.parameters())
    how = "1 process" if here.size == 1 else f"{here.size} processes ({config.parallel})"
    resumed = f", resumed after step {first}" if first else ""
    return (
        f"training {trained / 1e6:,.1f} M of {whole / 1e6:,.1f} M parameters, {how} on {here.device.type}, "
        f"{config.precision}; {config.steps} steps{resumed}; log in {config.output}/log.jsonl"
    )
