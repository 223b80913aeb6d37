"""The original Flamingo's recipes: published values, and a small one around given backbones."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from flamboyance.checkpoints.save_backbones import save_tower
from flamboyance.configuration_original import Size, chinchilla, cross_attention
from flamboyance.model.vision import VisionTower, tower_spec
from flamboyance.recipes import RECIPES, flamingo
from flamboyance.recipes.arguments import resolve
from flamboyance.recipes.published import GivenBackbones
from tests.tiny import tiny_tokenizer

GIVEN = ["output=o", "laion=l.tar", "mmc4=m.tar"]


@pytest.mark.parametrize("name", flamingo.RECIPES)
def test_published_values(name: str) -> None:
    run = resolve(RECIPES[name], GIVEN)
    training, mmc4 = run.training, run.training.sources["mmc4"]
    assert (training.learning_rate, training.warmup_steps, training.schedule, training.steps) == (
        *(1e-4, 5000, "constant"),
        500_000,
    )
    weights = {source: made.weight for source, made in training.sources.items()}
    assert weights == {"laion": 0.2, "mmc4": 1.0} and mmc4.max_tokens == 256
    with pytest.raises(ValueError, match=rf"^{name} has no language model.*language="):
        run.build()


def test_blocks_follow_the_language_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    text = chinchilla(Size(layers=9, width=256, every=4), vocabulary=len(tokenizer))
    AutoModelForCausalLM.from_config(text).save_pretrained(tmp_path / "language")
    tokenizer.save_pretrained(tmp_path / "language")
    save_tower(VisionTower.from_config(tower_spec("timm/test_nfnet")), tmp_path / "vision")
    small: dict[str, Any] = {"depth": 1, "width": 48, "heads": 2, "dim_head": 16, "latents": 4}
    given = GivenBackbones(language=str(tmp_path / "language"), vision=str(tmp_path / "vision"))
    model, processor = flamingo.build("flamingo-9b", given, resampler=small)
    assert model.cross_attention_layers == [0, 4, 8]
    assert model.config.cross_attention == cross_attention(256)
    assert model.config.cross_attention["heads"] == 2 and model.config.cross_attention["dim_head"] == 128
    assert model.config.resampler["activation"] == "squared_relu" and model.config.resampler["max_frames"] == 8
    assert processor.image_processor.image_size == (160, 160)
    torch.nn.init.ones_(model.blocks[0].attention_gate)
    model.save_pretrained(tmp_path / "model", include_backbones=True)
    opened = type(model).from_pretrained(tmp_path / "model")
    own = model.own_parameters()
    assert opened.config.resampler == model.config.resampler
    assert all(torch.equal(own[name], value) for name, value in opened.own_parameters().items())
