"""The five OpenFlamingo models, as published (arXiv 2308.01390, section 3.3 and table 3).

Batch sizes are of one device, on 64 of them: 4,096 pairs and 2,048 documents to a step. On fewer, `accumulate` makes
up for it: accumulate=8 on 8 devices is the published batch.

Departures, each of which a setting takes back: bfloat16 where the 3B and 4B models were trained in float32
(precision=fp32); images stand at the sentences that they belong to (mmc4.protocol=openflamingo shuffles them as the
original trainer did, mmc4.assignment=best_sentence matches them as the released models' version did); the 4B models'
added tokens train too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from flamboyance.data import presets
from flamboyance.training.config import Training
from flamboyance.training.run import Run

if TYPE_CHECKING:
    from flamboyance.configuration import FlamingoConfig
    from flamboyance.flamingo import FlamingoForConditionalGeneration
    from flamboyance.processing import FlamingoProcessor

STEPS = 60_000_000 // (64 * 32)  # 60 M documents; 120 M pairs


def _recipe(name: str, about: str, parallel: Literal["auto", "fsdp"] = "auto") -> Callable[..., Run]:
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
    ) -> Run:
        published = presets.openflamingo(laion, mmc4, chatgpt)
        # The trainer's own advice, which the released models followed.
        sources = {key: dataclasses.replace(source, replacement=True) for key, source in published.items()}
        training = Training(
            output=output,
            sources=sources,
            steps=steps,
            rate=1e-4,
            weight_decay=0.1,
            clip=1.0,
            warmup=1875,
            schedule="constant",
            precision="bf16",
            parallel=parallel,
            checkpoint_activations=True,
            workers=4,
        )
        return Run(training, lambda: build(name, language, vision, tokenizer), lambda: outline(name))

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
    """


def build(
    name: str, language: str | None = None, vision: str | None = None, tokenizer: str | None = None
) -> tuple[FlamingoForConditionalGeneration, FlamingoProcessor]:
    """A new Flamingo around a released model's backbones, and its processor."""
    from flamboyance.checkpoints import released
    from flamboyance.flamingo import FlamingoForConditionalGeneration

    processor = FlamingoProcessor.of_released(name, tokenizer=tokenizer or language)
    if vision:
        processor.image_processor = None  # the tower's own is used: another one has another mean, deviation and size
    named, cross_attn_every_n_layers, _ = released.RELEASED[name]
    tower = vision or released.TOWER["name"]
    model = FlamingoForConditionalGeneration.from_backbones(
        str(tower), language or named, processor, cross_attn_every_n_layers=cross_attn_every_n_layers
    )
    return model, processor


def outline(name: str) -> FlamingoConfig:
    """A released model's configuration, without the network."""
    from flamboyance.checkpoints import released

    return released.config_for(name)


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
