"""One optimizer step, against gradients written out by hand and against the golden cases."""

import math
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from flamboyance.data.batch import Batch
from flamboyance.model.vision import VisionTower, tower_spec
from flamboyance.processes import World
from flamboyance.training.optimizer import make_optimizer
from flamboyance.training.parallel import Parallel, checkpoint_activations, set_precision, shard
from flamboyance.training.schedule import learning_rate_at
from flamboyance.training.step import Stepper, SummedCrossEntropy, summed_loss
from tests.model.families import FAMILIES, make
from tests.model.zoo import tiny_config
from tests.training.batches import SOURCES, item, normalized, training

HERE = World()


def stepper(model, **options) -> Stepper:
    config = training(**options)
    optimizer = make_optimizer(model.trained_parameters(), config)
    return Stepper(Parallel(model.train(), config, HERE), optimizer, config, normalized)


def mean_loss(model, batch: Batch) -> torch.Tensor:
    """The plain way: padded images, all logits, the model's own loss."""
    most = max(batch.media_counts)
    pixels = torch.zeros(len(batch.media_counts), most, 1, *batch.images.shape[1:])
    first = 0
    for row, count in enumerate(batch.media_counts):
        pixels[row, :count, 0] = normalized(batch.images[first : first + count])
        first += count
    return model(
        batch.input_ids,
        batch.attention_mask,
        pixel_values=pixels,
        media_counts=batch.media_counts,
        labels=batch.labels,
    ).loss


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_the_models_own_without_the_logits_nobody_asked_for(family):
    model = make(family).train()
    for batch in item(0).values():
        assert_close(summed_loss(model, batch, normalized, HERE.device) / batch.targets, mean_loss(model, batch))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_takes_the_logits_place(dtype):
    torch.manual_seed(0)
    hidden, target = torch.randn(300, 8).to(dtype).requires_grad_(), torch.randint(5000, (300,))
    table = torch.randn(5000, 8).to(dtype)
    logits = hidden @ table.t()
    wanted = torch.nn.functional.cross_entropy(logits.float(), target, reduction="sum")
    (expected,) = torch.autograd.grad(3 * wanted, logits, retain_graph=True)
    place, found = logits.data_ptr(), []
    logits.register_hook(found.append)
    loss = SummedCrossEntropy.apply(logits, target)
    assert_close(loss, wanted, rtol=1e-5, atol=0)
    (3 * loss).backward(retain_graph=True)
    assert_close(found[0], expected)
    assert found[0].data_ptr() == place
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_step_on_two_sources_is_their_weighted_sum():
    model, twin = make("opt"), make("opt")
    batches = item(0)
    losses = {name: mean_loss(twin, batch) for name, batch in batches.items()}
    (0.2 * losses["pairs"] + 1.0 * losses["documents"]).backward()
    trained = twin.trained_parameters()
    norm = torch.cat([p.grad.flatten() for p in trained.values()]).norm()
    assert norm > 1  # so that clipping is part of the test
    for p in trained.values():
        p.grad /= norm
    decayed = [p for n, p in trained.items() if n.startswith("cross_attention.") and p.ndim == 2]
    others = [p for n, p in trained.items() if not (n.startswith("cross_attention.") and p.ndim == 2)]
    plain = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}], lr=2e-3
    )
    plain.step()

    outcome = stepper(model)([batches], rate=2e-3)
    assert outcome.losses == pytest.approx({name: loss.item() for name, loss in losses.items()}, rel=1e-6)
    assert outcome.loss == pytest.approx(0.2 * losses["pairs"].item() + losses["documents"].item(), rel=1e-6)
    assert outcome.gradient_norm == pytest.approx(norm.item(), rel=1e-5)
    for name, p in model.trained_parameters().items():
        assert_close(p, trained[name], rtol=1e-4, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")


def test_micro_steps_count_tokens_not_batches():
    # Two micro-steps with batches of unequal length are the mean over all their tokens.
    twin = make("llama")
    first, second = item(0), item(1)
    assert first["documents"].targets != second["documents"].targets
    means = {}
    for name in SOURCES:
        sums = [summed_loss(twin, batch[name], normalized, HERE.device) for batch in (first, second)]
        means[name] = sum(sums) / (first[name].targets + second[name].targets)
    (0.2 * means["pairs"] + means["documents"]).backward()
    norm = torch.cat([p.grad.flatten() for p in twin.trained_parameters().values()]).norm().item()
    outcome = stepper(make("llama"), gradient_accumulation_steps=2)([first, second], rate=1e-3)
    assert outcome.gradient_norm == pytest.approx(norm, rel=1e-5)
    assert outcome.losses == pytest.approx({k: v.item() for k, v in means.items()}, rel=1e-6)


def test_a_broken_gradient_changes_nothing_and_the_next_step_goes_on():
    model = make("opt")
    step = stepper(model)
    step([item(0)], rate=1e-3)
    before = {n: p.clone() for n, p in model.trained_parameters().items()}
    moments = {id(p): s["exp_avg"].clone() for p, s in step.optimizer.state.items()}
    with torch.no_grad():
        kept = model.added_tokens.embedding.clone()
        model.added_tokens.embedding[0, 0] = math.nan
    outcome = step([item(1)], rate=1e-3)
    assert outcome.skipped and not math.isfinite(outcome.gradient_norm)
    with torch.no_grad():
        model.added_tokens.embedding.copy_(kept)
    for name, p in model.trained_parameters().items():
        assert torch.equal(p, before[name]), name
        assert p.grad is None
    assert all(torch.equal(s["exp_avg"], moments[id(p)]) for p, s in step.optimizer.state.items())
    assert not step([item(2)], rate=1e-3).skipped


@pytest.mark.parametrize("family", ["opt", "mpt", "gpt_neox", "qwen3"])
def test_activation_checkpointing_changes_no_gradient(family):
    norms = []
    for checkpointed in (False, True):
        model = make(family)
        norms.append(stepper(model, checkpoint_activations=checkpointed)([item(0)], rate=1e-3).gradient_norm)
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)


