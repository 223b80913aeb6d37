"""The embedded model flamingo-mini, whose weights are in the package."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flamboyance import catalog

if TYPE_CHECKING:
    from flamboyance.flamingo import FlamingoForConditionalGeneration
    from flamboyance.processing import FlamingoProcessor


def load_mini(quantize: str | None = None) -> tuple[FlamingoForConditionalGeneration, FlamingoProcessor]:
    """flamingo-mini in float32 on the CPU, and its processor. Needs no network.

    Args:
        quantize: "int8" or "int4": the backbones' linear layers keep their weights in 8 or 4 bits.

    Raises:
        OSError: this installation lacks the weights.
    """
    return catalog.load_embedded(catalog.MINI, quantize)
