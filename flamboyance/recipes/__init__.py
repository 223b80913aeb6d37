"""Whole training runs as Python functions: typed keyword arguments -> flamboyance.training.run.TrainingRun.

`RECIPES` has them by name. It is imported when it is first used, so that names and summaries need no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from flamboyance.recipes.summaries import SUMMARIES, unknown

__all__ = ["RECIPES", "SUMMARIES", "unknown"]

if TYPE_CHECKING:
    from flamboyance.training.run import TrainingRun

    RECIPES: dict[str, Callable[..., TrainingRun]]


def __getattr__(name: str) -> Any:
    if name != "RECIPES":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from flamboyance.recipes import contrastive, finetune, flamingo, mini, new, openflamingo

    value = {"mini": mini.mini, **openflamingo.RECIPES, **flamingo.RECIPES}
    value |= {"contrastive": contrastive.contrastive, "new": new.new, "finetune": finetune.finetune}
    globals()["RECIPES"] = value
    return value
