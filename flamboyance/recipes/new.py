"""A new Flamingo around any vision tower and any language model, trained by the papers' loss alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from flamboyance import catalog
from flamboyance.data.formats.user_data import UserData
from flamboyance.training.config import TrainingConfig
from flamboyance.training.hardware import has_bfloat16
from flamboyance.training.run import TrainingRun

if TYPE_CHECKING:
    from flamboyance.configuration import FlamingoConfig
    from flamboyance.flamingo import FlamingoForConditionalGeneration
    from flamboyance.processing import FlamingoProcessor

SMALL = 1024  # width of a language model, below which the sizes are those for small ones
# For language models of less than that width: a few blocks' worth of parameters instead of ten times the model's own.
SMALL_RESAMPLER = {"depth": 2, "heads": 8, "dim_head": 64, "latents": 16, "ff_mult": 2}
SMALL_CROSS_ATTENTION = {"heads": 8, "dim_head": 64, "ff_mult": 1}
HALF_OPEN = 0.5  # a gate, whose tanh multiplies a block's output


def new(
    *,
    output: str,
    vision: str,
    language: str,
    data: tuple[str, ...],
    weights: tuple[float, ...] = (),
    validation: tuple[str, ...] = (),
    validate_every: int = 500,
    validation_documents: int = 200,
    initial: str = "",
    steps: int = 5000,
    batch_size: int = 16,
    max_tokens: int = 256,
    max_images: int = 16,
    template: str = "",
    learning_rate: float = 3e-4,
    vision_pretrained: str | None = None,
    image_size: int | None = None,
    feature_levels: tuple[int, ...] = (),
    cross_attn_every_n_layers: int | None = None,
    cross_attention_layers: tuple[int, ...] = (),
    decoder_layers: str | None = None,
    latents: int | None = None,
    resampler_width: int | None = None,
    resampler_depth: int | None = None,
    resampler_heads: int | None = None,
    resampler_dim_head: int | None = None,
    resampler_ff_mult: int | None = None,
    cross_attention_heads: int | None = None,
    cross_attention_dim_head: int | None = None,
    cross_attention_ff_mult: int | None = None,
    zero_init: Literal["outputs", "gates"] = "outputs",
) -> TrainingRun:
    """Trains a new Flamingo around any frozen vision tower and any frozen language model, on your own data.

    The loss is OpenFlamingo's: the next token of the text after each image, up to `<|endofchunk|>`; of an image with a
    text, all of the text. A block changes nothing at first; see zero_init.

    Args:
        output: the run's directory.
        vision: a hub id or directory; timm/NAME; or OpenCLIP's name, with vision_pretrained.
        language: a hub id or directory; a .gguf file; or package:NAME, an installed Python package with weights.
        data: sources, with commas between them: tars, .jsonl, .csv, .tsv, folders, as `finetune` takes. Each source is
            named after its file or folder, and SOURCE.field changes its settings.
        weights: of the sources' losses, in their order; default: 1 each.
        validation: sources that are not trained on. The mean loss per token on them, and the perplexity, are logged.
        validate_every: steps between validations.
        validation_documents: the first ones of each of these sources that are used.
        initial: a model directory whose trained part this run begins with, such as an earlier run's `model`. Sizes that
            are not given are its sizes.
        steps: optimizer steps.
        batch_size: documents per step, source and device.
        max_tokens, max_images: of a document; longer ones are cut.
        template: how an image and its text are written, as in "<image>A photo of {text}"; "": as few-shot tasks do.
        learning_rate: decays to 0 over the last fifth of the steps. OpenFlamingo's was 1e-4.
        vision_pretrained: OpenCLIP's or timm's tag, or a file of weights.
        image_size, feature_levels: of timm's towers: another image size, and the feature maps that are joined.
        cross_attn_every_n_layers: a block before every n-th layer. Default: 1 for up to 24 layers, 2 for up to 32, 4
            for more.
        cross_attention_layers: instead, the layers that have a block before them, counted from 0.
        decoder_layers: dotted name of the language model's list of layers, if it is not found.
        latents, resampler_width, resampler_depth, resampler_heads, resampler_dim_head, resampler_ff_mult: of the
            resampler. Defaults below a width of 1024: 16 latents, depth 2, ff_mult 2; otherwise OpenFlamingo's, 64
            latents, depth 6, ff_mult 4. 8 heads of 64. Its width is the tower's.
        cross_attention_heads, cross_attention_dim_head, cross_attention_ff_mult: of the blocks. Default 8 heads of 64;
            ff_mult 1 below a width of 1024, otherwise 4.
        zero_init: what is zero at the start, so that a block changes nothing. "gates", as in the papers: little is
            learned behind a gate until it opens, and in small batches it may stay shut. "outputs": the last projection
            of attention and feed-forward, with all gates half open, at tanh(0.5). `initial` takes its place.

    Raises:
        ValueError: settings that contradict each other.
    """
    resampler = {
        "latents": latents,
        "width": resampler_width,
        "depth": resampler_depth,
        "heads": resampler_heads,
        "dim_head": resampler_dim_head,
        "ff_mult": resampler_ff_mult,
    }
    cross_attention = {
        "heads": cross_attention_heads,
        "dim_head": cross_attention_dim_head,
        "ff_mult": cross_attention_ff_mult,
    }
    parts = Parts(
        vision=vision,
        language=language,
        vision_pretrained=vision_pretrained,
        image_size=image_size,
        feature_levels=feature_levels,
        cross_attn_every_n_layers=cross_attn_every_n_layers,
        cross_attention_layers=cross_attention_layers,
        decoder_layers=decoder_layers,
        resampler=tuple(_given(resampler).items()),
        cross_attention=tuple(_given(cross_attention).items()),
        initial=initial,
        zero_init=zero_init,
    )
    every: dict[str, Any] = {
        "batch_size": batch_size,
        "max_tokens": max_tokens,
        "max_images": max_images,
        "template": template,
    }
    patterns = named(data)
    if weights and len(weights) != len(patterns):
        raise ValueError(
            f"weights={','.join(map(str, weights))}: expected {len(patterns)}, one for each source of data"
        )
    weighed = zip(patterns.items(), weights or [1.0] * len(patterns), strict=True)
    sources = {name: UserData(shards=shards, weight=weight, **every) for (name, shards), weight in weighed}
    held = tuple((name, UserData(shards=shards, **every)) for name, shards in named(validation).items())
    training = TrainingConfig(
        output=output,
        sources=dict(sources),
        steps=steps,
        learning_rate=learning_rate,
        warmup_steps=max(1, min(500, steps // 20)),
        schedule="linear",
        decay_fraction=0.2,
        precision="bf16" if has_bfloat16() else "fp32",
        evaluate_every=validate_every if held else 0,
    )
    return TrainingRun(
        training,
        build=partial(build, parts),
        outline=partial(outline, parts),
        evaluate=partial(validate, sources=held, documents=validation_documents) if held else None,
    )


@dataclass(frozen=True)
class Parts:
    """What a new model is made of; `resampler` and `cross_attention` have the sizes that are given, as pairs."""

    vision: str
    language: str
    vision_pretrained: str | None
    image_size: int | None
    feature_levels: tuple[int, ...]
    cross_attn_every_n_layers: int | None
    cross_attention_layers: tuple[int, ...]
    decoder_layers: str | None
    resampler: tuple[tuple[str, int], ...]
    cross_attention: tuple[tuple[str, int], ...]
    initial: str
    zero_init: Literal["outputs", "gates"] = "outputs"


def named(data: Sequence[str] | str) -> dict[str, str]:
    """Sources by the names of their files or folders, without numbers and patterns: `captions` for
    `world/captions-{00000..00009}.tar` and for `captions/*.tar`."""
    found: dict[str, str] = {}
    for shards in (data,) if isinstance(data, str) else data:
        words = [re.sub(r"\.(tar|jsonl|csv|tsv)(\.gz)?$", "", part) for part in reversed(re.split(r"[/\\]", shards))]
        plain = (re.sub(r"[^A-Za-z0-9]+", "_", re.sub(r"\{[^}]*\}|[*?]|\d{3,}", "", word)).strip("_") for word in words)
        name = next(filter(None, plain), "data")
        number = next(n for n in range(1, len(found) + 2) if (name if n == 1 else f"{name}{n}") not in found)
        found[name if number == 1 else f"{name}{number}"] = shards
    return found


def _given(sizes: dict[str, int | None]) -> dict[str, int]:
    return {name: size for name, size in sizes.items() if size is not None}


def build(parts: Parts) -> tuple[FlamingoForConditionalGeneration, FlamingoProcessor]:
    """The new model, or `initial`'s trained part in it, and its processor."""
    import torch  # for start-up time

    from flamboyance.checkpoints.open_backbones import language_config, open_tokenizer
    from flamboyance.flamingo import FlamingoForConditionalGeneration
    from flamboyance.hub import options as reachable
    from flamboyance.processing import FlamingoProcessor

    hub = reachable(parts.language, {})
    processor = FlamingoProcessor(None, open_tokenizer(parts.language, **hub))
    model = FlamingoForConditionalGeneration.from_backbones(
        parts.vision,
        parts.language,
        processor,
        vision_pretrained=parts.vision_pretrained,
        image_size=parts.image_size,
        feature_levels=parts.feature_levels or None,
        trained_dtype=torch.float32,
        **sizes(parts, language_config(parts.language, **hub)),
    )
    if parts.initial:
        begin_with(model, catalog.resolve(parts.initial).files())
    else:
        begin_rows(model, processor)
        if parts.zero_init == "outputs":
            begin_outputs(model)
    return model, processor


