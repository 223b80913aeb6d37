"""The training loop trains, checkpoints and exports adapters and unfrozen parts, as it does its own."""

import dataclasses

import pytest
import torch
from peft import LoraConfig, get_peft_model

from flamboyance import FlamingoForConditionalGeneration
from flamboyance.model.adapters import tensors
from flamboyance.training.loop import train
from flamboyance.training.parallel import set_precision
from tests.checkpoints.test_adapters import logits
from tests.training.tiny_run import tiny_run


def adapted(run):
    """The run with LoRA on its language model, an unfrozen layer of it, and an unfrozen layer of the tower."""

    def build():
        model, processor = run.build()
        torch.manual_seed(4)
        config = LoraConfig(target_modules=["q_proj"], r=2)
        model.language_model = get_peft_model(model.language_model, config)
        model.language_model.get_base_model().model.decoder.layers[0].fc1.requires_grad_(True)
        model.vision.model.encoder.layers[0].mlp.fc1.requires_grad_(True)
        return model, processor

    return dataclasses.replace(run, build=build)


def trained(output, steps, **options):
    train(adapted(tiny_run(output, steps, workers=0, **options)))
    return FlamingoForConditionalGeneration.from_pretrained(output / "model")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_goes_on_and_its_export_opens(tmp_path, precision):
    whole = trained(tmp_path / "whole", 4, precision=precision)
    trained(tmp_path / "pieces", 2, precision=precision)
    pieces = trained(tmp_path / "pieces", 4, precision=precision)
    start, _ = adapted(tiny_run(tmp_path / "whole", 4)).build()
    before, after = tensors(start), tensors(whole)
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name].bfloat16(), after[name].bfloat16())}
    for part in ("lora_B", "layers.0.fc1", "encoder.layers.0.mlp.fc1", "resampler", "cross_attention"):
        assert any(part in name for name in moved), part
    assert not any("layers.1.fc1" in name and "lora" not in name for name in moved)
    torch.testing.assert_close(logits(pieces), logits(whole), atol=1e-5, rtol=1e-4)
    assert whole.trained_parameters().keys() == start.trained_parameters().keys()
    assert {p.dtype for p in whole.trained_parameters().values()} == {torch.float32}


def test_what_trains_stays_in_float32(tmp_path):
    model, _ = adapted(_prepared(tmp_path)).build()
    exact = {name: p.detach().clone() for name, p in model.trained_parameters().items()}
    set_precision(model, "bf16")
    assert {p.dtype for p in model.trained_parameters().values()} == {torch.float32}
    assert all(torch.equal(p, exact[name]) for name, p in model.trained_parameters().items())
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}


def _prepared(folder):
    run = tiny_run(folder, 1)
    run.prepare()
    return run
