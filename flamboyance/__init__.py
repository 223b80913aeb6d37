"""Few-shot vision-language models: show a frozen language model a few images with their texts, and it does the same
for the next image."""

from transformers import AutoConfig, AutoModelForImageTextToText

from flamboyance import examples, templates
from flamboyance.compat import create_model_and_transforms
from flamboyance.configuration import FlamingoConfig
from flamboyance.few_shot import FewShotTask
from flamboyance.mini import load_mini
from flamboyance.model.flamingo import FlamingoForConditionalGeneration
from flamboyance.model.media import Media
from flamboyance.processing import FlamingoProcessor

AutoConfig.register("flamingo", FlamingoConfig, exist_ok=True)
AutoModelForImageTextToText.register(FlamingoConfig, FlamingoForConditionalGeneration, exist_ok=True)

__all__ = [
    "FewShotTask",
    "FlamingoConfig",
    "FlamingoForConditionalGeneration",
    "FlamingoProcessor",
    "Media",
    "create_model_and_transforms",
    "examples",
    "load_mini",
    "templates",
]
