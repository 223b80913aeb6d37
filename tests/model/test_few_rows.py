"""Linear layers on a few rows give what they give elsewhere, and are left alone where others need them."""

import pytest
import torch
import torch.nn.functional as F

from flamboyance.model import few_rows
from flamboyance.model.few_rows import FewRows, exchanged


@pytest.fixture
def used(monkeypatch):
    """How often products were exchanged."""
    calls = []
    monkeypatch.setattr(few_rows, "_faster", lambda threads: True)
    monkeypatch.setattr(few_rows, "exchanged", lambda *given: calls.append(1) or exchanged(*given))
    return calls


@pytest.mark.parametrize("shape", [(3,), (2, 1), (1, 4), (3, 1, 1)])
@pytest.mark.parametrize("biased", [True, False])
def test_the_same_product(used, shape, biased):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(*shape, 24), torch.randn(40, 24), torch.randn(40) if biased else None
    with torch.no_grad(), FewRows():
        found = F.linear(x, weight, bias)
    assert used and torch.allclose(found, F.linear(x, weight, bias), atol=1e-5)
    assert found.shape == (*shape, 40) and found.is_contiguous()  # callers take views of it


def test_modules_and_views(used):
    layer = torch.nn.Linear(8, few_rows.WIDE)
    x = torch.randn(8, 20).t()  # 20 rows that do not lie one after the other
    with torch.inference_mode(), FewRows():
        found = layer(x)
    assert used and torch.allclose(found, layer(x), atol=1e-5)


@pytest.mark.parametrize("rows, outputs", [(1, 40), (5, 40), (65, few_rows.WIDE)])
def test_other_sizes_are_left_alone(used, rows, outputs):
    with torch.no_grad(), FewRows():
        F.linear(torch.randn(rows, 8), torch.randn(outputs, 8))
    assert not used


def test_other_precisions_gradients_and_threads_are_left_alone(used):
    x, weight = torch.randn(3, 8), torch.randn(40, 8, requires_grad=True)
    with FewRows():
        F.linear(x, weight).sum().backward()
        with torch.no_grad():
            F.linear(x.bfloat16(), weight.bfloat16())
    with torch.no_grad():
        F.linear(x, weight)  # outside
    assert not used and weight.grad is not None


def test_a_machine_where_it_is_slower_keeps_linear_layers(monkeypatch):
    monkeypatch.setattr(few_rows, "_faster", lambda threads: False)
    monkeypatch.setattr(few_rows, "exchanged", None)
    with torch.no_grad(), FewRows():
        F.linear(torch.randn(3, 8), torch.randn(40, 8))


def test_it_is_measured_once():
    few_rows._faster.cache_clear()
    assert few_rows._faster(1) in (True, False)
    few_rows._faster(1)
    assert few_rows._faster.cache_info().misses == 1
