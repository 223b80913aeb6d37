"""Fine-tunes any checkpoint on a user's own images and texts, some of which are held out to measure on."""

from __future__ import annotations

import os
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from flamboyance import catalog, checks
from flamboyance.catalog import MINI, SMALL
from flamboyance.recipes.training_split import TrainingSplit, draw, unknown_words
from flamboyance.training.config import TrainingConfig
from flamboyance.training.hardware import has_bfloat16
from flamboyance.training.run import TrainingRun

if TYPE_CHECKING:
    from flamboyance.configuration import FlamingoConfig
    from flamboyance.flamingo import FlamingoForConditionalGeneration
    from flamboyance.processing import FlamingoProcessor

LEARNING_RATES = {MINI: 5e-4, SMALL: 1e-4}


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
    quantize: str | None = None,
) -> TrainingRun:
    """Trains a checkpoint further on your own images and texts: a folder, CSV, TSV, JSONL, or tars.

    Some of the images are held out. Four times in a run, the loss on them is measured, and the fraction of their texts
    that the model generates word for word.

    Args:
        data: a folder of images with their texts beside them (cat.jpg, cat.txt); a .csv, .tsv or .jsonl with image and
            text (or label), or image, question and answer; a .jsonl of interleaved documents; tars of the same.
        output: the run's directory.
        model: mini, small, a directory, or a released name such as openflamingo/OpenFlamingo-3B-vitl-mpt1b.
        steps: optimizer steps.
        batch_size: documents per step and device; small data is read repeatedly.
        learning_rate: learning rate, which decays to 0; none: 5e-4 for mini, 1e-4 for small (a larger one
            makes it forget names), 5e-5 for other models.
        held_out: fraction of the documents that is held out, at most 200 documents; 0: none. They are chosen by image,
            from all of the data, evenly over labels.
        template: how an image and its text are written, as in "<image>A photo of {text}"; "": the templates `caption`
            and `vqa`.
        outside: accept images outside of the folder of the data: absolute paths, `..`, links that lead out of it.
        quantize: int8 or int4: the frozen parts' weights in 8 or 4 bits; none: as the checkpoint has them.

    Raises:
        ValueError: `held_out` is not a fraction.
    """
    if not 0 <= held_out < 1:
        raise ValueError(f"held_out={held_out}: expected a number from 0 up and below 1")
    short = catalog.resolve(model).name  # "small", if flamingo-small is meant
    digests = str(Path(output) / "held_out.json") if held_out else ""
    source = TrainingSplit(
        shards=data, batch_size=batch_size, template=template, shuffle=100, outside=outside, held_out=digests
    )
    training = TrainingConfig(
        output=output,
        sources={"own": source},
        steps=steps,
        learning_rate=learning_rate if learning_rate is not None else LEARNING_RATES.get(short, 5e-5),
        warmup_steps=max(1, steps // 20),
        schedule="linear",
        precision="bf16" if short != MINI and has_bfloat16() else "fp32",
        checkpoint_every=100,
        threads=1 if short == MINI else None,
        evaluate_every=max(1, steps // 4) if held_out else 0,
    )
    return TrainingRun(
        training,
        build=partial(build, model, source, checks.scheme(quantize)),
        outline=partial(outline, model, quantize),
        evaluate=partial(evaluate, source=source) if held_out else None,
        prepare=partial(draw, source, held_out, output),
    )


def build(
    model: str, source: TrainingSplit, quantize: str | None = None
) -> tuple[FlamingoForConditionalGeneration, FlamingoProcessor]:
    """The checkpoint and its processor. Warns if the tokenizer does not know the words of the data."""
    import torch  # for start-up time

    from flamboyance.training.trained_parts import settle

    # Trainable parameters are float32, even if the language model's weights are stored in less.
    made, processor = catalog.resolve(model).open(trained_dtype=torch.float32, quantize=quantize)
    settle(made)
    if os.environ.get("RANK", "0") == "0" and (share := unknown_words(source, processor)) > 0.01:
        warnings.warn(
            f"the tokenizer of {model} does not know {share:.0%} of the data's words, which cannot be learned"
            + ("; mini knows 150 words, which its model card lists" if catalog.resolve(model).name == MINI else ""),
            stacklevel=2,
        )
    return made, processor


def evaluate(
    model: FlamingoForConditionalGeneration, processor: FlamingoProcessor, source: TrainingSplit
) -> dict[str, float]:
    """The loss on the documents that are held out, and the fraction whose text is generated word for word."""
    from flamboyance.recipes import held_out  # for start-up time

    return held_out.evaluate(model, processor, source)


def outline(model: str, quantize: str | None = None) -> FlamingoConfig:
    """The checkpoint's configuration, without its weights."""
    return catalog.resolve(model).config(quantize)
