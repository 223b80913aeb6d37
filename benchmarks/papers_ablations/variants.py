"""What the trainings are: a baseline, and variants that differ from it in one thing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from benchmarks.papers_ablations import parts
from flamboyance.flamingo import FlamingoForConditionalGeneration

PAIRS, INTERLEAVED, MISALIGNED = "pairs", "interleaved", "misaligned"
"""Sets of documents: single pictures with their names; episodes; episodes whose images changed places."""

SIZES: Mapping[str, Any] = {"cross_attention_layers": (2, 4, 20, 28), "resampler_width": 192, "latents": 16}
BATCH: Mapping[str, int] = {PAIRS: 24, INTERLEAVED: 3}  # documents a step; about 24 and 30 pictures
RATE = 5e-4
SLOW_RATE = 1.5e-4  # at which the language model can be trained too


@dataclass(frozen=True)
class Variant:
    """A training.

    Attributes:
        title: as the table has it.
        group: of the table.
        paper: what the papers found by the same change, in short.
        sizes: of the trained parts, in the place of the baseline's.
        data: documents a step, by set.
        zero_init: as of `recipes.new`.
        change: of the new model, before it is trained.
        training: further settings of TrainingConfig.
        source: settings of the documents with several pictures.
    """

    title: str
    group: str
    paper: str = ""
    sizes: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, int] = field(default_factory=lambda: BATCH)
    zero_init: Literal["outputs", "gates"] = "outputs"
    change: Callable[[FlamingoForConditionalGeneration], None] | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    source: Mapping[str, Any] = field(default_factory=dict)


GATES, BLOCKS, IMAGES, RESAMPLER = "Gates", "Where blocks are", "Which images a token sees", "Resampler"
DATA, LANGUAGE, TOKENS = "Data", "Language model", "Added tokens"

VARIANTS: dict[str, Variant] = {
    "baseline": Variant("Baseline: before layers 2, 4, 20, 28", "Baseline", "Flamingo 68.4"),
    "gates-zero": Variant("Gates begin at 0, as the papers' do", GATES, zero_init="gates"),
    "gates-none": Variant(
        "No gates: the blocks begin at random", GATES, "64.0", zero_init="gates", change=parts.without_gates
    ),
    "late": Variant("Before layers 20, 28", BLOCKS, sizes={"cross_attention_layers": (20, 28)}),
    "middle": Variant("Before layer 15 alone", BLOCKS, "54.6", sizes={"cross_attention_layers": (15,)}),
    "every-4": Variant("Before every 4th layer", BLOCKS, "65.9", sizes={"cross_attn_every_n_layers": 4}),
    "every-2": Variant("Before every 2nd layer", BLOCKS, "66.2", sizes={"cross_attn_every_n_layers": 2}),
    "every-1": Variant("Before every layer", BLOCKS, "68.4, its baseline", sizes={"cross_attn_every_n_layers": 1}),
    "all-images": Variant("All images before it", IMAGES, "60.8", sizes={"only_attend_immediate_media": False}),
    "next-image": Variant(
        "The next image instead, in half of the documents",
        IMAGES,
        "68.4, its baseline (never: 67.8)",
        source={"next_image": 0.5},
    ),
    "mlp": Variant("MLP on each patch", RESAMPLER, "63.3", sizes={"resampler_ff_mult": 7}, change=parts.with_mlp),
    "transformer": Variant("Transformer over the patches", RESAMPLER, "65.1", change=parts.with_transformer),
    "small-resampler": Variant(
        "Resampler of depth 1, with 4 latents", RESAMPLER, "66.4", sizes={"resampler_depth": 1, "latents": 4}
    ),
    "large-resampler": Variant(
        "Resampler of depth 4, with 32 latents",
        RESAMPLER,
        "67.3",
        sizes={"resampler_depth": 4, "latents": 32, "resampler_ff_mult": 4},
    ),
    "no-interleaved": Variant("No interleaved documents", DATA, "46.9", data={PAIRS: 50}),
    "no-pairs": Variant("No pairs", DATA, "50.7", data={INTERLEAVED: 5}),
    "misaligned": Variant(
        "Images of a document in another order than its texts",
        DATA,
        "OpenFlamingo's released models were trained so",
        data={PAIRS: BATCH[PAIRS], MISALIGNED: BATCH[INTERLEAVED]},
    ),
    "rows-frozen": Variant(
        "The rows of added tokens are frozen", TOKENS, "OpenFlamingo, table 5", training={"freeze_added_tokens": True}
    ),
    "unfrozen": Variant(
        "Language model trained too, all at a rate of 1.5e-4",
        LANGUAGE,
        "62.9",
        change=parts.with_trained_language_model,
        training={"learning_rate": SLOW_RATE},
    ),
    "slow": Variant("Language model frozen, at that rate", LANGUAGE, training={"learning_rate": SLOW_RATE}),
    "new-language": Variant(
        "Language model begins at random, and is trained", LANGUAGE, "58.2", change=parts.with_new_language_model
    ),
}
