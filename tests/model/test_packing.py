"""Packed weights: the same answers, and a model that can be saved, copied, moved, loaded and trained as before."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors import safe_open
from torch import nn

from flamboyance import FlamingoForConditionalGeneration
from flamboyance.checkpoints import openflamingo
from flamboyance.model import linear as module
from flamboyance.model import network
from flamboyance.model.linear import Linear, pack, unpack
from tests.model.families import FAMILIES, images, make, pad_left, prompt

pytestmark = pytest.mark.skipif(not module.has_onednn(), reason="this PyTorch has no oneDNN, which packs")
has_bfloat16 = pytest.mark.skipif(not module.supports_bfloat16(), reason="oneDNN has no bfloat16 on this processor")
PRECISIONS = (torch.float32, pytest.param(torch.bfloat16, marks=has_bfloat16))


@pytest.fixture(autouse=True)
def packs(monkeypatch):
    """Weights of any size, on any processor."""
    monkeypatch.setattr(module, "SMALLEST", 0)
    monkeypatch.setattr(module, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(module, "onednn_multiplies_bfloat16", module.supports_bfloat16)


def made(inputs=24, outputs=40, dtype=torch.float32, **options):
    torch.manual_seed(0)
    return Linear(inputs, outputs, dtype=dtype, **options)


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("shape", [(3,), (2, 5), (2, 1), (200,), (3, 2, 4), ()])
@pytest.mark.parametrize("biased", [True, False])
def test_the_same_product(dtype, shape, biased):
    layer = made(dtype=dtype, bias=biased).requires_grad_(False)
    weight, x = layer.weight.clone(), torch.randn(*shape, 24).to(dtype)
    wanted = x.double() @ weight.double().t() + (layer.bias.double() if biased else 0)
    layer.pack()
    assert layer.weight.is_mkldnn and layer.weight.shape == weight.shape and layer.weight.dtype == dtype
    tolerance = {"atol": 1e-5, "rtol": 0} if dtype == torch.float32 else {"atol": 2e-2, "rtol": 1e-2}
    torch.testing.assert_close(layer(x).double(), wanted, **tolerance)
    layer.unpack()
    assert torch.equal(layer.weight, weight)


def test_the_plain_weight_is_given_up():
    layer = made()
    layer.pack()
    with pytest.raises(RuntimeError):
        layer.weight.data_ptr()
    with pytest.raises(RuntimeError, match=r"MkldnnCPU"):
        layer.weight.norm()


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_other_inputs_than_its_own_precision(dtype):
    layer = made(dtype=dtype).requires_grad_(False)
    x = torch.randn(3, 24)
    with torch.autocast("cpu", torch.bfloat16):
        wanted = layer(x)
        layer.pack()
        assert torch.equal(layer(x), wanted) and wanted.dtype == torch.bfloat16


def test_gradients_unpack_and_the_optimizer_made_before_goes_on():
    layer = made()
    plain, weight = copy.deepcopy(layer), layer.weight
    layer.pack()
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.1) for each in (layer, plain)]
    x = torch.randn(5, 24)
    for each, optimizer in zip((layer, plain), optimizers, strict=True):
        each(x).square().sum().backward()
        optimizer.step()
    assert layer.weight is weight and not weight.is_mkldnn
    torch.testing.assert_close(layer.weight, plain.weight)
    layer.pack()
    assert layer.weight.is_mkldnn is False, "its gradient would be lost"
    layer.zero_grad()
    layer.pack()
    assert weight.is_mkldnn and weight.requires_grad


def test_gradients_of_the_input_of_a_frozen_layer():
    layer = made().requires_grad_(False)
    x = torch.randn(5, 24, requires_grad=True)
    layer.pack()
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(5, 24))


def test_packed_in_inference_mode_trained_afterwards():
    layer, x = made(), torch.randn(5, 24)
    with torch.inference_mode():
        layer.pack()
        layer(x)
        layer.unpack()
    layer(x).sum().backward()
    assert layer.weight.grad is not None


def test_what_is_not_packed(monkeypatch):
    table, head, half = nn.Embedding(40, 24), made(), made().half()
    head.weight = table.weight
    meta = made(device="meta")
    pack(nn.ModuleList([table, head, half, meta]))
    assert not any(layer.weight.is_mkldnn for layer in (table, head, half, meta))
    assert head.weight is table.weight
    monkeypatch.setattr(module, "onednn_is_faster", lambda: False)
    layer = made()
    layer.pack()
    assert not layer.weight.is_mkldnn
    layer.bfloat16().pack()
    assert layer.weight.is_mkldnn == module.supports_bfloat16()


def test_nothing_is_left_in_a_mapped_file(tmp_path):
    """A weight in one would keep all of it mapped."""
    from safetensors.torch import load_file, save_file

    model = nn.ModuleDict({"table": nn.Embedding(40, 24), "linear": made()})
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    model.load_state_dict(load_file(tmp_path / "model.safetensors"), assign=True)
    mapped = model["table"].weight.data_ptr()
    wanted = model["table"].weight.clone()
    pack(model)
    assert model["table"].weight.data_ptr() != mapped and torch.equal(model["table"].weight, wanted)


def test_moving_loading_copying():
    layer, x = made(bias=False).requires_grad_(False), torch.randn(3, 24)
    weight, wanted = layer.weight.clone(), layer(x)
    layer.pack()
    for same in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(same.weight, weight) and not same.weight.requires_grad
    assert torch.equal(layer.state_dict()["weight"], weight)
    converted = layer.to(torch.bfloat16)
    assert converted is layer and layer.weight.dtype == torch.bfloat16
    assert layer.weight.is_mkldnn == module.supports_bfloat16()
    layer.float().pack()
    layer.load_state_dict({"weight": 2 * weight})
    assert layer.weight.is_mkldnn
    torch.testing.assert_close(layer(x), 2 * wanted)
    assert layer.to("meta").weight.is_meta


def test_a_model_packed_in_inference_mode_is_trained_afterwards():
    model = nn.Sequential(made(), nn.LayerNorm(40))
    with torch.inference_mode():
        pack(model)
    assert model[0].weight.is_mkldnn and not any(p.is_inference() for p in model.parameters())
    model(torch.randn(5, 24)).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_what_a_graph_holds_stays_plain():
    layers = nn.Sequential(made(24, 24).requires_grad_(False), made(24, 24).requires_grad_(False))
    x = torch.randn(5, 24, requires_grad=True)
    out = layers(x)
    pack(layers)
    assert not any(layer.weight.is_mkldnn for layer in layers)
    out.sum().backward()
    del out
    pack(layers)
    assert all(layer.weight.is_mkldnn for layer in layers)


def test_threads_that_unpack_together():
    layer, x = made(), torch.randn(50, 24)
    wanted = layer(x).detach()
    with ThreadPoolExecutor(8) as pool:
        for _ in range(50):
            layer.pack()
            for found in pool.map(lambda _: layer(x).detach(), range(8)):
                torch.testing.assert_close(found, wanted)


def test_layers_behind_hooks_of_several_devices():
    """accelerate calls a forward that it has kept."""
    layer = nn.Linear(24, 40).requires_grad_(False)
    layer._old_forward = layer.forward
    layer.forward = lambda *given: layer._old_forward(*given)
    x = torch.randn(3, 24)
    wanted = layer(x)
    module.use_packed_linear(layer)
    layer.pack()
    torch.testing.assert_close(layer(x), wanted)


def test_notes_on_a_parameter_stay():
    layer = made()
    layer.weight.no_decay = True
    layer.pack()
    assert layer.weight.no_decay
    layer.unpack()
    assert layer.weight.no_decay


def test_backbones_that_may_read_weights_stay_plain(monkeypatch):
    model = make("llama")
    monkeypatch.setattr(network, "PACKED", {"opt"})
    monkeypatch.setitem(model.vision.spec, "library", "timm")
    packed = {name.split(".")[0] for name, p in model.pack().named_parameters() if p.is_mkldnn}
    assert packed == {"resampler", "cross_attention"}


@torch.no_grad()
@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_packed_model_answers_alike(family, dtype):
    model = make(family).to(dtype)
    inputs = {**pad_left([prompt(3, 4), prompt(9, 2, seed=1, lead=2)]), "pixel_values": images(2, 2)}
    how = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "num_beams": 2}
    logits, texts = model(**inputs).logits, model.generate(**inputs, **how)
    scores = model.score(**inputs, candidates=[[5], [6, 7]])
    assert model.pack() is model
    packed = {name.split(".")[0] for name, p in model.named_parameters() if p.is_mkldnn}
    without = {"language_model"} if family == "gpt2" else set()  # transposed layers of its own kind
    assert packed == {"vision", "language_model", "resampler", "cross_attention"} - without
    near = {"atol": 1e-4, "rtol": 1e-4} if dtype == torch.float32 else {"atol": 5e-2, "rtol": 5e-2}
    torch.testing.assert_close(model(**inputs).logits, logits, **near)
    assert dtype == torch.bfloat16 or torch.equal(model.generate(**inputs, **how), texts)
    assert model.generate(**inputs, **how).shape == texts.shape
    torch.testing.assert_close(model.score(**inputs, candidates=[[5], [6, 7]]), scores, **near)


def content(file):
    """Metadata and bytes of each tensor; the file orders its metadata as it likes."""
    with safe_open(file, "pt") as tensors:
        return tensors.metadata(), {n: tensors.get_tensor(n).numpy().tobytes() for n in tensors.keys()}  # noqa: SIM118


@pytest.mark.parametrize("family", ["opt", "mosaic_gpt"])
def test_a_packed_model_is_saved_and_trained_as_ever(family, tmp_path):
    model = make(family).pack()
    plain = make(family)
    model.save_pretrained(tmp_path / "packed", include_backbones=True)
    plain.save_pretrained(tmp_path / "plain", include_backbones=True)
    files = sorted(p.relative_to(tmp_path / "plain") for p in (tmp_path / "plain").rglob("*.safetensors"))
    assert len(files) == 3
    for file in files:
        packed_file, plain_file = (content(tmp_path / each / file) for each in ("packed", "plain"))
        assert packed_file == plain_file, file
    reopened = FlamingoForConditionalGeneration.from_pretrained(tmp_path / "packed")
    copied = copy.deepcopy(model)
    for name, parameter in plain.named_parameters():
        assert torch.equal(dict(reopened.named_parameters())[name], parameter), name
        assert torch.equal(dict(copied.named_parameters())[name], parameter), name

    exported = openflamingo.export(plain)
    assert all(torch.equal(t, exported[name]) for name, t in openflamingo.export(model).items())
    other = copy.deepcopy(plain)
    for parameter in other.trained_parameters().values():
        nn.init.zeros_(parameter)
    openflamingo.load(other.pack(), openflamingo.parse(exported))
    assert any(p.is_mkldnn for p in other.parameters())
    assert all(torch.equal(t, exported[name]) for name, t in openflamingo.export(other).items())

    held = model.trained_parameters()
    model.train()
    assert not any(p.is_mkldnn for p in model.parameters())
    inputs = {"input_ids": torch.tensor([prompt(3, 4)]), "pixel_values": images(2)}
    for each in (model, plain):
        each(**inputs, labels=inputs["input_ids"]).loss.backward()
    for name, parameter in plain.trained_parameters().items():
        assert torch.equal(held[name].grad, parameter.grad), name


def test_unpacking_a_model():
    model = make("opt").pack()
    assert model.unpack() is model
    wanted = make("opt").state_dict()
    assert all(torch.equal(p, wanted[name]) and not p.is_mkldnn for name, p in model.named_parameters())
    unpack(model)
