"""flamingo-mini's resampler and gated cross-attention trained from scratch: a whole run, in minutes on a laptop."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flamboyance.data.documents import Source
from flamboyance.data.formats.chatgpt import ChatGPT
from flamboyance.data.formats.mmc4 import MMC4
from flamboyance.data.formats.pairs import Pairs
from flamboyance.training.config import TrainingConfig
from flamboyance.training.run import TrainingRun

if TYPE_CHECKING:
    from flamboyance.configuration import FlamingoConfig
    from flamboyance.flamingo import FlamingoForConditionalGeneration
    from flamboyance.processing import FlamingoProcessor


def mini(
    *,
    output: str,
    steps: int = 2000,
    documents: int = 1000,
    data_seed: int = 0,
    learning_rate: float = 1.5e-3,
    warmup_steps: int = 100,
) -> TrainingRun:
    """Trains flamingo-mini from data that it makes itself: toy pictures, handwritten digits, made-up words.

    The frozen tower and language model are the embedded ones; resampler, gated cross-attention and added tokens start
    afresh. The shards are written to output/shards, once.

    Args:
        output: the run's directory.
        steps: optimizer steps. Captions are learned in some hundreds, the rest takes thousands.
        documents: interleaved documents in the shards, beside as many pairs and half as many sequences; 30000 take
            600 MB and a few minutes.
        data_seed: of what is in the shards; `seed` is that of the order in which it is read.
        learning_rate: learning rate, falling to nothing over the last 40 % of the steps.
        warmup_steps: steps in which it rises.
    """
    from flamboyance.mini import shards as mini_shards

    folder = Path(output) / "shards"
    shards = {name: one.pattern(folder) for name, one in mini_shards.sets(documents).items()}
    every: dict[str, Any] = {"shuffle": 250, "flip": 0.0}  # left and right have names here, so no picture is mirrored
    sources: dict[str, Source] = {
        "pairs": Pairs(shards=shards["pairs"], batch_size=16, **every),
        "documents": MMC4(shards=shards["documents"], batch_size=8, reject_single=0.0, min_image_bytes=0, **every),
        "sequences": ChatGPT(shards=shards["sequences"], batch_size=4, max_images=9, **every),
    }
    training = TrainingConfig(
        output=output,
        sources=sources,
        steps=steps,
        learning_rate=learning_rate,
        betas=(0.9, 0.98),
        weight_decay=0.01,
        warmup_steps=warmup_steps,
        schedule="linear",
        decay_fraction=0.4,
        threads=1,  # of a model this small; more threads cost more than they give where cores are shared
    )
    return TrainingRun(training, build, outline, evaluate, partial(prepare, folder, documents, data_seed))


def build() -> tuple[FlamingoForConditionalGeneration, FlamingoProcessor]:
    """The embedded backbones with new trainable parameters between them, and the processor."""
    import torch

    from flamboyance import names
    from flamboyance.flamingo import FlamingoForConditionalGeneration
    from flamboyance.mini.world.words import SEPARATOR
    from flamboyance.processing import FlamingoProcessor

    directory = names.embedded_directory(names.MINI)
    config, processor = outline(), FlamingoProcessor.from_pretrained(directory, local_files_only=True)
    model = FlamingoForConditionalGeneration.from_backbones(
        str(directory / "vision"), str(directory / "language"), processor,
        cross_attn_every_n_layers=config.cross_attn_every_n_layers, dtype=torch.float32,
        resampler=config.resampler, cross_attention=config.cross_attention, local_files_only=True,
    )  # fmt: skip
    with torch.no_grad():  # <|endofchunk|> ends an entry, as the separator does in the language model's own text
        table = model.get_input_embeddings().weight
        row = processor.eoc_token_id - processor.base_vocab_size
        model.added_tokens.embedding[row] = table[processor.tokenizer.convert_tokens_to_ids(SEPARATOR)]
    return model, processor


def outline() -> FlamingoConfig:
    """The embedded model's configuration."""
    from flamboyance import names
    from flamboyance.checkpoints.directory import read_config

    return read_config(names.embedded_directory(names.MINI))


def evaluate(model: FlamingoForConditionalGeneration, processor: FlamingoProcessor) -> dict[str, float]:
    """Few-shot accuracy on held-out images; takes a few seconds."""
    from flamboyance.mini import evaluation as mini_evaluation

    return mini_evaluation.evaluate(model, processor)


def prepare(folder: Path, documents: int, data_seed: int) -> None:
    """Writes the missing shards, with a progress line."""
    from flamboyance.mini import shards as mini_shards

    total, missing = 0, 0
    for one in mini_shards.sets(documents).values():
        total += one.shards
        missing += sum(not file.is_file() for file in one.files(folder))
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if missing and (sys.stderr.isatty() or done == total):
            print(
                f"\rshards in {folder}: {done}/{total}", end="\n" if done == total else "", file=sys.stderr, flush=True
            )

    mini_shards.write(folder, documents, data_seed, advance)
