"""What trains, trains; what is frozen stays as it is; for each family of language model."""

import copy
from contextlib import contextmanager

import pytest
import torch
from torch.testing import assert_close

from tests.model.families import EOC, FAMILIES, IMAGE, PAD, images, make, pad_left, prompt


@contextmanager
def keeping(model):
    """The storages that a forward pass keeps for the backward pass, without those of parameters, by address."""
    found, weights = {}, {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in weights:
            found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield found


def batch():
    inputs = pad_left([prompt(3, 4), prompt(5, 2, seed=1, lead=2)])
    ids = inputs["input_ids"]
    return inputs | {"labels": ids.masked_fill((ids == PAD) | (ids == IMAGE), -100), "pixel_values": images(2, 2)}


@pytest.mark.parametrize("family", FAMILIES)
def test_one_step_trains_and_generates(family):
    model = make(family).train()
    trained = model.trained_parameters()
    assert {n for n, p in model.named_parameters() if p.requires_grad} == set(trained)
    frozen = {n: p.clone() for n, p in model.named_parameters() if n not in trained}
    optimizer = torch.optim.SGD(trained.values(), lr=1e-3)
    before = model(**batch()).loss
    before.backward()
    for name, p in trained.items():
        assert p.grad is not None and p.grad.isfinite().all(), name
        assert p.grad.abs().sum() > 0, name
    optimizer.step()
    assert model(**batch()).loss < before
    for name, p in model.named_parameters():
        if name in frozen:
            assert torch.equal(p, frozen[name]), name
    inputs = {k: v for k, v in batch().items() if k != "labels"}
    cached, plain = (
        model.generate(**inputs, max_new_tokens=5, min_new_tokens=5, do_sample=False, use_cache=use)
        for use in (True, False)
    )
    assert cached.tolist() == plain.tolist()


@pytest.mark.parametrize("unfrozen", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_checkpointing_changes_nothing(family, unfrozen):
    """Of an unfrozen language model, the layers are computed again, with their blocks in some versions."""
    plain = make(family)
    plain.language_model.requires_grad_(unfrozen)
    plain.train()
    checkpointed = copy.deepcopy(plain)
    checkpointed.gradient_checkpointing_enable()
    copied = copy.deepcopy(checkpointed)
    again = copy.deepcopy(checkpointed)
    again.gradient_checkpointing_disable()
    losses, kept = [], []
    for model in (plain, checkpointed, copied, again):
        torch.manual_seed(0)  # of dropout
        with keeping(model) as tensors:
            loss = model(**batch()).loss
        loss.backward()
        losses.append(loss)
        kept.append(sum(storage.nbytes() for storage in tensors.values()))
    assert_close(losses, [losses[0]] * 4)
    assert kept[1] < 0.4 * kept[0], "a layer keeps its inputs alone"
    assert kept[2] == kept[1] and kept[3] == kept[0]
    for (name, a), b in zip(
        plain.trained_parameters().items(), checkpointed.trained_parameters().values(), strict=True
    ):
        assert_close(a.grad, b.grad, msg=lambda m, name=name: f"{name}: {m}")


def test_a_copy_has_its_own_blocks():
    model = make("llama")
    other = copy.deepcopy(model)
    inputs = {k: v for k, v in batch().items() if k != "labels"}
    with torch.no_grad():
        for block in other.cross_attention:
            block.attention_gate.zero_()
        a, b = model(**inputs).logits, other(**inputs).logits
    assert (a - b).abs().max() > 1e-3


def test_frozen_parts_stay_in_evaluation_mode():
    model = make("opt").train()
    assert model.training and model.resampler.training
    assert not any(m.training for part in (model.vision, model.language_model) for m in part.modules())


def test_added_rows_equal_a_resized_table():
    """Against the plain way: one table with the added rows in it, tied to the head."""
    model = make("gpt2")
    inputs = pad_left([[*prompt(0)[1:], EOC, 5, 6, 7, EOC]])
    lm = copy.deepcopy(model.language_model)
    for layer in lm.transformer.h:
        layer._forward_pre_hooks.clear()
    lm.lm_head._forward_hooks.clear(), lm.lm_head._forward_pre_hooks.clear()
    with torch.no_grad():
        for block in model.cross_attention:
            block.feed_forward_gate.zero_()
        first = model.config.base_vocab_size
        table = torch.cat([lm.transformer.wte.weight[:first], model.added_tokens.embedding])
    lm.transformer.wte.weight = lm.lm_head.weight = torch.nn.Parameter(table)
    logits = lm(inputs["input_ids"]).logits
    got = model(inputs["input_ids"]).logits
    assert_close(got, logits, atol=1e-5, rtol=1e-4)
    labels = inputs["input_ids"]
    torch.nn.functional.cross_entropy(logits[0, :-1], labels[0, 1:]).backward()
    model(labels, labels=labels).loss.backward()
    assert_close(model.added_tokens.embedding.grad, lm.transformer.wte.weight.grad[first:], atol=1e-5, rtol=1e-4)
