"""A whole training run: the value that a recipe returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
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
        validation: the sources of documents that `evaluate` reads and nothing is trained on, by name.
        trainer: another `loop.Trainer`, of a model that is no Flamingo.
        usage: the directory of the model -> what it is good for, in words; None: a Flamingo's commands.
    """

    training: TrainingConfig
    build: Callable[[], tuple[Any, Any]]
    outline: Callable[[], FlamingoConfig]
    evaluate: Callable[[Any, Any], dict[str, float]] | None = None
    prepare: Callable[[], None] | None = None
    validation: Mapping[str, Any] = field(default_factory=dict)
    trainer: Callable[..., Any] | None = None
    usage: Callable[[Path], str] | None = None

    def with_sources(self, sources: Mapping[str, Any], validation: Mapping[str, Any]) -> TrainingRun:
        """The run with other sources of the same names, also where `build`, `evaluate` and `prepare` are partials that
        hold one: what is measured is read as what is trained on."""
        pairs = ((self.training.sources, sources), (self.validation, validation))
        others = {id(old[name]): new[name] for old, new in pairs for name in old}
        functions = {name: _with_others(getattr(self, name), others) for name in ("build", "evaluate", "prepare")}
        training = replace(self.training, sources=dict(sources))
        return replace(self, training=training, validation=validation, **functions)


def _with_others(value: Any, others: Mapping[int, Any]) -> Any:
    if id(value) in others:
        return others[id(value)]
    if isinstance(value, partial):
        given = {name: _with_others(one, others) for name, one in value.keywords.items()}
        return partial(value.func, *(_with_others(one, others) for one in value.args), **given)
    if type(value) in (tuple, list):
        return type(value)(_with_others(one, others) for one in value)
    return value
