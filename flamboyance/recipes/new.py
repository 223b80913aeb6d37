"""A new Flamingo around any vision tower and any language model, trained by the papers' loss alone."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from flamboyance import catalog
from flamboyance.data.documents import Source
from flamboyance.data.formats.user_data import UserData
from flamboyance.data.shards import expand
from flamboyance.training.config import TrainingConfig
from flamboyance.training.hardware import has_bfloat16
from flamboyance.training.run import TrainingRun

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from flamboyance.configuration import FlamingoConfig
    from flamboyance.flamingo import FlamingoForConditionalGeneration
    from flamboyance.processing import FlamingoProcessor

SMALL = 1024  # width of a language model, below which the sizes are those for small ones
# For language models of less than that width: a few blocks' worth of parameters instead of ten times the model's own.
SMALL_RESAMPLER = {"depth": 2, "heads": 8, "dim_head": 64, "latents": 16, "ff_mult": 2}
SMALL_CROSS_ATTENTION = {"heads": 8, "dim_head": 64, "ff_mult": 1}


@dataclass(frozen=True, kw_only=True)
class Backbones:
    """The frozen parts.

    Args:
        vision: a hub id or directory; timm/NAME; or OpenCLIP's name, with vision_pretrained.
        language: a hub id or directory; a .gguf file; or package:NAME, an installed Python package with weights.
        vision_pretrained: OpenCLIP's or timm's tag, or a file of weights.
        image_size: of the images in pixels, if another one than the tower's own: positions are interpolated.
        feature_levels: of timm's towers: the feature maps that are joined.
        decoder_layers: dotted name of the language model's list of layers, if it is not found.
    """

    vision: str
    language: str
    vision_pretrained: str | None = None
    image_size: int | None = None
    feature_levels: tuple[int, ...] = ()
    decoder_layers: str | None = None


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes of the trained parts.

    Args:
        cross_attn_every_n_layers: a block before every n-th layer. Default: 1 for up to 24 layers, 2 for up to 32, 4
            for more.
        cross_attention_layers: instead, the layers that have a block before them, counted from 0.
        latents, resampler_width, resampler_depth, resampler_heads, resampler_dim_head, resampler_ff_mult: of the
            resampler. Defaults below a width of 1024: 16 latents, depth 2, ff_mult 2; otherwise OpenFlamingo's, 64
            latents, depth 6, ff_mult 4. 8 heads of 64. Its width is the tower's.
        cross_attention_heads, cross_attention_dim_head, cross_attention_ff_mult: of the blocks. Default 8 heads of 64;
            ff_mult 1 below a width of 1024, otherwise 4.
        only_attend_immediate_media: a token attends to the last image before it; false: to all of them, which Flamingo
            found worse. Default: true.
    """

    cross_attn_every_n_layers: int | None = None
    cross_attention_layers: tuple[int, ...] = ()
    latents: int | None = None
    resampler_width: int | None = None
    resampler_depth: int | None = None
    resampler_heads: int | None = None
    resampler_dim_head: int | None = None
    resampler_ff_mult: int | None = None
    cross_attention_heads: int | None = None
    cross_attention_dim_head: int | None = None
    cross_attention_ff_mult: int | None = None
    only_attend_immediate_media: bool | None = None

    def resampler(self) -> dict[str, int]:
        """The sizes of the resampler that are given, as FlamingoConfig names them."""
        given = {"latents": self.latents, "width": self.resampler_width, "depth": self.resampler_depth}
        given |= {"heads": self.resampler_heads, "dim_head": self.resampler_dim_head, "ff_mult": self.resampler_ff_mult}
        return _without_none(given)

    def cross_attention(self) -> dict[str, int]:
        """The sizes of the blocks that are given, as FlamingoConfig names them."""
        given = {"heads": self.cross_attention_heads, "dim_head": self.cross_attention_dim_head}
        given |= {"ff_mult": self.cross_attention_ff_mult}
        return _without_none(given | {"only_attend_immediate_media": self.only_attend_immediate_media})


