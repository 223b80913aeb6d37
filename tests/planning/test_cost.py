"""Operations and memory counted on the meta device, against real tensors and against sums done by hand."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from flamboyance.data.formats.mmc4 import MMC4
from flamboyance.data.formats.pairs import Pairs
from flamboyance.images import ImageProcessor
from flamboyance.planning import cost, memory
from flamboyance.planning.cost import BatchSizes, batch_of, largest_batch, meta_model, trace, typical_batch
from flamboyance.planning.tracing import CostLedger, DeviceKernels, attention
from flamboyance.training.parallel import checkpoint_activations
from flamboyance.training.step import summed_loss
from flamboyance.training.trained_parts import TrainedParts
from tests.model.families import PUBLISHED, make

SMALL = [BatchSizes(4, 12, 4, 44), BatchSizes(3, 40, 7, 110)]


class RealTensorsLedger(CostLedger):
    """Follows the storages of ordinary tensors."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in torch.utils._pytree.tree_leaves(out):
            if isinstance(value, torch.Tensor):
                self.hold(value)
        return out


def really(model, checkpointed):
    """(peak, temporary) of the same passes with real tensors."""
    ledger = RealTensorsLedger(model.train(), lambda name: name)
    if checkpointed:
        checkpoint_activations(model)
    normalize = ImageProcessor.clip(model.vision.image_size).normalized
    for sizes in SMALL:
        batch = batch_of(sizes, model)
        batch = dataclasses.replace(batch, images=torch.zeros(batch.images.shape, dtype=torch.uint8))
        ledger.hold(batch.images)
        with ledger:
            loss = summed_loss(model, batch, normalize, torch.device("cpu"))
            loss.backward()
            del loss
    return ledger.peak, ledger.temporary


@pytest.mark.parametrize("checkpointed", [False, True])
def test_memory_with_trained_backbones_is_that_of_real_tensors(checkpointed):
    model, trained = make("opt"), TrainedParts(vision=True, language=True)
    traced = trace(model.config, SMALL, device="cpu", checkpoint_activations=checkpointed, trained=trained)
    trained.apply(model)
    peak, temporary = really(model, checkpointed)
    assert traced.peak == pytest.approx(peak, rel=0.03)
    assert traced.temporary == pytest.approx(temporary, rel=0.03)


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("family", ["opt", "mpt", "mosaic_gpt", "llama"])
def test_memory_is_that_of_real_tensors(family, checkpointed):
    model = make(family)
    traced = trace(model.config, SMALL, device="cpu", checkpoint_activations=checkpointed)
    peak, temporary = really(model, checkpointed)
    assert traced.peak == pytest.approx(peak, rel=0.03)
    assert traced.temporary == pytest.approx(temporary, rel=0.03)


@pytest.mark.parametrize("family", [*PUBLISHED, "qwen3", "gemma3_text"])
def test_every_family_can_be_traced_as_on_a_gpu(family):
    config = make(family).config
    plain = trace(config, SMALL[:1], device="cuda", precision="bf16")
    checkpointed = trace(config, SMALL[:1], device="cuda", precision="bf16", checkpoint_activations=True)
    assert 0 < checkpointed.temporary < plain.temporary <= plain.peak
    assert checkpointed.total > plain.total


def test_operations_are_those_done_by_hand():
    model = make("llama")
    sizes = BatchSizes(4, 40, 4, 100)
    flops = trace(model.config, [sizes], device="cpu").flops
    tokens = sizes.rows * sizes.tokens
    matrices = sum(p.numel() for layer in model.language_model.model.layers for p in layer.parameters() if p.ndim > 1)
    text = model.config.text_config
    weights = 2 * 2 * tokens * sizes.tokens * text.num_attention_heads * text.head_dim * text.num_hidden_layers
    assert flops["language_model", "forward"] == 2 * matrices * tokens + weights
    # Frozen matrices pass gradients on, and get none; attention takes five products for two.
    first = flops["language_model", "backward"]
    assert first == 2 * matrices * tokens + 5 * weights // 2
    head = 2 * sizes.targets * text.hidden_size
    table = model.get_output_embeddings().weight.shape[0]
    assert flops["head", "forward"] == head * (table + len(model.config.added_tokens))
    assert flops["head", "backward"] == head * (table + 2 * len(model.config.added_tokens))
    assert flops["vision", "backward"] == 0
    # What trains takes twice as much backward as forward, but for the gradient of the frozen features.
    ratio = flops["cross_attention", "backward"] / flops["cross_attention", "forward"]
    assert 2.0 <= ratio < 2.1


def test_recomputing_counts_as_backward():
    config = make("opt").config
    plain, checkpointed = (trace(config, SMALL, device="cpu", checkpoint_activations=c).flops for c in (False, True))
    for part in ("language_model", "cross_attention"):
        assert checkpointed[part, "forward"] == plain[part, "forward"]
        extra = checkpointed[part, "backward"] - plain[part, "backward"]
        # Recomputing stops at the last tensor that is needed, so a closing product may be left out.
        assert 0.5 * plain[part, "forward"] < extra <= plain[part, "forward"]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(64), nn.Linear(64, 256), nn.Linear(256, 64)

    def forward(self, x):
        return self.down(self.up(self.norm(x)) + self.up(x))


