"""Linear layers give what torch's give, by whichever library, and leave alone what is not theirs."""

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from flamboyance.model import linear as module
from flamboyance.model import resampler
from flamboyance.model.attention import attend
from flamboyance.model.linear import Linear, linear, use_packed_linear

with_onednn = pytest.mark.skipif(not module.has_onednn(), reason="this PyTorch has no oneDNN")
ROOT = Path(__file__).parents[2]
LESSER = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}


@pytest.fixture(params=[pytest.param("onednn", marks=with_onednn)])
def used(monkeypatch):
    """How often oneDNN multiplied, on any processor and at any size."""
    calls, product = [], module._product
    monkeypatch.setattr(module, "SMALLEST", 0)
    monkeypatch.setattr(module, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(module, "_product", lambda *given: calls.append(1) or product(*given))
    return calls


@pytest.mark.parametrize("shape", [(1,), (3,), (2, 5), (2, 1), (3, 2, 4)])
@pytest.mark.parametrize("biased", [True, False])
def test_the_same_product(used, shape, biased):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(*shape, 24), torch.randn(40, 24), torch.randn(40) if biased else None
    wanted = x.double() @ weight.double().t() + (0 if bias is None else bias.double())
    found = linear(x, weight, bias)
    assert len(used) == 1 and found.shape == (*shape, 40)
    assert torch.allclose(found.double(), wanted, atol=1e-5)


def test_rows_that_do_not_lie_one_after_the_other(used):
    torch.manual_seed(0)
    x, weight = torch.randn(24, 6).t(), torch.randn(40, 24)
    assert torch.allclose(linear(x, weight), x @ weight.t(), atol=1e-5)
    assert torch.allclose(linear(x[::2], weight[:, ::1]), x[::2] @ weight.t(), atol=1e-5)
    assert used


@pytest.mark.parametrize("learns", ["x", "weight", "bias", "x weight bias", "x bias"])
def test_gradients(used, learns):
    torch.manual_seed(0)
    tensors = {"x": torch.randn(2, 3, 8), "weight": torch.randn(5, 8), "bias": torch.randn(5)}
    tensors = {name: t.double().float().requires_grad_(name in learns.split()) for name, t in tensors.items()}
    plain = {name: t.detach().clone().requires_grad_(t.requires_grad) for name, t in tensors.items()}
    out, wanted = linear(*tensors.values()), nn.functional.linear(*plain.values())
    back = torch.randn_like(out)
    out.backward(back)
    wanted.backward(back)
    assert used
    for name, tensor in tensors.items():
        if tensor.requires_grad:
            assert torch.allclose(tensor.grad, plain[name].grad, atol=1e-5), name
        else:
            assert tensor.grad is None


def test_a_frozen_layer_keeps_nothing_of_its_input(used):
    layer = Linear(8, 8).requires_grad_(False)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(torch.randn(4, 8, requires_grad=True)).sum().backward()
    assert used and [t.shape for t in kept] == [layer.weight.shape]


def test_what_is_left_to_torch(used):
    layer = Linear(8, 8)
    layer(torch.randn(0, 8))
    layer(torch.randn(8))
    copy.deepcopy(layer).bfloat16()(torch.randn(2, 8).bfloat16())
    copy.deepcopy(layer).to("meta")(torch.randn(2, 8, device="meta"))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(2, 8)).dtype == torch.bfloat16
    assert not used


def test_small_weights_and_other_processors_are_left_to_torch(monkeypatch):
    monkeypatch.setattr(module, "_product", None)
    linear(torch.randn(3, 8), torch.randn(8, 8))
    monkeypatch.setattr(module, "SMALLEST", 0)
    monkeypatch.setattr(module, "onednn_is_faster", lambda: False)
    linear(torch.randn(3, 8), torch.randn(8, 8))


@pytest.mark.parametrize(
    "processor, capability, limit, faster",
    [
        ("vendor_id : AuthenticAMD", "AVX512", None, True),
        ("vendor_id : AuthenticAMD", "AVX512", "AVX2", True),
        ("vendor_id : AuthenticAMD", "AVX512", "SSE41", False),
        ("vendor_id : AuthenticAMD", "AVX2", None, True),
        ("vendor_id : AuthenticAMD", "DEFAULT", None, False),
        ("vendor_id : GenuineIntel", "AVX512", None, False),
        ("vendor_id : GenuineIntel", "AVX512", "avx2", True),
        ("vendor_id : GenuineIntel", "AVX512", "AVX512_CORE", False),
        ("vendor_id : GenuineIntel", "AVX2", None, True),
        ("vendor_id : GenuineIntel", "AVX2", "AVX", False),
        ("", "NEON", None, False),
    ],
)
def test_where_onednn_is_faster(monkeypatch, processor, capability, limit, faster):
    monkeypatch.setattr(module, "_processor", lambda: processor)
    monkeypatch.setattr(module, "has_onednn", lambda: True)
    monkeypatch.setattr(module, "instruction_set", module.instruction_set.__wrapped__)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    if limit is not None:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert module.onednn_is_faster.__wrapped__() is faster
    monkeypatch.setattr(module, "has_onednn", lambda: False)
    assert module.onednn_is_faster.__wrapped__() is False


