"""What the recipes of published models have in common."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from flamboyance.data.documents import Source
from flamboyance.data.presets import Shards
from flamboyance.recipes.summaries import SUMMARIES
from flamboyance.training.config import TrainingConfig
from flamboyance.training.run import TrainingRun


@dataclass(frozen=True, kw_only=True)
class WebData:
    """Public data of the published kinds.

    Args:
        laion: shards of image-text pairs, as img2dataset writes them: paths or URLs, e.g. s3://laion/{00000..41455}.tar
        mmc4: shards of MMC4, as `flamboyance convert` writes them.
    """

    laion: Shards
    mmc4: Shards


@dataclass(frozen=True, kw_only=True)
class FurtherData:
    """The other two parts of Flamingo's mixture.

    Args:
        captions: shards of pairs with longer texts; (): without them.
        videos: shards of videos with texts, KEY.mp4 and KEY.txt; (): without them.
    """

    captions: Shards = ()
    videos: Shards = ()


MAIN_PARTS_ALONE = FurtherData()
"""Neither is given."""


@dataclass(frozen=True, kw_only=True)
class GivenBackbones:
    """Frozen parts in the place of the published ones.

    Args:
        language: the language model, a directory or hub id.
        vision: the tower, a directory, a hub id, or a name of timm's.
        tokenizer: a directory or hub id, if not the language model's own.
    """

    language: str | None = None
    vision: str | None = None
    tokenizer: str | None = None


PUBLISHED = GivenBackbones()
"""None is given."""


def backbone_values(backbones: GivenBackbones, image_size: int | None = None) -> dict[str, Any]:
    """What the given backbones change in a published FlamingoConfig, for `flamboyance plan`. No weights are read.

    Args:
        image_size: the tower's, if not its own.
    """
    import torch

    from flamboyance.checkpoints.directory import absolute
    from flamboyance.checkpoints.open_backbones import language_config, open_tokenizer, opening
    from flamboyance.hub import options as reachable
    from flamboyance.model.vision import VisionTower, tower_spec
    from flamboyance.processing import FlamingoProcessor

    values: dict[str, Any] = {}
    if backbones.language is not None:
        with opening("language", backbones.language):
            text = language_config(backbones.language, **reachable(backbones.language, {}))
        values |= {"language": absolute(backbones.language), "text_config": text}
    if (tokenizer := backbones.tokenizer or backbones.language) is not None:
        with opening("tokenizer", tokenizer):
            processor = FlamingoProcessor(None, open_tokenizer(tokenizer, **reachable(tokenizer, {})))
        tokens = ("base_vocab_size", "added_tokens", "image_token_id", "eoc_token_id", "pad_token_id")
        values |= {name: getattr(processor, name) for name in tokens}
    if backbones.vision is not None:
        with opening("vision", backbones.vision):
            spec = tower_spec(absolute(backbones.vision), image_size=image_size)
        with torch.device("meta"):
            values |= {"vision": spec, "vision_width": VisionTower.from_config(spec).width}
    return values


def settings(
    output: str,
    sources: dict[str, Source],
    steps: int,
    *,
    warmup_steps: int,
    parallel: Literal["auto", "fsdp"],
) -> TrainingConfig:
    """The settings that all published runs share: AdamW to a learning rate of 1e-4 that stays there."""
    return TrainingConfig(
        output=output,
        sources=sources,
        steps=steps,
        learning_rate=1e-4,
        weight_decay=0.1,
        max_grad_norm=1.0,
        warmup_steps=warmup_steps,
        schedule="constant",
        precision="bf16",
        parallel=parallel,
        checkpoint_activations=True,
        workers=4,
    )


def with_summary(name: str, recipe: Callable[..., TrainingRun]) -> Callable[..., TrainingRun]:
    """The recipe, with the summary of the recipe of that name before its docstring."""
    recipe.__doc__ = f"{SUMMARIES[name]}\n\n{inspect.getdoc(recipe)}"
    return recipe
