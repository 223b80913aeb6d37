"""A whole training run: the value that a recipe returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flamboyance.training.config import TrainingConfig

if TYPE_CHECKING:
    from flamboyance.configuration import FlamingoConfig


@dataclass(frozen=True)
class TrainingRun:
    """A training run.

    Attributes:
        training: its settings.
        build: makes (model, processor) with pretrained backbones. Called once on each rank.
        outline: makes the model's configuration without loading weights, for `flamboyance plan`.
        evaluate: (model, processor) -> figures by name. Called on all ranks before the first step and every
            `evaluate_every` steps; the first rank's figures are logged. The few-shot tasks of `training.evaluate` come
            beside it.
        prepare: called once on the first rank before anything else, e.g. to write shards.
        trainer: another `loop.Trainer`, of a model that is no Flamingo.
        usage: the directory of the model -> what it is good for, in words; None: a Flamingo's commands.
    """

    training: TrainingConfig
    build: Callable[[], tuple[Any, Any]]
    outline: Callable[[], FlamingoConfig]
    evaluate: Callable[[Any, Any], dict[str, float]] | None = None
    prepare: Callable[[], None] | None = None
    trainer: Callable[..., Any] | None = None
    usage: Callable[[Path], str] | None = None