@pytest.mark.slow  # minutes of a C++ compiler
def test_compiled_layers_give_the_same_steps():
    losses = []
    for compiled in (False, True):
        step = stepper(make("gpt_neo", cross_attn_every_n_layers=2), compile=compiled)
        losses.append([step([item(number)], rate=1e-3).loss for number in range(3)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_activation_checkpointing_keeps_less():
    kept = []
    for checkpointed in (False, True):
        model = make("opt").train()
        if checkpointed:
            checkpoint_activations(model)
        found: dict[int, int] = {}

        def pack(t: torch.Tensor, found=found) -> torch.Tensor:
            found[t.data_ptr()] = t.numel() * t.element_size()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            summed_loss(model, item(0)["documents"], normalized, HERE.device)
        kept.append(sum(found.values()))
    assert kept[1] < kept[0] / 2


def test_bf16_computes_in_bf16_and_trains_in_fp32():
    model = make("opt")
    set_precision(model, "bf16")
    assert {p.dtype for p in model.language_model.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in model.trained_parameters().values()} == {torch.float32}
    low = stepper(model, precision="bf16")([item(0)], rate=1e-3)
    full = stepper(make("opt"))([item(0)], rate=1e-3)
    assert low.loss == pytest.approx(full.loss, rel=0.02)
    assert low.gradient_norm == pytest.approx(full.gradient_norm, rel=0.1)
    assert {s["exp_avg"].dtype for s in model_states(model)} == {torch.float32}


def test_bf16_leaves_the_frequencies_of_positions_in_float32():
    """As transformers does when it opens a language model in bfloat16."""
    casts = (lambda model: set_precision(model, "bf16"), lambda model: model.to(torch.bfloat16))
    for cast in casts:
        model, exact = make("llama"), make("llama").language_model.model.rotary_emb.inv_freq
        cast(model)
        assert {p.dtype for p in model.language_model.parameters()} == {torch.bfloat16}
        assert torch.equal(model.language_model.model.rotary_emb.inv_freq, exact)
        assert exact.dtype == torch.float32
        other = make("opt")
        other.language_model = AutoModelForCausalLM.from_config(tiny_config("xglm")).requires_grad_(False)
        cast(other)  # this one adds a table of positions that it computes to the hidden states
        with torch.autocast("cpu", torch.bfloat16, enabled=cast is not casts[1]):
            assert other.language_model(torch.tensor([[3, 4, 5]])).logits.isfinite().all()
    model.to("meta")
    assert model.language_model.model.rotary_emb.inv_freq.is_meta


@pytest.mark.parametrize("trained", [True, False])
def test_bf16_with_batch_normalisation_in_the_tower(trained):
    """Its weights and statistics have one precision."""
    model = make("opt")
    model.vision = VisionTower.from_config(tower_spec("timm/test_efficientnet", image_size=32))
    model.vision.requires_grad_(trained)
    set_precision(model, "bf16")
    pixels = torch.randn(2, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        assert model.vision(pixels).isfinite().all()
    kinds = {m.weight.dtype for m in model.vision.modules() if hasattr(m, "running_var")}
    assert kinds == {torch.float32 if trained else torch.bfloat16}
    assert kinds == {m.running_var.dtype for m in model.vision.modules() if hasattr(m, "running_var")}
    model.vision(pixels.to(kinds.pop()))  # without autocast, as in an evaluation


def test_batch_normalisation_that_fsdp_would_cast_is_refused():
    model = make("opt")
    model.vision = VisionTower.from_config(tower_spec("timm/test_efficientnet", image_size=32)).requires_grad_(True)
    with pytest.raises(ValueError, match=r"parallel=fsdp.*batch normalisation.*parallel=ddp"):
        shard(model, None, "bf16")  # ty: ignore[invalid-argument-type]


def test_buffers_of_a_frozen_tower_with_an_adapter_have_its_precision():
    """As a mask that is added to scores, in an evaluation without autocast."""
    from peft import LoraConfig, inject_adapter_in_model

    model = make("opt")
    model.vision.mask = torch.nn.Module()
    model.vision.mask.register_buffer("table", torch.zeros(3), persistent=False)
    inject_adapter_in_model(LoraConfig(target_modules=["q_proj"], r=2), model.vision)
    assert any(p.requires_grad for p in model.vision.parameters())
    set_precision(model, "bf16")
    assert model.vision.mask.table.dtype == torch.bfloat16


def model_states(model) -> list[dict]:
    config = training()
    optimizer = make_optimizer(model.trained_parameters(), config)
    for p in model.trained_parameters().values():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    return list(optimizer.state.values())


def test_learning_rates():
    config = replace(training(), learning_rate=1.0, warmup_steps=10, steps=110, schedule="cosine", min_lr_factor=0.1)
    assert learning_rate_at(0, config) == pytest.approx(0.1)
    assert learning_rate_at(9, config) == pytest.approx(1.0)
    assert learning_rate_at(60, config) == pytest.approx(0.55)  # half way from the end of the warm-up
    assert learning_rate_at(110, config) == pytest.approx(0.1)
    late = replace(config, schedule="linear", decay_fraction=0.5, min_lr_factor=0.0)
    assert [learning_rate_at(s, late) for s in (20, 55, 110)] == pytest.approx([1.0, 1.0, 0.0])
    assert learning_rate_at(82, late) == pytest.approx(1 - 27 / 55)
    assert learning_rate_at(10_000, replace(config, schedule="constant")) == 1.0


def test_what_decays():
    model = make("gpt_neox")
    groups = make_optimizer(model.trained_parameters(), training()).param_groups
    names = {id(p): n for n, p in model.trained_parameters().items()}
    decayed = {names[id(p)] for p in groups[0]["params"]}
    assert groups[0]["weight_decay"] == 0.1 and groups[1]["weight_decay"] == 0.0
    assert decayed == {
        f"cross_attention.{i}.{part}.weight"
        for i in range(3)
        for part in ("attention.to_q", "attention.to_kv", "attention.to_out", "feed_forward.up", "feed_forward.down")
    }
    assert len(groups[0]["params"]) + len(groups[1]["params"]) == len(names)
