"""The embedded model: flamingo-mini, whose weights are in the package."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flamboyance import names

if TYPE_CHECKING:
    from flamboyance.flamingo import FlamingoForConditionalGeneration
    from flamboyance.processing import FlamingoProcessor

DIRECTORY = names.EMBEDDED_DIRECTORY


def load_mini(quantize: str | None = None) -> tuple[FlamingoForConditionalGeneration, FlamingoProcessor]:
    """flamingo-mini in float32 on the CPU, and its processor. Needs no network.

    Args:
        quantize: "int8" or "int4": the backbones' linear layers keep their weights in 8 or 4 bits.

    Raises:
        OSError: this installation lacks the weights.
    """
    # For start-up time: the mini world's modules, which need no torch, are in this folder too.
    import torch
    from transformers.utils import logging

    from flamboyance.flamingo import FlamingoForConditionalGeneration
    from flamboyance.processing import FlamingoProcessor

    directory = names.check_embedded()
    processor = FlamingoProcessor.from_pretrained(directory, local_files_only=True)
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # 11 MB load at once
    try:
        model = FlamingoForConditionalGeneration.from_pretrained(
            str(directory), dtype=torch.float32, quantize=quantize, local_files_only=True
        )
    finally:
        if bars:
            logging.enable_progress_bar()
    model.tokenizer = processor.tokenizer
    return model.eval(), processor
