"""What each recipe does, in a line. Torch is not imported."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

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
    "contrastive": "Pretrains a vision tower on images and their texts, as Flamingo's was, beside a text encoder.",
    "new": "Trains a new Flamingo around any frozen vision tower and any frozen language model, on your own data.",
    "finetune": "Trains a checkpoint further on your own images and texts: a folder, CSV, TSV, JSONL, or tars.",
}
"""The first lines of the recipes' docstrings."""


def unknown(name: str, known: Iterable[str] = tuple(SUMMARIES)) -> ValueError:
    """The error for a name that no recipe has."""
    known = list(known)
    near = get_close_matches(name, known, 1)
    hint = f" Did you mean {near[0]}?" if near else ""
    return ValueError(
        f"there is no recipe {name!r}.{hint} There are {', '.join(known)}; your own is path/to/file.py:function"
    )