def _without_none(sizes: dict[str, int | None]) -> dict[str, int]:
    return {name: size for name, size in sizes.items() if size is not None}


@dataclass(frozen=True, kw_only=True)
class Data:
    """The documents that are trained on.

    Args:
        data: sources, with commas between them: tars, .jsonl, .csv, .tsv, folders, as `finetune` takes. Each source is
            named after its file or folder, and SOURCE.field changes its settings.
        weights: of the sources' losses, in their order; default: 1 each.
        batch_size: documents per step, source and device.
        max_tokens, max_images: of a document; longer ones are cut.
        template: how an image and its text are written, as in "<image>A photo of {text}"; "": as few-shot tasks do.
    """

    data: tuple[str, ...]
    weights: tuple[float, ...] = ()
    batch_size: int = 16
    max_tokens: int = 256
    max_images: int = 16
    template: str = ""

    def sources(self) -> dict[str, Source]:
        """The sources by name.

        Raises:
            ValueError: there is not one weight for each.
        """
        return {name: self.source(shards, weight) for name, shards, weight in weighed(self.data, self.weights)}

    def source(self, shards: str, weight: float = 1.0) -> UserData:
        return UserData(
            shards=shards,
            weight=weight,
            batch_size=self.batch_size,
            max_tokens=self.max_tokens,
            max_images=self.max_images,
            template=self.template,
        )


@dataclass(frozen=True, kw_only=True)
class Validation:
    """The documents that are measured on.

    Args:
        validation: sources that are not trained on, and on which the model is measured.
        validate_every: steps between validations; `evaluate_every` takes its place.
        validation_documents: the first ones of each of these sources that are used.
    """

    validation: tuple[str, ...] = ()
    validate_every: int = 500
    validation_documents: int = 200


