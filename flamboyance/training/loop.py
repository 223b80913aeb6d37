"""The training loop, top to bottom.

The same command starts a run, goes on with one that was stopped or killed, and of one that is done writes the model.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from flamboyance.data.loader import Loader, merge_states
from flamboyance.training.checkpoint import Checkpoints
from flamboyance.training.config import Training, check
from flamboyance.training.files import export, identity, only_one, write_settings
from flamboyance.training.logging import Log
from flamboyance.training.optimizer import make_optimizer, rate_at
from flamboyance.training.parallel import Parallel, World, set_precision, world
from flamboyance.training.run import Run
from flamboyance.training.signals import Interrupted, handling_signals
from flamboyance.training.step import Outcome, Stepper
from flamboyance.training.throughput import Meter

SELDOM = 100  # steps between figures that ask every rank: drops by reason, and the gates of a sharded model


def train(run: Run, command: list[str] | None = None) -> None:
    """Trains as the run says, from its newest checkpoint if it has one.

    Writes to `output`: training.json (the resolved settings), log.jsonl, checkpoints/, and at the end model/, which
    `from_pretrained` opens.

    Args:
        command: how the run was started, for training.json.

    Raises:
        ValueError: settings or data that cannot be trained on, or an output of another run; the message says which.
        FloatingPointError: `max_skipped` steps in a row had no finite gradient.
        Interrupted: SIGTERM or SIGINT came; a checkpoint is written first.
    """
    check(run.training)
    if run.training.evaluate_every and run.evaluate is None:
        raise ValueError(
            f"evaluate_every={run.training.evaluate_every}, but this recipe has no evaluation; leave it out."
        )
    output = Path(run.training.output)
    with world() as here, only_one(output, here), handling_signals() as stopped:
        if here.first and run.prepare is not None:
            run.prepare()
        here.wait()
        _settle(run.training, here)
        trainer = Trainer(run, here)
        try:
            if here.first:
                write_settings(output, run, command)
            trainer.steps(stopped)
        finally:
            trainer.close()
        export(trainer.parallel, trainer.processor, run.training)
        here.wait()


class Trainer:
    """All parts of a run, as its newest checkpoint left them."""

    def __init__(self, run: Run, here: World):
        self.here, self.config, self.evaluate = here, run.training, run.evaluate
        config, output = self.config, Path(run.training.output)
        self.model, self.processor = run.build()
        set_precision(self.model, config.precision)
        self.parallel = Parallel(self.model.train(), config, here)
        self.trained = self.model.trained_parameters()
        self.optimizer = make_optimizer(self.trained, config)
        self.checkpoints = Checkpoints(output / "checkpoints", here, config.keep, identity(self.model))
        states = self.checkpoints.load(self.trained, self.optimizer)
        self.first = states[0]["step"] if states else 0
        self.skipped = states[0]["skipped"] if states else 0
        self.loader = Loader(
            config.sources, self.processor, seed=config.seed, workers=config.workers, prefetch=config.prefetch,
            rank=here.rank, ranks=here.size, state=merge_states([s["data"] for s in states]) if states else None,
            pin_memory=here.device.type == "cuda",
        )  # fmt: skip
        self.stepper = Stepper(self.parallel, self.optimizer, config, self.processor.image_processor.normalized)
        self.meter = Meter(self.model, here, config.precision)
        self.log = None
        if here.first:
            self.log = Log(output, self.first, config.steps, config.track, dataclasses.asdict(config))
            self.say(_opening(self.model, config, here, self.first))

    def steps(self, stopped: Callable[[], bool]) -> None:
        """From the first step that is not done to the last."""
        config, in_a_row, figures = self.config, 0, {}
        if not self.first and config.evaluate_every:  # where it starts from
            self._write(0, self._evaluation(0))
        for step in range(self.first + 1, config.steps + 1):
            saving = step % config.checkpoint_every == 0 or step == config.steps
            outcome, figures = self._step(step, saving or step % SELDOM == 0)
            if config.evaluate_every and step % config.evaluate_every == 0:
                figures |= self._evaluation(step, figures)
            self._write(step, figures)
            in_a_row = in_a_row + 1 if outcome.skipped else 0
            if in_a_row == config.max_skipped:
                self.checkpoints.wait()
                raise FloatingPointError(_explain(step, outcome, config))
            stop = stopped() if self.here.size == 1 else self.here.sum([stopped()])[0] > 0
            if stop or saving:
                self.save(step)
            elif not self.checkpoints.busy:
                self.checkpoints.wait()
            if stop and step < config.steps:
                self.checkpoints.wait()
                self.say(f"stopped after step {step}; its checkpoint is written. The same command goes on.")
                raise Interrupted(step)
        self.checkpoints.wait()
        if figures.get("dropped"):
            self.say("documents dropped: " + ", ".join(f"{n} {what}" for what, n in figures["dropped"].items()))

    def _step(self, step: int, seldom: bool) -> tuple[Outcome, dict[str, Any]]:
        """One optimizer step, and its line in log.jsonl."""
        self.meter.begin()
        items = []
        for _ in range(self.config.accumulate):
            items.append(next(self.loader))
            self.meter.waited += self.loader.waited
        rate = rate_at(step - 1, self.config)
        outcome = self.stepper(items, rate)
        self.skipped += outcome.skipped
        figures = {
            "loss": outcome.loss,
            **{f"loss/{name}": loss for name, loss in outcome.losses.items()},
            "gradient_norm": outcome.gradient_norm,
            "rate": rate,
            "skipped": self.skipped,
        }
        if seldom or not self.parallel.sharded:
            figures["gates/attention"] = self.parallel.tanh([b.attention_gate for b in self.model.blocks])
            figures["gates/feed_forward"] = self.parallel.tanh([b.feed_forward_gate for b in self.model.blocks])
        figures |= self.meter.figures(outcome)
        if seldom:
            figures["dropped"] = self.here.counted({": ".join(key): n for key, n in self.loader.drops.items()})
        return outcome, figures

    def _evaluation(self, step: int, figures: dict[str, Any] | None = None) -> dict[str, Any]:
        """Every rank evaluates, as a sharded model needs; the first one's figures are kept. Where it fails, the steps
        until here are saved first."""
        assert self.evaluate is not None
        began, device = time.perf_counter(), self.here.device
        try:
            with (
                torch.random.fork_rng([device] if device.type == "cuda" else []),
                torch.no_grad(),
                self.parallel.readable() as model,
            ):
                found = {f"evaluation/{k}": float(v) for k, v in self.evaluate(model, self.processor).items()}
        except Exception:
            if step:
                self._write(step, figures or {})
                self.save(step)
                self.checkpoints.wait()
            raise
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
        """Also after an error: a checkpoint that is being written is put in place, where no other rank is asked."""
        self.loader.close()
        if self.here.size == 1:
            with suppress(OSError):
                self.checkpoints.wait()
        if self.log:
            self.log.close()


def _settle(config: Training, here: World) -> None:
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    wanted = here.device.type == "cpu" if config.deterministic is None else config.deterministic
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without which CUDA refuses
    torch.use_deterministic_algorithms(wanted, warn_only=config.deterministic is None)
    torch.manual_seed(config.seed)
    if not sys.stderr.isatty() or not here.first:
        transformers_logging.disable_progress_bar()


def _explain(step: int, outcome: Outcome, config: Training) -> str:
    losses = ", ".join(f"{name} {loss:.3g}" for name, loss in outcome.losses.items())
    return (
        f"step {step}: the gradient was not finite {config.max_skipped} times in a row (losses: {losses}), so the run "
        "stops; parameters are those of the last good step, and the newest checkpoint is kept. Causes that are "
        f"common: too high a rate (rate={config.rate:g}), no warm-up (warmup={config.warmup}), precision="
        f"{config.precision!r} with a language model that overflows in it. Lower the rate, or try precision=fp32."
    )


def _opening(model: Any, config: Training, here: World, first: int) -> str:
    trained = sum(p.numel() for p in model.trained_parameters().values())
    whole = sum(p.numel() for p in model.parameters())
    how = "1 process" if here.size == 1 else f"{here.size} processes ({config.parallel})"
    resumed = f", going on after step {first}" if first else ""
    return (
        f"{trained / 1e6:,.1f} M of {whole / 1e6:,.1f} M parameters train, on {how} of {here.device.type}, "
        f"{config.precision}; {config.steps} steps{resumed}; log in {config.output}/log.jsonl"
    )
