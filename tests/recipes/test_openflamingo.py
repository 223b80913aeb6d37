"""The five published recipes: their values, and outlines that build."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from flamboyance import FlamingoForConditionalGeneration, FlamingoProcessor
from flamboyance.recipes import RECIPES
from flamboyance.recipes.arguments import resolve

GIVEN = ["output=o", "laion=s3://l/{00000..00009}.tar", "mmc4=m/*.tar"]
# name: (layers of the language model, cross_attn_every_n_layers, trainable parameters with the added tokens' rows)
MODELS = {
    "openflamingo-3b": (24, 1, 881_000_496 + 63_019_008 + 3 * 2048),
    "openflamingo-3b-instruct": (24, 1, 881_000_496 + 63_019_008 + 3 * 2048),
    "openflamingo-4b": (32, 2, 897_744_928 + 63_019_008 + 2 * 3 * 2560),  # an untied head has rows of its own
    "openflamingo-4b-instruct": (32, 2, 897_744_928 + 63_019_008 + 2 * 3 * 2560),
    "openflamingo-9b": (32, 4, 1_115_815_952 + 63_019_008 + 3 * 4096),
}


def test_all_five_are_there() -> None:
    assert set(MODELS) == {name for name in RECIPES if name.startswith("openflamingo")}


@pytest.mark.parametrize("name", MODELS)
def test_published_values(name: str) -> None:
    training = resolve(RECIPES[name], GIVEN).training
    laion: Any = training.sources["laion"]
    mmc4: Any = training.sources["mmc4"]
    assert (laion.batch_size, laion.weight, laion.max_tokens) == (64, 0.2, 32)
    assert (mmc4.batch_size, mmc4.weight, mmc4.max_tokens, mmc4.max_images) == (32, 1.0, 256, 6)
    assert (mmc4.similarity_threshold, mmc4.reject_single, mmc4.min_image_bytes) == (0.24, 0.5, 11_000)
    assert laion.replacement and mmc4.replacement and laion.flip == mmc4.flip == 0.5
    assert (training.learning_rate, training.warmup_steps, training.schedule) == (1e-4, 1875, "constant")
    assert (training.weight_decay, training.max_grad_norm, training.betas, training.epsilon) == (
        0.1,
        1.0,
        (0.9, 0.999),
        1e-8,
    )
    assert training.steps * 64 * mmc4.batch_size == pytest.approx(60e6, rel=1e-3)
    assert training.steps * 64 * laion.batch_size == pytest.approx(120e6, rel=1e-3)
    assert training.precision == "bf16"
    assert training.parallel == ("fsdp" if "4b" in name else "auto")


@pytest.mark.parametrize("name", MODELS)
def test_outlines_build_without_weights(name: str) -> None:
    config = resolve(RECIPES[name], GIVEN).outline()
    with torch.device("meta"):
        model = FlamingoForConditionalGeneration(config)
    layers, cross_attn_every_n_layers, trained = MODELS[name]
    assert model.cross_attention_layers == list(range(cross_attn_every_n_layers - 1, layers, cross_attn_every_n_layers))
    assert sum(p.numel() for p in model.trained_parameters().values()) == trained


def test_sequences_stand_among_the_documents() -> None:
    training = resolve(RECIPES["openflamingo-4b"], [*GIVEN, "chatgpt=c/*.tar", "mmc4.protocol=openflamingo"]).training
    mmc4: Any = training.sources["mmc4"]
    assert mmc4.shards == ("m/*.tar", "c/*.tar")
    assert mmc4.protocol == "openflamingo"


def test_backbones_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(
        FlamingoProcessor,
        "of_released",
        lambda name, tokenizer: SimpleNamespace(of=(name, tokenizer), image_processor="CLIP's"),
    )
    monkeypatch.setattr(FlamingoForConditionalGeneration, "from_backbones", lambda *a, **k: asked.append((a, k)))
    _, processor = resolve(RECIPES["openflamingo-9b"], GIVEN).build()
    assert processor.image_processor == "CLIP's"
    _, processor = resolve(RECIPES["openflamingo-4b"], [*GIVEN, "language=lm/", "vision=clip/"]).build()
    assert [positional[:2] for positional, _ in asked] == [
        ("openai/clip-vit-large-patch14", "anas-awadalla/mpt-7b"),
        ("clip/", "lm/"),
    ]
    assert [named["cross_attn_every_n_layers"] for _, named in asked] == [4, 2]
    assert [named["quantize"] for _, named in asked] == [None, None]
    assert processor.of == ("OpenFlamingo-4B-vitl-rpj3b", "lm/")
    assert processor.image_processor is None  # from_backbones takes the tower's own
