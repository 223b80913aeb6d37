"""The embedded model flamingo-small: what is trained and the vision tower are in the package, the language model comes
from a Python package or the hub."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flamboyance import catalog

if TYPE_CHECKING:
    from flamboyance.flamingo import FlamingoForConditionalGeneration
    from flamboyance.processing import FlamingoProcessor


def load_small(quantize: str | None = None) -> tuple[FlamingoForConditionalGeneration, FlamingoProcessor]:
    """flamingo-small in float32 on the CPU, and its processor. Needs no network.

    Args:
        quantize: "int8" or "int4": the backbones' linear layers keep their weights in 8 or 4 bits.

    Raises:
        UnknownModelError: the language model is not installed; the message has the command that installs it.
        OSError: this installation lacks the weights.
    """
    return catalog.load_embedded(catalog.SMALL, quantize)