def outline(parts: Parts) -> FlamingoConfig:
    """The new model's configuration; no weights are read."""
    import torch

    from flamboyance.checkpoints.directory import absolute
    from flamboyance.checkpoints.open_backbones import language_config, open_tokenizer
    from flamboyance.configuration import FlamingoConfig
    from flamboyance.hub import options as reachable
    from flamboyance.model.vision import VisionTower, tower_spec
    from flamboyance.processing import FlamingoProcessor

    hub = reachable(parts.language, {})
    text = language_config(parts.language, **hub)
    processor = FlamingoProcessor(None, open_tokenizer(parts.language, **hub))
    levels = parts.feature_levels or None
    spec = tower_spec(absolute(parts.vision), parts.vision_pretrained, None, parts.image_size, levels)
    with torch.device("meta"):
        width = VisionTower.from_config(spec).width
    return FlamingoConfig(
        vision=spec,
        vision_width=width,
        language=absolute(parts.language),
        text_config=text,
        base_vocab_size=processor.base_vocab_size,
        added_tokens=processor.added_tokens,
        image_token_id=processor.image_token_id,
        eoc_token_id=processor.eoc_token_id,
        pad_token_id=processor.pad_token_id,
        **sizes(parts, text),
    )


def sizes(parts: Parts, text: Any) -> dict[str, Any]:
    """The arguments of FlamingoConfig that are given, or else `initial`'s, or else those for the language model."""
    small = text.hidden_size < SMALL
    resampler: dict[str, Any] = dict(SMALL_RESAMPLER) if small else {}
    cross_attention: dict[str, Any] = dict(SMALL_CROSS_ATTENTION) if small else {}
    depth = text.num_hidden_layers
    every: int | None = 1 if depth <= 24 else 2 if depth <= 32 else 4
    layers: list[int] | None = None
    decoder_layers = parts.decoder_layers
    if parts.initial:
        before = catalog.resolve(parts.initial).config()
        resampler, cross_attention = dict(before.resampler), dict(before.cross_attention)
        every, layers = before.cross_attn_every_n_layers, before.cross_attention_layers
        decoder_layers = decoder_layers or before.decoder_layers
    if parts.cross_attn_every_n_layers is not None or parts.cross_attention_layers:
        every, layers = parts.cross_attn_every_n_layers, list(parts.cross_attention_layers) or None
    return {
        "resampler": resampler | dict(parts.resampler),
        "cross_attention": cross_attention | dict(parts.cross_attention),
        "cross_attn_every_n_layers": every,
        "cross_attention_layers": layers,
        "decoder_layers": decoder_layers,
    }


