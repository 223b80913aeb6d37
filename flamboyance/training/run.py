"""What a recipe returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flamboyance.training.config import TrainingConfig

if TYPE_CHECKING:
    from flamboyance.configuration import FlamingoConfig


@dataclass(frozen=True)
class TrainingRun:
    """A whole training run.

    Attributes:
        training: its settings.
        build: makes (model, processor), with pretrained backbones. Called once on each rank.
        outline: the model's configuration, without loading any weights: what `flamboyance plan` counts with.
        evaluate: (model, processor) -> figures by name, called before the first step and every `evaluate_every`;
            by all ranks alike, the first one's figures are logged.
        prepare: called once, on the first rank, before anything else: writes shards where a recipe makes its own.
    """

    training: TrainingConfig
    build: Callable[[], tuple[Any, Any]]
    outline: Callable[[], FlamingoConfig]
    evaluate: Callable[[Any, Any], dict[str, float]] | None = None
    prepare: Callable[[], None] | None = None
