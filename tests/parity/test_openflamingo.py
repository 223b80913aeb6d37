"""Numerical equality with open_flamingo 2.0.1, through the drop-in, on eight language-model families."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch

from flamboyance import FlamingoForConditionalGeneration, create_model_and_transforms
from flamboyance.data.batch import Batch
from flamboyance.training.step import summed_loss
from tests.parity.rebuild import CASES, build, pixels, read_case

EOC, MEDIA, PAD = 320, 321, 322


@pytest.fixture(scope="module", params=CASES, ids=lambda file: file.stem)
def golden(request, tmp_path_factory):
    case = read_case(request.param)
    directory = tmp_path_factory.mktemp("golden")
    state = build(case, directory)
    model, _, tokenizer = create_model_and_transforms(
        str(directory / "vision"),
        None,
        str(directory / "language"),
        str(directory / "tokenizer"),
        cross_attn_every_n_layers=case["cross_attn_every_n_layers"],
    )
    torch.save(state, directory / "checkpoint.pt")
    model.load_state_dict(torch.load(directory / "checkpoint.pt"), strict=False)
    assert [tokenizer.convert_tokens_to_ids(t) for t in ("<|endofchunk|>", "<image>", "<PAD>")] == [
        EOC,
        MEDIA,
        PAD,
    ]
    return SimpleNamespace(case=case, model=model, expect=case["expect"], pixels=pixels(case))


def padded(rows, side):
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), PAD)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        where = slice(longest - len(row), None) if side == "left" else slice(0, len(row))
        ids[i, where] = torch.tensor(row)
        mask[i, where] = 1
    return ids, mask


def test_vision_features_and_latents(golden):
    expect = golden.expect
    features = golden.model.vision(golden.pixels.flatten(0, 2))
    first = features[0, :4, :8].flatten()
    torch.testing.assert_close(first, torch.tensor(expect["patch_features_0_first4x8"]), atol=1e-4, rtol=0)
    latents = golden.model.encode_media(golden.pixels).latents.detach()
    torch.testing.assert_close(
        latents[0, :2, :8].flatten(), torch.tensor(expect["latents_0_first2x8"]), atol=1e-4, rtol=0
    )
    assert latents.norm().item() == pytest.approx(expect["latents_norm"], rel=1e-4)


def test_logits(golden):
    for row, images, last, norm in zip(
        golden.case["rows"],
        golden.pixels,
        golden.expect["last_logits"],
        golden.expect["logits_norm"],
        strict=True,
    ):
        with torch.no_grad():
            logits = golden.model(vision_x=images[None], lang_x=torch.tensor([row])).logits[0]
        torch.testing.assert_close(logits[-1], torch.tensor(last), atol=1e-4, rtol=0)
        assert logits.norm().item() == pytest.approx(norm, rel=1e-4)


GENERATION = {
    "greedy": {"num_beams": 1},
    "beam3": {"num_beams": 3, "length_penalty": 0.0},
    "beam3_min8_lp_minus2": {"num_beams": 3, "min_new_tokens": 8, "length_penalty": -2.0},
    "greedy_stop": {"num_beams": 1, "stop": True},
    "beam3_stop": {"num_beams": 3, "length_penalty": 0.0, "stop": True},
}


@pytest.mark.parametrize("name", GENERATION)
def test_generation(golden, name):
    options = dict(GENERATION[name])
    if options.pop("stop", False):
        options["eos_token_id"] = golden.expect["stop"]
    ids, mask = padded(golden.case["rows"], "left")
    out = golden.model.generate(
        vision_x=golden.pixels,
        lang_x=ids,
        attention_mask=mask,
        max_new_tokens=8,
        do_sample=False,
        pad_token_id=PAD,
        **options,
    )

    def strip(row):
        row = list(row)
        while row and row[-1] == PAD:
            row.pop()
        return row

    new = [strip(row) for row in out[:, ids.shape[1] :].tolist()]
    assert new == [strip(row) for row in golden.expect[name]]


def training_loss(golden, ids, mask, labels):
    """The training loop's own: packed images, logits of targets alone."""
    images = golden.pixels.flatten(0, 1)[:, 0]
    seen, counts = (ids == MEDIA).cumsum(1), [golden.pixels.shape[1]] * len(ids)
    batch = Batch(ids, mask, labels, seen, images, tuple(counts))
    call = partial(FlamingoForConditionalGeneration.forward, golden.model)
    return summed_loss(call, batch, lambda levels: levels, torch.device("cpu")) / batch.targets


@pytest.mark.parametrize("training", [False, True], ids=["drop-in", "training"])
def test_loss_and_gradients(golden, training):
    model, expect = golden.model, golden.expect
    ids, mask = padded(golden.case["rows"], "right")
    labels = ids.masked_fill((ids == PAD) | (ids == MEDIA), -100)
    model.zero_grad()
    if training:
        loss = training_loss(golden, ids, mask, labels)
    else:
        loss = model(vision_x=golden.pixels, lang_x=ids, attention_mask=mask, labels=labels).loss
    assert loss.item() == pytest.approx(expect["loss"], rel=1e-5)
    loss.backward()

    from flamboyance.checkpoints import openflamingo

    ours = {
        theirs: model.trained_parameters()[name].grad.norm().item()
        for theirs, name in openflamingo.reference_names(model).parameters.items()
    }
    for key, norm in expect["grad_norms"].items():
        assert ours[key] == pytest.approx(norm, rel=1e-3, abs=1e-6), key
    rows = model.added_tokens.embedding.grad
    for token, norm in zip((EOC, MEDIA), special_norms(expect), strict=True):
        assert rows[token - EOC].norm().item() == pytest.approx(norm, rel=1e-3, abs=1e-6)
    model.zero_grad()


def special_norms(expect):
    norms = expect["special_embedding_grad_norms"]
    return [norms["eoc"], norms["media"]] if isinstance(norms, dict) else norms