def begin_with(model: FlamingoForConditionalGeneration, directory: Path) -> None:
    """Copies the trained part of a model directory into the model.

    Raises:
        ValueError: it is of other sizes.
    """
    from flamboyance.checkpoints.directory import WEIGHTS, load_trained, read_weights

    tensors, _ = read_weights(directory / WEIGHTS)
    own = model.own_parameters()
    load_trained(model, {name: tensor for name, tensor in tensors.items() if name in own}, directory / WEIGHTS)


def begin_rows(model: FlamingoForConditionalGeneration, processor: FlamingoProcessor) -> None:
    """`<|endofchunk|>` begins as the language model's end of text, if it has one: the language model knows what follows
    that. The other rows stay at the table's mean. (A beginning of text in the place of `<image>` would be as natural,
    but that of a chat model expects a role after it, and not a caption.)"""
    import torch

    added, like = model.added_tokens, processor.tokenizer.eos_token_id
    tables: dict[str, Any] = {"embedding": model.get_input_embeddings().weight}
    if added.head is not None:
        tables["head"] = model.get_output_embeddings().weight
    row = processor.eoc_token_id - processor.base_vocab_size
    if like is None or row < 0 or like >= processor.base_vocab_size:
        return
    with torch.no_grad():
        for name, table in tables.items():
            getattr(added, name)[row] = table[like]


def begin_outputs(model: FlamingoForConditionalGeneration) -> None:
    """Opens all gates half, and sets the projections that they multiply to zero.

    A block is the identity then, as with closed gates. But a gate at zero gets its gradient from whatever a random
    projection lets through, and the projection gets none until the gate opens: in small batches gates swing about
    zero, and nothing is learned behind them.
    """
    import torch

    with torch.no_grad():
        for block in model.blocks:
            for gate in (block.attention_gate, block.feed_forward_gate):
                gate.fill_(HALF_OPEN)
            for output in (block.attention.to_out, block.feed_forward.down):
                output.weight.zero_()


def validate(
    model: FlamingoForConditionalGeneration,
    processor: FlamingoProcessor,
    sources: tuple[tuple[str, UserData], ...],
    documents: int,
) -> dict[str, float]:
    """The mean loss per token on each source, and its exponential."""
    from flamboyance.recipes.validation import losses

    return losses(model, processor, sources, documents)
