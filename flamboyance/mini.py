"""The embedded model: flamingo-mini, whose weights lie in the package."""

import torch

from flamboyance import names
from flamboyance.model.flamingo import FlamingoForConditionalGeneration
from flamboyance.processing import FlamingoProcessor

DIRECTORY = names.EMBEDDED_DIRECTORY


def load_mini() -> tuple[FlamingoForConditionalGeneration, FlamingoProcessor]:
    """flamingo-mini, in float32 on the CPU, and its processor. Needs no network.

    Raises:
        OSError: this installation lacks the weights.
    """
    directory = names.check_embedded()
    processor = FlamingoProcessor.from_pretrained(directory, local_files_only=True)
    model = FlamingoForConditionalGeneration.from_pretrained(str(directory), dtype=torch.float32, local_files_only=True)
    model.tokenizer = processor.tokenizer
    return model.eval(), processor
