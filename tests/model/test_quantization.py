"""Quantized layers: their numbers, their gradients, and whole models that are quantized, saved, opened and trained."""

import weakref

import pytest
import torch
from torch import nn

import flamboyance as fl
from flamboyance import catalog
from flamboyance.cli import main
from flamboyance.model import quantization, quantized_linear
from flamboyance.model.quantized_linear import QuantizedLinear
from tests.model.families import FAMILIES, images, make, pad_left, prompt
from tests.tiny import save_tiny_flamingo

SCHEMES = {"int8": 8, "int4": 4}


def dequantized(model: nn.Module) -> nn.Module:
    """In place: plain linear layers of the same numbers."""
    for path, layer in quantized_linear.layers(model):
        plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
        plain.weight = nn.Parameter(layer.dequantized(), requires_grad=False)
        plain.bias = layer.bias
        model.set_submodule(path, plain)
    return model


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return save_tiny_flamingo(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def inputs(directory):
    config = catalog.resolve(directory).config()
    ids = [config.image_token_id, 4, 5, config.eoc_token_id, config.image_token_id, 7, 8]
    return {"input_ids": torch.tensor([ids])}


@pytest.mark.parametrize("columns", [128, 192, 48])
def test_int8_rounds_to_the_nearest_of_255_steps_of_each_row(columns: int) -> None:
    weight = torch.randn(40, columns, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 1, 40)[:, None]
    layer = QuantizedLinear.of(weight, 8)
    step = weight.abs().amax(1, keepdim=True) / 127
    assert layer.qweight.dtype == torch.int8 and layer.qweight.shape == weight.shape
    assert ((layer.dequantized() - weight).abs() <= 0.505 * step).all()  # the step is rounded up by 1/128 at most
    assert layer.qweight.abs().amax(1).min() >= 126


@pytest.mark.parametrize(("columns", "group"), [(256, 128), (192, 64), (48, 16)])
def test_int4_rounds_to_one_of_16_values_of_each_group(columns: int, group: int) -> None:
    weight = torch.randn(40, columns, generator=torch.Generator().manual_seed(0)) + 0.3
    weight[3, :group] = 0.7  # a group of one value
    layer = QuantizedLinear.of(weight, 4)
    groups = weight.unflatten(1, (-1, group))
    step = (groups.amax(-1, keepdim=True) - groups.amin(-1, keepdim=True)) / 15
    assert layer.qweight.shape == (40, columns // 2) and layer.scales.shape == (40, columns // group)
    found = layer.dequantized().unflatten(1, (-1, group))
    assert ((found - groups).abs() <= 0.52 * step + 0.005).all()  # zeros are rounded to 8 bits
    assert max(len(row.unique()) for row in found.flatten(0, 1)) <= 16


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("rows", [1, 5, 40])
def test_products_and_gradients_are_those_of_the_same_weight(bits: int, rows: int, monkeypatch) -> None:
    monkeypatch.setattr(quantized_linear, "AT_ONCE", 128 * 7)  # several parts, the last one smaller
    torch.manual_seed(1)
    bias = nn.Parameter(torch.randn(30))
    layer = QuantizedLinear.of(torch.randn(30, 128) / 11, bits, bias)
    weight = layer.dequantized()
    x = torch.randn(2, rows, 128, requires_grad=True)
    expected = x @ weight.T + bias
    torch.testing.assert_close(layer(x), expected, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected, atol=1e-4, rtol=1e-4)
    given = torch.randn_like(expected)
    found = torch.autograd.grad(layer(x), (x, bias), given)
    for one, other in zip(found, torch.autograd.grad(expected, (x, bias), given), strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_cast_keeps_the_weights_and_rounds_only_activations(bits: int, dtype: torch.dtype) -> None:
    torch.manual_seed(2)
    layer = QuantizedLinear.of(torch.randn(24, 64) / 8, bits, nn.Parameter(torch.randn(24)))
    weight, integers = layer.dequantized(), layer.qweight.clone()
    assert layer.to(dtype).bias.dtype == dtype
    assert torch.equal(layer.float().dequantized(), weight) and torch.equal(layer.qweight, integers)
    for rows in (1, 20):
        x = torch.randn(rows, 64).to(dtype)
        found = layer.to(dtype)(x)
        assert found.dtype == dtype
        torch.testing.assert_close(found.float(), x.float() @ weight.T + layer.bias.float(), atol=0.06, rtol=0.03)


def test_integers_are_never_multiplied_as_if_they_were_the_weight_and_nan_is_refused() -> None:
    for bits in (8, 4):
        weight = QuantizedLinear.of(torch.randn(16, 32), bits).weight
        for wrong in (weight, weight.float()):
            with pytest.raises((RuntimeError, ValueError)):
                nn.functional.linear(torch.randn(3, 32), wrong)
        with pytest.raises(ValueError, match="NaN"):
            QuantizedLinear.of(torch.full((16, 32), float("nan")), bits)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_the_logits_of_the_same_weights(family: str, scheme: str) -> None:
    model = make(family)
    inputs, pixels = pad_left([prompt(3, 4), prompt(5)]), images(2, 1)
    quantization.quantize_layers(model.language_model, scheme)
    assert len(quantized_linear.layers(model.language_model)) >= 2 * len(model.cross_attention_layers)
    head = model.get_output_embeddings()
    assert not isinstance(head, QuantizedLinear)
    with torch.no_grad():
        found = model(**inputs, pixel_values=pixels, media_counts=[2, 1]).logits
        said = model.generate(**inputs, pixel_values=pixels, media_counts=[2, 1], max_new_tokens=3, do_sample=False)
        dequantized(model)
        torch.testing.assert_close(
            model(**inputs, pixel_values=pixels, media_counts=[2, 1]).logits, found, atol=1e-3, rtol=1e-3
        )
        assert (
            said.shape
            == model.generate(
                **inputs, pixel_values=pixels, media_counts=[2, 1], max_new_tokens=3, do_sample=False
            ).shape
        )


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_saved_model_opens_quantized_with_the_same_logits(directory, inputs, scheme: str, tmp_path) -> None:
    pixels = torch.randn(1, 2, 1, 3, 16, 16)
    model = fl.FlamingoForConditionalGeneration.from_pretrained(directory, quantize=scheme)
    assert model.config.quantize == scheme
    for part in (model.language_model, model.vision):
        assert {layer.bits for _, layer in quantized_linear.layers(part)} == {SCHEMES[scheme]}
    for part in (model.resampler, model.cross_attention):
        assert not quantized_linear.layers(part)
    inputs["pixel_values"] = pixels
    with torch.no_grad():
        expected = model(**inputs).logits
    model.save_pretrained(tmp_path / "saved")
    opened = fl.FlamingoForConditionalGeneration.from_pretrained(tmp_path / "saved")
    assert opened.config.quantize == scheme and not opened.trained_parameters().keys() ^ model.trained_parameters()
    with torch.no_grad():
        assert torch.equal(opened(**inputs).logits, expected)
    again = fl.FlamingoForConditionalGeneration.from_pretrained(tmp_path / "saved", quantize=scheme)
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, expected)
    other = next(name for name in SCHEMES if name != scheme)
    with pytest.raises(ValueError, match=f"{scheme} already"):
        fl.FlamingoForConditionalGeneration.from_pretrained(tmp_path / "saved", quantize=other)
    assert not list((tmp_path / "saved").rglob("*.bin")) and not list((tmp_path / "saved").rglob("*.pt"))
    outline = catalog.resolve(tmp_path / "saved").outline()
    kinds = {name: (t.dtype, t.shape) for name, t in outline.named_buffers()}
    assert kinds == {name: (t.dtype, t.shape) for name, t in opened.named_buffers()}


def test_saved_backbones_that_lack_a_quantized_weight_are_refused(directory, tmp_path) -> None:
    from safetensors.torch import load_file, save_file

    model = fl.FlamingoForConditionalGeneration.from_pretrained(directory, quantize="int4")
    model.save_pretrained(tmp_path / "saved")
    file = tmp_path / "saved" / "language" / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("qweight"))
    save_file({key: tensor for key, tensor in tensors.items() if key != name}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lack .*qweight"):
        fl.FlamingoForConditionalGeneration.from_pretrained(tmp_path / "saved")


def test_opening_holds_one_plain_weight_at_a_time(directory, monkeypatch) -> None:
    seen, quantize = [], quantized_linear.quantize

    def watched(weight, bits):
        if not weight.is_meta:
            alive = [one for one in seen if one() is not None]
            assert len(alive) <= 1, "earlier weights are still in memory"
            seen.append(weakref.ref(weight.untyped_storage()))
        return quantize(weight, bits)

    monkeypatch.setattr(quantized_linear, "quantize", watched)
    fl.FlamingoForConditionalGeneration.from_pretrained(directory, quantize="int8")
    assert len(seen) == 2 * 6 + 2 * 6


@pytest.mark.parametrize("scheme", SCHEMES)
def test_training_around_a_quantized_model_is_training_around_its_weights(directory, inputs, scheme: str) -> None:
    from flamboyance.training.parallel import quantized, set_precision

    pixels, found = torch.randn(1, 2, 1, 3, 16, 16), []
    for plain in (False, True):
        model = fl.FlamingoForConditionalGeneration.from_pretrained(directory, quantize=scheme)
        assert not quantized(model.language_model)
        if plain:
            dequantized(model.language_model)
            dequantized(model.vision)
        set_precision(model, "fp32")
        model.train()
        optimizer = torch.optim.SGD(model.trained_parameters().values(), lr=0.1)
        for _ in range(3):
            loss = model(**inputs, pixel_values=pixels, labels=inputs["input_ids"]).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        found.append((loss.item(), {name: p.detach().clone() for name, p in model.trained_parameters().items()}))
    (loss, trained), (other, expected) = found
    assert loss == pytest.approx(other, abs=1e-4) and trained.keys() == expected.keys()
    assert all(name.startswith(("resampler.", "cross_attention.", "added_tokens.")) for name in trained)
    for name, tensor in trained.items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-4, rtol=1e-3, msg=name)


def test_lora_trains_on_a_quantized_language_model_and_is_saved(directory, inputs, tmp_path) -> None:
    peft = pytest.importorskip("peft")
    model = fl.FlamingoForConditionalGeneration.from_pretrained(directory, quantize="int4")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "fc1"], init_lora_weights=False)
    model.language_model = peft.get_peft_model(model.language_model, config)
    inputs["pixel_values"] = torch.randn(1, 2, 1, 3, 16, 16)
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    adapted = [p for name, p in model.named_parameters() if "lora_" in name]
    assert len(adapted) == 8 and all(p.grad.abs().sum() > 0 for p in adapted)
    with torch.no_grad():
        expected = model.eval()(**inputs).logits
    model.save_pretrained(tmp_path / "saved")
    opened = fl.FlamingoForConditionalGeneration.from_pretrained(tmp_path / "saved").eval()
    with torch.no_grad():
        torch.testing.assert_close(opened(**inputs).logits, expected, atol=1e-5, rtol=1e-5)


def test_mistakes_name_what_was_given(directory, capsys) -> None:
    open_model = fl.FlamingoForConditionalGeneration.from_pretrained
    with pytest.raises(ValueError, match=r"int3.*expected 'int8' or 'int4'"):
        open_model(directory, quantize="int3")
    with pytest.raises(ValueError, match="quantization_config are both given"):
        open_model(directory, quantize="int8", quantization_config=quantization.QuantizationConfig("int8"))
    assert main(["caption", "x.png", "--quantize", "int8", "--model", str(directory / "none")]) == 2
    with pytest.raises(SystemExit):
        main(["caption", "x.png", "--quantize", "int3"])
    assert "int3" in capsys.readouterr().err
