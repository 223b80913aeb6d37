"""The memory of answering, and of training around quantized weights, against sums done by hand."""

import json
from dataclasses import replace

import pytest
import torch

from flamboyance.cli import main
from flamboyance.data.formats.pairs import Pairs
from flamboyance.model import quantized_linear
from flamboyance.planning.inference import TEXT, inference_memory
from flamboyance.planning.memory import parts
from flamboyance.planning.plan import Planner
from flamboyance.training.config import TrainingConfig
from flamboyance.training.hardware import find
from tests.model.families import make
from tests.tiny import save_tiny_flamingo

RELEASED = "openflamingo/OpenFlamingo-{}"
CARD = find("T4")


def outlined(scheme: str | None = None, dtype: torch.dtype = torch.float32):
    from flamboyance.flamingo import FlamingoForConditionalGeneration

    config = make("llama").config
    config.quantize = scheme
    with torch.device("meta"):
        return FlamingoForConditionalGeneration(config).to(dtype)


def test_weights_and_what_is_kept_of_a_prompt() -> None:
    model = outlined()
    text, shots = model.config.text_config, 3
    weights = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    media = (
        (shots + 1) * 5 * 4 * (24 + 2 * 16 * len(model.blocks))
    )  # 5 latents of width 24; keys and values of width 16
    found = inference_memory(model, shots, CARD)
    cache = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * TEXT * (shots + 1) * 4
    assert found.weights == weights
    assert cache + media <= found.kept <= 1.2 * (cache + media) + 1000  # and the logits of one token
    assert found.working > 0 and found.reserve == CARD.reserve
    more = inference_memory(outlined(), 2 * shots + 1, CARD)
    assert more.kept == pytest.approx(2 * found.kept, rel=0.02)


@pytest.mark.parametrize(("scheme", "bits"), [("int8", 8 + 16 / 32), ("int4", 4 + 32 / 32)])
def test_quantized_layers_are_counted_in_their_bits(scheme: str, bits: float) -> None:
    model, plain = outlined(scheme, torch.bfloat16), outlined(None, torch.bfloat16)
    layers = quantized_linear.layers(model)
    narrow = sum(q.in_features * q.out_features for _, q in layers)
    saved = sum(p.frozen_bytes + p.whole_bytes for p in parts(plain).values())
    saved -= sum(p.frozen_bytes + p.whole_bytes for p in parts(model).values())
    assert quantized_linear.count(model) == sum(p.numel() for p in plain.parameters())
    assert narrow * (16 - bits) / 8 * 0.9 <= saved <= narrow * (16 - bits / 2) / 8
    for name, part in parts(model).items():
        assert (part.frozen, part.trained) == (parts(plain)[name].frozen, parts(plain)[name].trained)


def test_a_plan_keeps_quantized_weights_whole_on_every_device() -> None:
    planner = Planner(outlined("int8").config, CARD)
    training = TrainingConfig(output="x", sources={"p": Pairs(shards="x", batch_size=4)}, steps=5, precision="bf16")
    one = planner.plan(training, 1).memory.frozen
    sharded = planner.plan(replace(training, parallel="fsdp"), 4).memory.frozen
    whole = sum(part.whole_bytes for part in parts(outlined("int8")).values())
    assert sharded == pytest.approx((one - whole) / 4 + whole)


@pytest.mark.parametrize(
    ("model", "most"), [("3B-vitl-mpt1b", 3e9), pytest.param("9B-vitl-mpt7b", 8e9, marks=pytest.mark.slow)]
)
def test_a_released_model_in_4_bits_fits_a_small_machine(model: str, most: float, capsys) -> None:
    asked = ["info", RELEASED.format(model), "--quantize", "int4", "--dtype", "bfloat16", "--json", "--kind"]
    assert main([*asked, "T4"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["inference"]["tensors"] < most
    assert found["inference"]["total"] < found["inference"]["capacity"]
    assert found["parameters"]["total"] == pytest.approx(float(model[0]) * 1e9, rel=0.15)


def test_info_and_its_mistakes(tmp_path, capsys) -> None:
    directory = save_tiny_flamingo(tmp_path)
    assert main(["info", str(directory), "--quantize", "int8", "--kind", "16GB"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "int8" in said and "4 shots (5 images and 120 tokens" in said and "16.00 GiB" in said
    assert main(["info", str(directory), "--kind", "T5"]) == 2
    assert "T4-16GB" in capsys.readouterr().err
    assert find("L4").name == "L4-24GB" and find("8GB").memory == 8 * 2**30