def test_autocast_casts_as_on_cuda():
    with torch.device("meta"):
        net, x = Net(), torch.empty(8, 64)
    ledger = CostLedger(net, lambda name: name)
    kernels = DeviceKernels("cuda", torch.bfloat16, ledger.made)
    seen = []
    for module in (net.norm, net.up, net.down):
        module.register_forward_hook(lambda _, args, out: seen.append(out.dtype))
    with kernels, ledger, kernels.autocast():
        out = net(x)
        assert len(kernels._casts) == 4  # two weights and two biases, each once though `up` runs twice
    assert seen == [torch.float32, torch.bfloat16, torch.bfloat16, torch.bfloat16]
    assert out.dtype == torch.bfloat16
    assert not kernels._casts


def test_storages_are_followed_to_their_end():
    with torch.device("meta"):
        net = nn.Sequential(nn.Linear(64, 64, bias=False), nn.ReLU(), nn.Linear(64, 64, bias=False))
        x = torch.empty(16, 64)
    ledger = CostLedger(net, lambda name: name)
    kernels = DeviceKernels("cpu", None, ledger.made)
    with kernels, ledger:
        loss = checkpoint(net, x, use_reentrant=False).sum()
        assert ledger.live == 4  # the loss: everything else is computed again
        kernels.backward(loss)
        del loss
    gradients = 2 * 64 * 64 * 4
    assert (ledger.live, ledger.gradients) == (gradients, gradients)
    assert ledger.peak >= gradients + 16 * 64 * 4  # the first layer's result, which the second's gradient needs


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_on_a_gpu_keeps_no_weights(dtype, masked):
    with torch.device("meta"):
        q, k, v = (torch.empty(2, 4, 256, 16, dtype=dtype, requires_grad=True) for _ in range(3))
        mask = torch.ones(2, 1, 256, 256, dtype=torch.bool) if masked else None
    ledger = CostLedger(nn.Identity(), lambda name: name)
    with ledger:
        out = attention("cuda", q, k, v, attn_mask=mask)
    assert out.shape == q.shape and out.dtype == dtype
    kept = ledger.live - (2 * 256 * 256 * dtype.itemsize if masked else 0)
    assert kept < 2 * q.numel() * q.element_size()  # not 2·4·256·256 weights


def test_attention_is_torchs_own():
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 10, 8), torch.randn(2, 2, 12, 8), torch.randn(2, 2, 12, 8)
    mask = torch.rand(2, 1, 10, 12) > 0.3
    mask[..., 0] = True
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(attention("cpu", q, k, v, attn_mask=mask, scale=0.3, enable_gqa=True), expected)


def test_sizes_of_sources():
    pairs = Pairs(shards="x", batch_size=64)
    documents = MMC4(shards="x", batch_size=32, max_images=6)
    assert largest_batch(pairs) == BatchSizes(64, 32, 64, 64 * 31)
    assert largest_batch(documents) == BatchSizes(32, 256, 192, 32 * 256 - 192)
    assert typical_batch(documents, 2.5).images == 80
    assert typical_batch(documents, 9.0).images == 192
    assert typical_batch(pairs, 2.5).images == 64


@pytest.mark.parametrize("sizes", SMALL + [BatchSizes(5, 16, 3, 60)])
def test_batches_have_the_sizes_asked_for(sizes):
    batch = batch_of(sizes, meta_model(make("opt").config))
    assert batch.input_ids.shape == (sizes.rows, sizes.tokens)
    assert sum(batch.media_counts) == sizes.images == len(batch.images)
    assert batch.images_seen.max(1).values.tolist() == list(batch.media_counts)
    # No more than there are tokens to predict: the first of a row is not.
    assert batch.targets == min(sizes.targets, int((batch.labels[:, 1:] != -100).sum()))
    assert abs(batch.targets - sizes.targets) <= sizes.rows


def test_parameters_by_part():
    for family in ("opt", "llama"):  # a tied head and one of its own
        model = make(family)
        table = memory.parts(model)
        assert sum(p.frozen + p.trained for p in table.values()) == sum(p.numel() for p in model.parameters())
        assert sum(p.trained for p in table.values()) == sum(p.numel() for p in model.trained_parameters().values())
        assert bool(table["head"].frozen) == (family == "llama")
    assert set(table) == set(cost.PARTS)


def test_units_hold_every_parameter_once():
    model = make("llama")
    found = memory.units(model, "fp32")
    assert found.twice + found.once + found.root == 4 * sum(p.numel() for p in model.parameters())
    assert 4 * found.largest_trained <= found.largest
    half = memory.units(meta_model(model.config, "bf16"), "bf16")
    assert 2 * (half.twice + half.once + half.root) == found.twice + found.once + found.root
