"""The original Flamingo's three sizes (arXiv 2204.14198), from given backbones.

Optimizer settings are the paper's (its appendix on training): AdamW, gradients clipped to norm 1, weight decay 0.1
except on the resampler, learning rate to 1e-4 in 5,000 steps and constant from there, 500,000 steps; gradients of all
sources are accumulated in each step. The data are public: MMC4 in the place of M3W, LAION in that of ALIGN and LTIP.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from flamboyance.data import presets
from flamboyance.training.config import TrainingConfig
from flamboyance.training.run import TrainingRun

if TYPE_CHECKING:
    from flamboyance.configuration import FlamingoConfig
    from flamboyance.flamingo import FlamingoForConditionalGeneration
    from flamboyance.processing import FlamingoProcessor

STEPS = 500_000


def _recipe(name: str, about: str, batch_size: int) -> Callable[..., TrainingRun]:
    def recipe(
        *,
        output: str,
        laion: presets.Shards,
        mmc4: presets.Shards,
        language: str | None = None,
        vision: str | None = None,
        tokenizer: str | None = None,
        steps: int = STEPS,
    ) -> TrainingRun:
        training = TrainingConfig(
            output=output,
            sources=presets.flamingo(laion, mmc4, batch_size=batch_size),
            steps=steps,
            learning_rate=1e-4,
            weight_decay=0.1,
            max_grad_norm=1.0,
            warmup_steps=5000,
            precision="bf16",
            parallel="fsdp" if name == "flamingo-80b" else "auto",
            checkpoint_activations=True,
            workers=4,
        )
        return TrainingRun(training, lambda: build(name, language, vision, tokenizer), lambda: outline(name))

    recipe.__name__ = recipe.__qualname__ = name
    recipe.__doc__ = about + _ARGUMENTS
    return recipe


_ARGUMENTS = """

    Args:
        output: the run's directory.
        laion: shards of image-text pairs, as img2dataset writes them: paths or URLs, e.g. s3://laion/{00000..41455}.tar
        mmc4: shards of MMC4, as `flamboyance convert` writes them.
        language: the frozen language model, a directory or hub id; `plan` needs none and takes Chinchilla's size.
        vision: the frozen tower, a directory, a hub id, or a name of timm's; the default is NFNet-F6 with the weights
            for ImageNet.
        tokenizer: a directory or hub id, if not the language model's own.
        steps: optimizer steps.
    """


def build(
    name: str,
    language: str | None,
    vision: str | None = None,
    tokenizer: str | None = None,
    resampler: dict[str, Any] | None = None,
) -> tuple[FlamingoForConditionalGeneration, FlamingoProcessor]:
    """A new Flamingo of the original's architecture around a language model and a tower, and its processor.

    Args:
        name: the size, which gives the spacing of the blocks. Their heads and widths follow the language model.
        resampler: sizes in the place of the original's.

    Raises:
        ValueError: no language model is given.
    """
    from flamboyance import configuration_original as original
    from flamboyance.checkpoints.open_backbones import language_config, open_tokenizer
    from flamboyance.flamingo import FlamingoForConditionalGeneration
    from flamboyance.processing import FlamingoProcessor

    if language is None:
        raise ValueError(
            f"{name} has no language model: Chinchilla's weights were never released; give language=DIRECTORY or a hub "
            "id of any causal language model"
        )
    text = language_config(language)
    processor = FlamingoProcessor(None, open_tokenizer(tokenizer or language))
    tower = vision or original.TOWER
    model = FlamingoForConditionalGeneration.from_backbones(
        tower,
        language,
        processor,
        image_size=original.IMAGE_SIDE if tower == original.TOWER else None,
        cross_attention_layers=original.layers_with_blocks(text.num_hidden_layers, original.SIZES[name].every),
        resampler=original.RESAMPLER | (resampler or {}),
        cross_attention=original.cross_attention(text.hidden_size),
    )
    return model, processor


def outline(name: str) -> FlamingoConfig:
    """The published size, without the network."""
    from flamboyance.configuration import FlamingoConfig

    return FlamingoConfig.from_pretrained(name)


RECIPES = {
    "flamingo-3b": _recipe("flamingo-3b", "Flamingo-3B as published: NFNet-F6, a block before every layer.", 8),
    "flamingo-9b": _recipe("flamingo-9b", "Flamingo-9B as published: NFNet-F6, a block before every 4th layer.", 4),
    "flamingo-80b": _recipe("flamingo-80b", "Flamingo-80B as published: NFNet-F6, a block before every 7th layer.", 4),
}
