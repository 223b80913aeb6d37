"""The five OpenFlamingo models, as published (arXiv 2308.01390, section 3.3 and table 3).

Batch sizes are per device. The published batch, 4,096 pairs and 2,048 documents per step, is that of 64 devices; 8
devices reach it with gradient_accumulation_steps=8.

Differences from the published runs:
- The 3B and 4B models compute in bfloat16. precision=fp32 restores float32.
- Each image is at its own sentence. mmc4.protocol=openflamingo shuffles images as the original trainer did, and
  mmc4.assignment=best_sentence matches them as the trainer of the released models did.
- The added tokens of the 4B models are trained. freeze_added_tokens=true leaves them as they begin: the original could
  not train them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Literal

from flamboyance import checks
from flamboyance.data import presets
from flamboyance.recipes.published import PUBLISHED, GivenBackbones, WebData, backbone_values, settings, with_summary
from flamboyance.training.run import TrainingRun

if TYPE_CHECKING:
    from flamboyance.configuration import FlamingoConfig
    from flamboyance.flamingo import FlamingoForConditionalGeneration
    from flamboyance.processing import FlamingoProcessor

STEPS = 60_000_000 // (64 * 32)  # 60 M documents; 120 M pairs


def _recipe(name: str, release: str, parallel: Literal["auto", "fsdp"]) -> Callable[..., TrainingRun]:
    def recipe(
        *,
        output: str,
        data: WebData,
        chatgpt: presets.Shards = (),
        backbones: GivenBackbones = PUBLISHED,
        quantize: str | None = None,
        steps: int = STEPS,
    ) -> TrainingRun:
        """The frozen parts come from the hub, unless others are given.

        Args:
            output: the run's directory.
            chatgpt: shards of ChatGPT's sequences, among MMC4's in proportion to their number; the 4B models had them.
            quantize: int8 or int4: the frozen parts' weights in 8 or 4 bits.
            steps: optimizer steps; the default is the published 60 M documents and 120 M pairs at 64 devices' batches.
        """
        scheme = checks.scheme(quantize)
        published = presets.openflamingo(data.laion, data.mmc4, chatgpt)
        # The trainer's own advice, which the released models followed.
        sources = {key: dataclasses.replace(source, replacement=True) for key, source in published.items()}
        training = settings(output, sources, steps, warmup_steps=1875, parallel=parallel)
        return TrainingRun(
            training, partial(build, release, backbones, scheme), partial(outline, release, backbones, scheme)
        )

    return with_summary(name, recipe)


def build(
    release: str, backbones: GivenBackbones, quantize: str | None = None
) -> tuple[FlamingoForConditionalGeneration, FlamingoProcessor]:
    """A new Flamingo around a released model's backbones or the given ones, and its processor."""
    from flamboyance import names
    from flamboyance.checkpoints import released
    from flamboyance.flamingo import FlamingoForConditionalGeneration
    from flamboyance.processing import FlamingoProcessor

    processor = FlamingoProcessor.of_released(release, tokenizer=backbones.tokenizer or backbones.language)
    if backbones.vision:
        processor.image_processor = None  # the tower's own is used: another one has another mean, deviation and size
    facts = names.RELEASED[release]
    model = FlamingoForConditionalGeneration.from_backbones(
        backbones.vision or str(released.TOWER["name"]),
        backbones.language or facts.language,
        processor,
        cross_attn_every_n_layers=facts.cross_attn_every_n_layers,
        quantize=quantize,
    )
    return model, processor


def outline(release: str, backbones: GivenBackbones = PUBLISHED, quantize: str | None = None) -> FlamingoConfig:
    """A released model's configuration, without the network; or around the given backbones."""
    from flamboyance.checkpoints import released
    from flamboyance.configuration import FlamingoConfig

    config = FlamingoConfig.from_dict(released.config_for(release).to_dict() | backbone_values(backbones))
    config.choose_scheme(quantize, release)
    return config


RECIPES = {
    name: _recipe(name, *release)
    for name, release in {
        "openflamingo-3b": ("OpenFlamingo-3B-vitl-mpt1b", "auto"),
        "openflamingo-3b-instruct": ("OpenFlamingo-3B-vitl-mpt1b-langinstruct", "auto"),
        "openflamingo-4b": ("OpenFlamingo-4B-vitl-rpj3b", "fsdp"),
        "openflamingo-4b-instruct": ("OpenFlamingo-4B-vitl-rpj3b-langinstruct", "fsdp"),
        "openflamingo-9b": ("OpenFlamingo-9B-vitl-mpt7b", "auto"),
    }.items()
}
