"""The sizes of the language model and the vision tower that are measured, for Flamboyance and its peers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Size:
    """A shape.

    Attributes:
        name: of its directory of weights.
        title: as tables call it.
        tower: OpenCLIP's name, which the reference builds its vision tower by; `vision` says the same in the options of
            transformers' CLIPVisionConfig.
        language: options of transformers' OPTConfig.
        cross_attn_every_n_layers: layers of the language model to each gated cross-attention block.
    """

    name: str
    title: str
    tower: str
    cross_attn_every_n_layers: int = 1
    vision: dict[str, Any] = field(default_factory=dict)
    language: dict[str, Any] = field(default_factory=dict)


OPT_125M = Size("opt-125m-vit-b-32", "OPT-125M + ViT-B/32", "ViT-B-32-quickgelu")
