"""A whole training run: the value that a recipe returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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
    """

    training: TrainingConfig
    build: Callable[[], tuple[Any, Any]]
    outline: Callable[[], FlamingoConfig]
    evaluate: Callable[[Any, Any], dict[str, float]] | None = None
    prepare: Callable[[], None] | None = None