@pytest.mark.parametrize("missing", ["_linear_pointwise", "_reorder_linear_weight"])
@pytest.mark.parametrize("how", [AttributeError, TypeError, RuntimeError])
def test_without_its_private_names_everything_is_left_to_torch(monkeypatch, missing, how):
    class Names:
        def __getattr__(self, name):
            if name == missing:
                raise how(name)
            return getattr(torch.ops.mkldnn, name)

    monkeypatch.setattr(module.torch.ops, "mkldnn", Names())
    assert module.has_onednn.__wrapped__() is False


@pytest.mark.parametrize("rows", [(3,), (8,), (2, 5), (200,)])
@pytest.mark.parametrize("by_onednn", [pytest.param(True, marks=with_onednn), False])
@pytest.mark.parametrize("biased", [True, False])
def test_bfloat16_where_onednn_has_none(monkeypatch, rows, by_onednn, biased):
    """The right product, there and back; of more than a few rows in float32, a piece of the weight at a time."""
    for name, value in (("bfloat16_is_slow", True), ("onednn_is_faster", by_onednn)):
        monkeypatch.setattr(module, name, lambda value=value: value)
    monkeypatch.setattr(module, "SMALLEST", 0)
    monkeypatch.setattr(module, "AT_ONCE", 100)
    widened, original = [], module._widened
    monkeypatch.setattr(module, "_widened", lambda *given: widened.append(1) or original(*given))
    torch.manual_seed(0)
    x, weight, bias = (torch.randn(*shape).bfloat16().requires_grad_() for shape in ((*rows, 24), (40, 24), (40,)))
    wide = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
    out = linear(x, weight, bias if biased else None)
    wanted = nn.functional.linear(wide[0], wide[1], wide[2] if biased else None)
    near = {"atol": 2e-2, "rtol": 2e-2}
    assert out.dtype == torch.bfloat16 and bool(widened) == (out[..., 0].numel() >= module.WIDENED_FROM)
    torch.testing.assert_close(out.double(), wanted, **near)
    back = torch.randn_like(out)
    out.backward(back)
    wanted.backward(back.double())
    for tensor, other in zip((x, weight, bias)[: 2 + biased], wide, strict=False):
        torch.testing.assert_close(tensor.grad.double(), other.grad, atol=0.2, rtol=2e-2)
    with torch.no_grad():
        torch.testing.assert_close(linear(x, weight).double(), x.double() @ weight.double().t(), **near)


def test_attention_in_bfloat16_where_onednn_has_none(monkeypatch):
    torch.manual_seed(0)
    q, k, v = (torch.randn(3, 2, tokens, 8).bfloat16() for tokens in (4, 6, 6))
    wanted = nn.functional.scaled_dot_product_attention(*(t.double() for t in (q, k, v)))
    monkeypatch.setattr(module, "bfloat16_is_slow", lambda: True)
    for found in (resampler.attend(q, k, v), attend(q, k, v, (), None)):
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.double(), wanted, atol=2e-2, rtol=2e-2)


@with_onednn
@pytest.mark.skipif(module.instruction_set() == "AVX2", reason="this processor is the lesser one itself")
@pytest.mark.parametrize("which", ["not alike", pytest.param("alike", marks=pytest.mark.slow)])
def test_a_lesser_processor(which):
    """The tests of linear layers, as on a processor with AVX2 alone: nothing is skipped but oneDNN's bfloat16."""
    files = ("tests/model/test_packing.py", "tests/model/test_linear.py")
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "-k", which, *files]
    env = {**os.environ, **LESSER, "PYTEST_ADDOPTS": "", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    skipped = [line for line in done.stdout.splitlines() if line.startswith("SKIPPED")]
    reasons = ("oneDNN has no bfloat16 on this processor", "this processor is the lesser one itself")
    assert skipped and all(line.endswith(reasons) for line in skipped)


def test_a_model_is_adopted_and_stays_what_it_is(used):
    class Own(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 4), nn.GELU()), Own(4, 4))
    names, x = list(model.state_dict()), torch.randn(3, 8)
    wanted = model(x)
    use_packed_linear(model)
    assert [type(m) for m in model.modules() if isinstance(m, nn.Linear)] == [Linear, Linear, Own]
    assert list(model.state_dict()) == names
    for same in (model, copy.deepcopy(model)):
        assert torch.allclose(same(x), wanted, atol=1e-6)
    assert isinstance(pickle.loads(pickle.dumps(model[0])), Linear)
    assert len(used) == 4


@pytest.mark.parametrize("rows, by_onednn", [(256, 1), (257, 0)])
def test_many_rows_are_left_to_mkl_with_avx2_alone(used, monkeypatch, rows, by_onednn):
    torch.manual_seed(0)
    monkeypatch.setattr(module, "instruction_set", lambda: "AVX2")
    x, weight = torch.randn(rows, 24), torch.randn(40, 24)
    assert torch.allclose(linear(x, weight), x @ weight.t(), atol=1e-5)
    assert len(used) == by_onednn
