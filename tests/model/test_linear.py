"""Linear layers give what torch's give, by whichever library, and leave alone what is not theirs."""

import copy
import pickle

import pytest
import torch
from torch import nn

from flamboyance.model import linear as module
from flamboyance.model.linear import Linear, adopt, linear

pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this PyTorch was built without oneDNN"
)


@pytest.fixture
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
    "processor, capability, faster",
    [
        ("vendor_id : AuthenticAMD", "AVX512", True),
        ("vendor_id : AuthenticAMD", "AVX2", False),
        ("vendor_id : GenuineIntel", "AVX512", False),
        ("", "NEON", False),
    ],
)
def test_where_onednn_is_faster(monkeypatch, processor, capability, faster):
    monkeypatch.setattr(module, "_processor", lambda: processor)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert module.onednn_is_faster.__wrapped__() is faster


def test_a_model_is_adopted_and_stays_what_it_is(used):
    class Own(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 4), nn.GELU()), Own(4, 4))
    names, x = list(model.state_dict()), torch.randn(3, 8)
    wanted = model(x)
    adopt(model)
    assert [type(m) for m in model.modules() if isinstance(m, nn.Linear)] == [Linear, Linear, Own]
    assert list(model.state_dict()) == names
    for same in (model, copy.deepcopy(model)):
        assert torch.allclose(same(x), wanted, atol=1e-6)
    assert isinstance(pickle.loads(pickle.dumps(model[0])), Linear)
    assert len(used) == 4
