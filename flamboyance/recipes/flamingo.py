"""The original Flamingo's three sizes (arXiv 2204.14198), from given backbones.

Optimizer settings are the paper's (its appendix on training): AdamW, gradients clipped to norm 1, weight decay 0.1
except on the resampler, learning rate to 1e-4 in 5,000 steps and constant from there, 500,000 steps; gradients of all
sources are accumulated in each step. The data are public: MMC4 in the place of M3W, LAION in that of ALIGN; pairs with
longer texts (LTIP's) and videos (VTP's) are added where they are given.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from flamboyance.data import presets
from flamboyance.recipes.published import (
    MAIN_PARTS_ALONE,
    PUBLISHED,
    FurtherData,
    GivenBackbones,
    WebData,
    backbone_values,
    settings,
    with_summary,
)
from flamboyance.training.run import TrainingRun

if TYPE_CHECKING:
    from flamboyance.configuration import FlamingoConfig
    from flamboyance.flamingo import FlamingoForConditionalGeneration
    from flamboyance.processing import FlamingoProcessor

STEPS = 500_000
BATCH_SIZES = {"flamingo-3b": 8, "flamingo-9b": 4, "flamingo-80b": 4}  # documents per device


def _recipe(name: str, batch_size: int) -> Callable[..., TrainingRun]:
    def recipe(
        *,
        output: str,
        data: WebData,
        further: FurtherData = MAIN_PARTS_ALONE,
        backbones: GivenBackbones = PUBLISHED,
        steps: int = STEPS,
    ) -> TrainingRun:
        """The language model has to be given; `plan` takes Chinchilla's size without one. The tower is NFNet-F6 with
        the weights for ImageNet, unless another one is given.

        Args:
            output: the run's directory.
            steps: optimizer steps.
        """
        sources = presets.flamingo(data.laion, data.mmc4, further.captions, further.videos, batch_size=batch_size)
        parallel: Literal["auto", "fsdp"] = "fsdp" if name == "flamingo-80b" else "auto"
        training = settings(output, sources, steps, warmup_steps=5000, parallel=parallel)
        return TrainingRun(training, partial(build, name, backbones), partial(outline, name, backbones))

    return with_summary(name, recipe)


def build(
    name: str, backbones: GivenBackbones, resampler: dict[str, Any] | None = None
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

    language = backbones.language
    if language is None:
        raise ValueError(
            f"{name} has no language model: Chinchilla's weights were never released; give language=DIRECTORY or a hub "
            "id of any causal language model"
        )
    text = language_config(language)
    processor = FlamingoProcessor(None, open_tokenizer(backbones.tokenizer or language))
    tower = backbones.vision or original.TOWER
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


def outline(name: str, backbones: GivenBackbones = PUBLISHED) -> FlamingoConfig:
    """The published size, without the network; or around the given backbones."""
    from flamboyance import configuration_original as original
    from flamboyance.configuration import FlamingoConfig

    changed = backbone_values(backbones, original.IMAGE_SIDE if backbones.vision == original.TOWER else None)
    if text := changed.get("text_config"):
        changed |= {
            "cross_attention_layers": original.layers_with_blocks(text.num_hidden_layers, original.SIZES[name].every),
            "cross_attention": original.cross_attention(text.hidden_size),
        }
    return FlamingoConfig.from_dict(original.values(name) | changed)


RECIPES = {name: _recipe(name, batch_size) for name, batch_size in BATCH_SIZES.items()}
