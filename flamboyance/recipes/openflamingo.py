"""The five OpenFlamingo models, as published (arXiv 2308.01390, section 3.3 and table 3).

Batch sizes are per device. The published batch, 4,096 pairs and 2,048 documents per step, is that of 64 devices; 8
devices reach it with gradient_accumulation_steps=8.

Differences from the published runs:
- The 3B and 4B models compute in bfloat16. precision=fp32 restores float32.
- Each image is at its own sentence. mmc4.protocol=openflamingo shuffles images as the original trainer did, and
  mmc4.assignment=best_sentence matches them as the trainer of the released models did.
- The added tokens of the 4B models are trained. No setting restores the original, which could not train them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from flamboyance import checks
from flamboyance.data import presets
from flamboyance.training.config import TrainingConfig
from flamboyance.training.run import TrainingRun

if TYPE_CHECKING:
    from flamboyance.configuration import FlamingoConfig
    from flamboyance.flamingo import FlamingoForConditionalGeneration
    from flamboyance.processing import FlamingoProcessor

STEPS = 60_000_000 // (64 * 32)  # 60 M documents; 120 M pairs


def _recipe(name: str, about: str, parallel: Literal["auto", "fsdp"] = "auto") -> Callable[..., TrainingRun]:
    def recipe(
        *,
        output: str,
        laion: presets.Shards,
        mmc4: presets.Shards,
        chatgpt: presets.Shards = (),
        steps: int = STEPS,
        language: str | None = None,
        vision: str | None = None,
        tokenizer: str | None = None,
        quantize: str | None = None,
    ) -> TrainingRun:
        scheme = checks.scheme(quantize)
        published = presets.openflamingo(laion, mmc4, chatgpt)
        # The trainer's own advice, which the released models followed.
        sources = {key: dataclasses.replace(source, replacement=True) for key, source in published.items()}
        training = TrainingConfig(
            output=output,
            sources=sources,
            steps=steps,
            learning_rate=1e-4,
            weight_decay=0.1,
            max_grad_norm=1.0,
            warmup_steps=1875,
            schedule="constant",
            precision="bf16",
            parallel=parallel,
            checkpoint_activations=True,
            workers=4,
        )
        return TrainingRun(
            training, lambda: build(name, language, vision, tokenizer, scheme), lambda: outline(name, scheme)
        )

    recipe.__name__ = recipe.__qualname__ = name
    recipe.__doc__ = about + _ARGUMENTS
    return recipe


_ARGUMENTS = """

    Args:
        output: the run's directory.
        laion: shards of image-text pairs, as img2dataset writes them: paths or URLs, e.g. s3://laion/{00000..41455}.tar
        mmc4: shards of MMC4, as `flamboyance convert` writes them.
        chatgpt: shards of ChatGPT's sequences, among MMC4's in proportion to their number; the 4B models had them.
        steps: optimizer steps; the default is the published 60 M documents and 120 M pairs at 64 devices' batches.
        language, vision, tokenizer: directories (or other hub ids) of the frozen parts, if not to come from the hub.
        quantize: int8 or int4: the frozen parts' weights in 8 or 4 bits.
    """


def build(
    name: str,
    language: str | None = None,
    vision: str | None = None,
    tokenizer: str | None = None,
    quantize: str | None = None,
) -> tuple[FlamingoForConditionalGeneration, FlamingoProcessor]:
    """A new Flamingo around a released model's backbones, and its processor."""
    from flamboyance import names
    from flamboyance.checkpoints import released
    from flamboyance.flamingo import FlamingoForConditionalGeneration
    from flamboyance.processing import FlamingoProcessor

    processor = FlamingoProcessor.of_released(name, tokenizer=tokenizer or language)
    if vision:
        processor.image_processor = None  # the tower's own is used: another one has another mean, deviation and size
    release, tower = names.RELEASED[name], str(vision or released.TOWER["name"])
    model = FlamingoForConditionalGeneration.from_backbones(
        tower,
        language or release.language,
        processor,
        cross_attn_every_n_layers=release.cross_attn_every_n_layers,
        quantize=quantize,
    )
    return model, processor


def outline(name: str, quantize: str | None = None) -> FlamingoConfig:
    """A released model's configuration, without the network."""
    from flamboyance import catalog

    return catalog.resolve(name).config(quantize)


RECIPES = {
    "openflamingo-3b": _recipe(
        "OpenFlamingo-3B-vitl-mpt1b", "OpenFlamingo-3B: CLIP ViT-L/14 and MPT-1B, a block before every layer."
    ),
    "openflamingo-3b-instruct": _recipe(
        "OpenFlamingo-3B-vitl-mpt1b-langinstruct", "OpenFlamingo-3B (Instruct): the same with MPT-1B tuned on Dolly."
    ),
    "openflamingo-4b": _recipe(
        "OpenFlamingo-4B-vitl-rpj3b",
        "OpenFlamingo-4B: CLIP ViT-L/14 and RedPajama-3B, a block before every second layer.",
        "fsdp",
    ),
    "openflamingo-4b-instruct": _recipe(
        "OpenFlamingo-4B-vitl-rpj3b-langinstruct",
        "OpenFlamingo-4B (Instruct): the same with RedPajama-3B Instruct.",
        "fsdp",
    ),
    "openflamingo-9b": _recipe(
        "OpenFlamingo-9B-vitl-mpt7b", "OpenFlamingo-9B: CLIP ViT-L/14 and MPT-7B, a block before every fourth layer."
    ),
}
