"""The training loop, top to bottom.

The same command starts a run, goes on with one that was stopped or killed, and does nothing more to one that is done.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from flamboyance.data.loader import Loader, merge_states
from flamboyance.training.checkpoint import Checkpoints
from flamboyance.training.config import Training, check
from flamboyance.training.files import export, write_settings
from flamboyance.training.logging import Log
from flamboyance.training.optimizer import make_optimizer, rate_at
from flamboyance.training.parallel import Parallel, World, set_precision, world
from flamboyance.training.run import Run
from flamboyance.training.signals import Interrupted, handling_signals
from flamboyance.training.step import Outcome, Stepper
from flamboyance.training.throughput import Meter

DROPS_EVERY = 100  # steps between counts of dropped documents in the log, beside those at checkpoints


def train(run: Run, command: list[str] | None = None) -> None:
    """Trains as the run says, from its newest checkpoint if it has one.

    Writes to `output`: training.json (the resolved settings), log.jsonl, checkpoints/, and at the end model/, which
    `from_pretrained` opens.

    Args:
        command: how the run was started, for training.json.

    Raises:
        ValueError: settings or data that cannot be trained on; the message says which.
        FloatingPointError: `max_skipped` steps in a row had no finite gradient.
        Interrupted: SIGTERM or SIGINT came; a checkpoint is written first.
    """
    config = run.training
    check(config)
    with world() as here, handling_signals() as stopped:
        output = Path(config.output)
        if here.first:
            output.mkdir(parents=True, exist_ok=True)
            if run.prepare is not None:
                run.prepare()
        here.wait()
        _settle(config, here)
        model, processor = run.build()
        set_precision(model, config.precision)
        parallel = Parallel(model.train(), config, here)
        trained = model.trained_parameters()
        optimizer = make_optimizer(trained, config)
        checkpoints = Checkpoints(output / "checkpoints", here, config.keep)
        states = checkpoints.load(trained, optimizer)
        first = states[0]["step"] if states else 0
        skipped = states[0]["skipped"] if states else 0
        loader = Loader(
            config.sources, processor, seed=config.seed, workers=config.workers, prefetch=config.prefetch,
            rank=here.rank, ranks=here.size, state=merge_states([s["data"] for s in states]) if states else None,
            pin_memory=here.device.type == "cuda",
        )  # fmt: skip
        stepper = Stepper(parallel, optimizer, config, processor.image_processor.normalized)
        log = None
        if here.first:
            write_settings(output, run, command)
            log = Log(output, first, config.steps, config.track, dataclasses.asdict(config))
            log.say(_opening(model, config, here, first))
        evaluating = run.evaluate is not None and config.evaluate_every > 0
        meter = Meter(model, here, config.precision)
        in_a_row, figures = 0, {}
        if not first and evaluating:  # where it starts from
            before = _evaluate(run.evaluate, parallel, processor)
            if log:
                log.write(0, before)
        try:
            for step in range(first + 1, config.steps + 1):
                meter.begin()
                items = []
                for _ in range(config.accumulate):
                    items.append(next(loader))
                    meter.waited += loader.waited
                rate = rate_at(step - 1, config)
                outcome = stepper(items, rate)
                in_a_row = in_a_row + 1 if outcome.skipped else 0
                skipped += outcome.skipped
                figures = _figures(outcome, rate, model, meter, skipped)
                saving = step % config.checkpoint_every == 0 or step == config.steps
                if saving or step % DROPS_EVERY == 0:
                    figures["dropped"] = here.counted({": ".join(key): n for key, n in loader.drops.items()})
                if evaluating and step % config.evaluate_every == 0:
                    figures |= _evaluate(run.evaluate, parallel, processor)
                if log:
                    log.write(step, figures)
                if in_a_row == config.max_skipped:
                    raise FloatingPointError(_explain(step, outcome, config))
                stop = stopped() if here.size == 1 else here.sum([stopped()])[0] > 0
                if stop or saving:
                    checkpoints.save(step, trained, optimizer, {"skipped": skipped, "data": loader.state()})
                elif not checkpoints.busy:
                    checkpoints.wait()
                if stop and step < config.steps:
                    checkpoints.wait()
                    if log:
                        log.say(f"stopped after step {step}; its checkpoint is written. The same command goes on.")
                    raise Interrupted(step)
            checkpoints.wait()
            if log and figures.get("dropped"):
                log.say("documents dropped: " + ", ".join(f"{n} {what}" for what, n in figures["dropped"].items()))
        finally:
            loader.close()
            if log:
                log.close()
        export(parallel, processor, config)
        here.wait()


def _settle(config: Training, here: World) -> None:
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    wanted = here.device.type == "cpu" if config.deterministic is None else config.deterministic
    torch.use_deterministic_algorithms(wanted, warn_only=config.deterministic is None)
    torch.manual_seed(config.seed)
    if not sys.stderr.isatty() or not here.first:
        transformers_logging.disable_progress_bar()


def _figures(outcome: Outcome, rate: float, model: Any, meter: Meter, skipped: int) -> dict[str, Any]:
    """A step's line in log.jsonl."""
    gates = {
        "gates/attention": [b.attention_gate for b in model.blocks],
        "gates/feed_forward": [b.feed_forward_gate for b in model.blocks],
    }
    return {
        "loss": outcome.loss,
        **{f"loss/{name}": loss for name, loss in outcome.losses.items()},
        "gradient_norm": outcome.gradient_norm,
        "rate": rate,
        "skipped": skipped,
        **{name: _tanh(parameters) for name, parameters in gates.items()},
        **meter.figures(outcome),
    }


def _tanh(gates: list[torch.Tensor]) -> list[float]:
    return torch.cat([Parallel.whole(gate.detach()) for gate in gates]).float().tanh().tolist()


def _evaluate(evaluate: Callable[[Any, Any], dict[str, float]], parallel: Parallel, processor: Any) -> dict[str, Any]:
    began = time.perf_counter()
    with torch.random.fork_rng(), torch.no_grad(), parallel.readable() as model:
        figures = {f"evaluation/{name}": value for name, value in evaluate(model, processor).items()}
    return {**figures, "evaluation_s": round(time.perf_counter() - began, 3)}


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
