"""The embedded model: flamingo-mini, whose weights are in the package."""

from collections.abc import Generator
from contextlib import contextmanager

import torch
from transformers.utils import logging

from flamboyance import names
from flamboyance.flamingo import FlamingoForConditionalGeneration
from flamboyance.processing import FlamingoProcessor

DIRECTORY = names.EMBEDDED_DIRECTORY


def load_mini() -> tuple[FlamingoForConditionalGeneration, FlamingoProcessor]:
    """flamingo-mini in float32 on the CPU, and its processor. Needs no network.

    Raises:
        OSError: this installation lacks the weights.
    """
    directory = names.check_embedded()
    processor = FlamingoProcessor.from_pretrained(directory, local_files_only=True)
    with _without_bars():
        model = FlamingoForConditionalGeneration.from_pretrained(
            str(directory), dtype=torch.float32, local_files_only=True
        )
    model.tokenizer = processor.tokenizer
    return model.eval(), processor


@contextmanager
def _without_bars() -> Generator[None]:
    """Hides transformers' progress bars: 11 MB load at once."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