def new(
    *,
    output: str,
    backbones: Backbones,
    data: Data,
    validation: Validation = Validation(),
    sizes: Sizes = Sizes(),
    initial: str = "",
    zero_init: Literal["outputs", "gates"] = "outputs",
    steps: int = 5000,
    learning_rate: float = 3e-4,
) -> TrainingRun:
    """Trains a new Flamingo around any frozen vision tower and any frozen language model, on your own data.

    The loss is OpenFlamingo's: the next token of the text after each image, up to `<|endofchunk|>`; of an image with a
    text, all of the text. On the sources of `validation` the mean loss per token and the perplexity are logged. A block
    changes nothing at first; see zero_init. Every text begins with a token of the tokenizer's, such as
    `<|endoftext|>`: what `<image>` shows would be lost in the first place.

    Args:
        output: the run's directory.
        initial: a model directory whose trained part this run begins with, such as an earlier run's `model`. Sizes that
            are not given are its sizes. If cross_attention_layers are given, its blocks go to the layers that they
            stood before, and the others begin new: blocks near the output can learn names before any block near the
            input is there.
        zero_init: what is zero at the start, so that a block changes nothing. "gates", as in the papers: little is
            learned behind a gate until it opens, and in small batches it may stay shut. "outputs": the last projection
            of attention and feed-forward, with all gates half open, at tanh(0.5), and what those projections are given
            as large as the language model's hidden states. With `initial`, only the blocks that it lacks begin so.
        steps: optimizer steps.
        learning_rate: decays to 0 over the last fifth of the steps. OpenFlamingo's was 1e-4.

    Raises:
        ValueError: settings that contradict each other.
    """
    held = {name: data.source(shards) for name, shards in named(validation.validation).items()}
    sources = tuple(held.items())
    training = TrainingConfig(
        output=output,
        sources=data.sources(),
        steps=steps,
        learning_rate=learning_rate,
        warmup_steps=max(1, min(500, steps // 20)),
        schedule="linear",
        decay_fraction=0.2,
        precision="bf16" if has_bfloat16() else "fp32",
        evaluate_every=validation.validate_every if held else 0,
    )
    return TrainingRun(
        training,
        build=partial(build, backbones, sizes, initial, zero_init),
        outline=partial(outline, backbones, sizes, initial),
        evaluate=partial(validate, sources=sources, documents=validation.validation_documents) if held else None,
        prepare=partial(check_apart, training.sources, held) if held else None,
        validation=held,
    )


def check_apart(sources: Mapping[str, Source], held: Mapping[str, Source]) -> None:
    """
    Raises:
        ValueError: a file to validate on is trained on, too.
    """
    trained = {os.path.realpath(shard): name for name, one in sources.items() for shard in expand(one.shards)}
    for source in held.values():
        for shard in expand(source.shards):
            if name := trained.get(os.path.realpath(shard)):
                raise ValueError(
                    f"validation={shard} is among the files of {name}, which is trained on; leave it out of data=, or "
                    "give other files to validate on"
                )


def weighed(data: Sequence[str], weights: Sequence[float]) -> list[tuple[str, str, float]]:
    """Name, shards and weight of each source; without weights, 1 each.

    Raises:
        ValueError: there is not one weight for each.
    """
    if weights and len(weights) != len(data):
        given = ",".join(map(str, weights))
        raise ValueError(f"weights={given}: expected {len(data)}, one for each source of data")
    named_weights = zip(named(data).items(), weights or [1.0] * len(data), strict=True)
    return [(name, shards, weight) for (name, shards), weight in named_weights]


def named(data: Sequence[str]) -> dict[str, str]:
    """Sources by the names of their files or folders, without numbers and patterns: `captions` for
    `world/captions-{00000..00009}.tar` and for `captions/*.tar`."""
    found: dict[str, str] = {}
    for shards in data:
        words = [re.sub(r"\.(tar|jsonl|csv|tsv)(\.gz)?$", "", part) for part in reversed(re.split(r"[/\\]", shards))]
        plain = (re.sub(r"[^A-Za-z0-9]+", "_", re.sub(r"\{[^}]*\}|[*?]|\d{3,}", "", word)).strip("_") for word in words)
        name = next(filter(None, plain), "data")
        number = next(n for n in range(1, len(found) + 2) if (name if n == 1 else f"{name}{n}") not in found)
        found[name if number == 1 else f"{name}{number}"] = shards
    return found


def build(
    backbones: Backbones, sizes: Sizes, initial: str = "", zero_init: Literal["outputs", "gates"] = "outputs"
) -> tuple[FlamingoForConditionalGeneration, FlamingoProcessor]:
    """The new model, or `initial`'s trained part in it, and its processor."""
    import torch  # for start-up time

    from flamboyance.checkpoints.directory import WEIGHTS, read_weights
    from flamboyance.checkpoints.open_backbones import language_config
    from flamboyance.flamingo import FlamingoForConditionalGeneration
    from flamboyance.hub import options as reachable
    from flamboyance.model.trainable import OWN
    from flamboyance.processing import FlamingoProcessor
    from flamboyance.recipes import beginning

    hub = reachable(backbones.language, {})
    before = catalog.resolve(initial) if initial else None
    tensors, about = read_weights(before.files() / WEIGHTS) if before else ({}, {})
    learned = any(not name.startswith(OWN) for name in tensors)  # of its backbones
    processor = FlamingoProcessor(None, _tokenizer(backbones.language))
    model = FlamingoForConditionalGeneration.from_backbones(
        backbones.vision,
        backbones.language,
        processor,
        vision_pretrained=backbones.vision_pretrained,
        image_size=backbones.image_size,
        feature_levels=backbones.feature_levels or None,
        trained_dtype=torch.float32,
        dtype=about["dtype"] if learned and about.get("dtype") else "auto",
        **resolved(backbones, sizes, initial, language_config(backbones.language, **hub)),
    )
    depth = model.config.text_config.num_hidden_layers
    layers = before.config().layers_with_blocks(depth) if before else []
    if before is None:
        beginning.begin_rows(model, processor)
    if zero_init == "outputs" and not set(model.cross_attention_layers) <= set(layers):
        beginning.begin_outputs(model)  # runs the language model, which a run whose blocks are all there does without
    if before is not None:
        beginning.begin_with(model, before.files(), layers, tensors)
    return model, processor


def _tokenizer(language: str) -> PreTrainedTokenizerBase:
    """The language model's own tokenizer, which puts a token before every text."""
    from flamboyance.checkpoints.open_backbones import open_tokenizer
    from flamboyance.hub import options as reachable
    from flamboyance.recipes.beginning import begin_texts

    tokenizer = open_tokenizer(language, **reachable(language, {}))
    begin_texts(tokenizer)
    return tokenizer


def outline(backbones: Backbones, sizes: Sizes, initial: str = "") -> FlamingoConfig:
    """The new model's configuration; no weights are read."""
    import torch

    from flamboyance.checkpoints.directory import absolute
    from flamboyance.checkpoints.open_backbones import language_config
    from flamboyance.configuration import FlamingoConfig
    from flamboyance.hub import options as reachable
    from flamboyance.model.vision import VisionTower, tower_spec
    from flamboyance.processing import FlamingoProcessor

    hub = reachable(backbones.language, {})
    text = language_config(backbones.language, **hub)
    processor = FlamingoProcessor(None, _tokenizer(backbones.language))
    levels = backbones.feature_levels or None
    spec = tower_spec(absolute(backbones.vision), backbones.vision_pretrained, None, backbones.image_size, levels)
    with torch.device("meta"):
        width = VisionTower.from_config(spec).width
    return FlamingoConfig(
        vision=spec,
        vision_width=width,
        language=absolute(backbones.language),
        text_config=text,
        base_vocab_size=processor.base_vocab_size,
        added_tokens=processor.added_tokens,
        image_token_id=processor.image_token_id,
        eoc_token_id=processor.eoc_token_id,
        pad_token_id=processor.pad_token_id,
        **resolved(backbones, sizes, initial, text),
    )


def resolved(backbones: Backbones, sizes: Sizes, initial: str, text: Any) -> dict[str, Any]:
    """The arguments of FlamingoConfig that are given, or else `initial`'s, or else those for the language model."""
    small = text.hidden_size < SMALL
    resampler: dict[str, Any] = dict(SMALL_RESAMPLER) if small else {}
    cross_attention: dict[str, Any] = dict(SMALL_CROSS_ATTENTION) if small else {}
    depth = text.num_hidden_layers
    every: int | None = 1 if depth <= 24 else 2 if depth <= 32 else 4
    layers: list[int] | None = None
    decoder_layers = backbones.decoder_layers
    if initial:
        before = catalog.resolve(initial).config()
        resampler, cross_attention = dict(before.resampler), dict(before.cross_attention)
        every, layers = before.cross_attn_every_n_layers, before.cross_attention_layers
        decoder_layers = decoder_layers or before.decoder_layers
    if sizes.cross_attn_every_n_layers is not None or sizes.cross_attention_layers:
        every, layers = sizes.cross_attn_every_n_layers, list(sizes.cross_attention_layers) or None
    return {
        "resampler": resampler | sizes.resampler(),
        "cross_attention": cross_attention | sizes.cross_attention(),
        "cross_attn_every_n_layers": every,
        "cross_attention_layers": layers,
        "decoder_layers": decoder_layers,
    }


def validate(
    model: FlamingoForConditionalGeneration,
    processor: FlamingoProcessor,
    sources: tuple[tuple[str, UserData], ...],
    documents: int,
) -> dict[str, float]:
    """The mean loss per token on each source, and its exponential."""
    from flamboyance.recipes.validation import losses

    return losses(model, processor, sources, documents)
