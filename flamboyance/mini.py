"""The embedded model: flamingo-mini, whose weights lie in the package."""

from pathlib import Path

import torch

from flamboyance.model.flamingo import FlamingoForConditionalGeneration
from flamboyance.processing import FlamingoProcessor

DIRECTORY = Path(__file__).parent / "weights" / "flamingo-mini"


def load_mini() -> tuple[FlamingoForConditionalGeneration, FlamingoProcessor]:
    """flamingo-mini, in float32 on the CPU, and its processor. Needs no network.

    Raises:
        OSError: this installation lacks the weights.
    """
    if not (DIRECTORY / "config.json").is_file():
        raise OSError(
            f"the embedded model is missing from this installation: no config.json in {DIRECTORY}. "
            "Install flamboyance again, or train it with `python -m recipes.mini` in a clone of the repository"
        )
    processor = FlamingoProcessor.from_pretrained(DIRECTORY, local_files_only=True)
    model = FlamingoForConditionalGeneration.from_pretrained(str(DIRECTORY), dtype=torch.float32, local_files_only=True)
    model.tokenizer = processor.tokenizer
    return model.eval(), processor
