"""Whole training runs as Python functions: typed keyword arguments -> flamboyance.training.run.TrainingRun.

`RECIPES` has them by name. It is imported when it is first used, so that names and summaries need no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flamboyance.training.run import TrainingRun

    RECIPES: dict[str, Callable[..., TrainingRun]]

SUMMARIES = {
    "mini": "Trains flamingo-mini from data that it makes itself: toy pictures, handwritten digits, made-up words.",
    "openflamingo-3b": "OpenFlamingo-3B: CLIP ViT-L/14 and MPT-1B, a block before every layer.",
    "openflamingo-3b-instruct": "OpenFlamingo-3B (Instruct): the same with MPT-1B tuned on Dolly.",
    "openflamingo-4b": "OpenFlamingo-4B: CLIP ViT-L/14 and RedPajama-3B, a block before every second layer.",
    "openflamingo-4b-instruct": "OpenFlamingo-4B (Instruct): the same with RedPajama-3B Instruct.",
    "openflamingo-9b": "OpenFlamingo-9B: CLIP ViT-L/14 and MPT-7B, a block before every fourth layer.",
    "flamingo-3b": "Flamingo-3B as published: NFNet-F6, a block before every layer.",
    "flamingo-9b": "Flamingo-9B as published: NFNet-F6, a block before every 4th layer.",
    "flamingo-80b": "Flamingo-80B as published: NFNet-F6, a block before every 7th layer.",
    "new": "Trains a new Flamingo around any frozen vision tower and any frozen language model, on your own data.",
    "finetune": "Trains a checkpoint further on your own images and texts: a folder, CSV, TSV, JSONL, or tars.",
}
"""The first lines of the recipes' docstrings."""


def __getattr__(name: str) -> Any:
    if name != "RECIPES":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from flamboyance.recipes import finetune, flamingo, mini, new, openflamingo

    value = {"mini": mini.mini, **openflamingo.RECIPES, **flamingo.RECIPES}
    value |= {"new": new.new, "finetune": finetune.finetune}
    globals()["RECIPES"] = value
    return value


def unknown(name: str, known: Iterable[str] = tuple(SUMMARIES)) -> ValueError:
    """The error for a name that no recipe has."""
    from difflib import get_close_matches

    known = list(known)
    near = get_close_matches(name, known, 1)
    hint = f" Did you mean {near[0]}?" if near else ""
    return ValueError(
        f"there is no recipe {name!r}.{hint} There are {', '.join(known)}; your own is path/to/file.py:function"
    )
