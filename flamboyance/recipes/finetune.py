"""A fine-tune of any checkpoint on a user's own images and texts, with some of them kept for measuring."""

from __future__ import annotations

import os
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from flamboyance import catalog
from flamboyance.catalog import MINI
from flamboyance.training.config import TrainingConfig
from flamboyance.training.run import TrainingRun

if TYPE_CHECKING:
    from flamboyance.configuration import FlamingoConfig
    from flamboyance.flamingo import FlamingoForConditionalGeneration
    from flamboyance.processing import FlamingoProcessor
    from flamboyance.recipes.held_out import TrainingSplit


def finetune(
    *,
    data: str,
    output: str,
    model: str = MINI,
    steps: int = 300,
    batch_size: int = 16,
    learning_rate: float | None = None,
    held_out: float = 0.1,
    template: str = "",
    outside: bool = False,
) -> TrainingRun:
    """Trains a checkpoint further on your own images and texts: a folder, CSV, TSV, JSONL, or tars.

    Some of the images are never trained on; four times in a run the loss on them is measured, and the share of their
    texts that the model gives word for word.

    Args:
        data: a folder of images with their texts beside them (cat.jpg, cat.txt); a .csv, .tsv or .jsonl with image and
            text (or label), or image, question and answer; a .jsonl of interleaved documents; tars of the same.
        output: the run's directory.
        model: mini, a directory, or a released name such as openflamingo/OpenFlamingo-3B-vitl-mpt1b.
        steps: optimizer steps.
        batch_size: documents in a step, on each device; a small folder is read again and again.
        learning_rate: learning rate, falling to nothing; none: 5e-4 for mini, 5e-5 for the others.
        held_out: share of the documents that is kept for measuring, at most 200 of them; 0: none. They are chosen by
            image, from all of the data, evenly over labels.
        template: how an image and its text are written, as in "<image>A photo of {text}"; by default as the templates
            `caption` and `vqa` have it.
        outside: images may be outside of the folder of the data: absolute paths, `..`, links that lead out.

    Raises:
        ValueError: the share is not between 0 and 1.
    """
    # When called: a mistake in a setting needs no torch.
    from flamboyance.recipes.held_out import TrainingSplit, draw, evaluate

    if not 0 <= held_out < 1:
        raise ValueError(f"held_out={held_out}: expected a share from 0 up and below 1")
    kept = str(Path(output) / "held_out.json") if held_out else ""
    source = TrainingSplit(
        shards=data, batch_size=batch_size, template=template, shuffle=100, outside=outside, held_out=kept
    )
    training = TrainingConfig(
        output=output,
        sources={"own": source},
        steps=steps,
        learning_rate=learning_rate if learning_rate is not None else 5e-4 if model == MINI else 5e-5,
        warmup_steps=max(1, steps // 20),
        schedule="linear",
        precision="fp32" if model == MINI else "bf16",
        checkpoint_every=100,
        threads=1 if model == MINI else None,
        evaluate_every=max(1, steps // 4) if held_out else 0,
    )
    return TrainingRun(
        training,
        build=partial(build, model, source),
        outline=partial(outline, model),
        evaluate=partial(evaluate, source=source) if held_out else None,
        prepare=partial(draw, source, held_out),
    )


def build(model: str, source: TrainingSplit) -> tuple[FlamingoForConditionalGeneration, FlamingoProcessor]:
    """The checkpoint and its processor. Warns when the tokenizer does not know the words of the data."""
    import torch

    from flamboyance.recipes.held_out import unknown_words

    # What trains stays in float32, also beside a language model that is stored in less.
    made, processor = catalog.resolve(model).open(trained_dtype=torch.float32)
    if os.environ.get("RANK", "0") == "0" and (share := unknown_words(source, processor)) > 0.01:
        warnings.warn(
            f"{share:.0%} of the data's words are unknown to the tokenizer of {model}, and cannot be learned"
            + ("; mini knows 150 words, which its card lists by kind" if model == MINI else ""),
            stacklevel=2,
        )
    return made, processor


def outline(model: str) -> FlamingoConfig:
    """The checkpoint's configuration, without its weights."""
    return catalog.resolve(model).config()
