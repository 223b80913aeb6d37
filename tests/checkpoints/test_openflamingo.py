"""OpenFlamingo's checkpoints in all their forms, and what is refused."""

import os
import pickle
import warnings

import pytest
import torch

from flamboyance.checkpoints import openflamingo
from tests.checkpoints.golden import golden

CASES = ("mpt1b-every2-text_first", "gpt_neox-every2-text_first", "opt-every1-batch", "gptj-every1-batch")


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    return golden(request.param, tmp_path_factory.mktemp("golden"))


@pytest.fixture(scope="module")
def mpt(tmp_path_factory):
    return golden(CASES[0], tmp_path_factory.mktemp("mpt"))


@pytest.fixture(scope="module")
def neox(tmp_path_factory):
    return golden(CASES[1], tmp_path_factory.mktemp("neox"))


def aliased(case, keep):
    """The state dict with v1's second names for the blocks, beside the first or instead of them."""
    aliases = {
        f"lang_encoder.gated_cross_attn_layers.{m['index']}.{m['rest']}": tensor
        for key, tensor in case.state.items()
        if (m := openflamingo.BLOCK.match(key))
    }
    own = {key: t for key, t in case.state.items() if keep or "gated_cross_attn_layer" not in key}
    return {**aliases, **own}


def with_strays(case):
    """What parallel training leaves in a file: frozen layers under two names, buffers, the tower."""
    layers = case.layers()
    return case.state | {
        f"{layers}.0.decoder_layer.attn.Wqkv.weight": torch.zeros(4, 4),
        f"{layers}.1.decoder_layer.attention.rotary_emb.inv_freq": torch.zeros(8),
        f"{layers}.1.attention.bias": torch.zeros(1, 1, 8, 8),
        f"{layers}.1.attn.masked_bias": torch.tensor(-1e9),
        "lang_encoder.old_decoder_blocks.0.attn.Wqkv.weight": torch.zeros(4, 4),
        "vision_encoder.class_embedding": torch.zeros(32),
    }


FORMS = {
    "flat": lambda case: case.state,
    "trainer": lambda case: {
        "epoch": 3,
        "model_state_dict": {f"module.{key}": t for key, t in case.state.items()},
        "optimizer_state_dict": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 1e-4}]},
        "lr_scheduler_state_dict": {"last_epoch": 7, "lr_lambdas": [{}]},
    },
    "module.": lambda case: {f"module.{key}": t for key, t in case.state.items()},
    "checkpointed": lambda case: {
        key.replace("layer.", "layer._checkpoint_wrapped_module.", 1): t for key, t in case.state.items()
    },
    "v1, both names": lambda case: aliased(case, keep=True),
    "v1, aliases alone": lambda case: aliased(case, keep=False),
    "strays": with_strays,
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_model(case, form, tmp_path):
    file = case.save(tmp_path / "checkpoint.pt", FORMS[form](case))
    model = case.model(load=False)
    before = case.logits(model)
    openflamingo.load(model, openflamingo.read(file))
    torch.testing.assert_close(case.logits(model), case.logits(case.model()), rtol=0, atol=0)
    assert not torch.equal(case.logits(model), before)
    # The drop-in takes what torch.load gives, as it is.
    model.load_state_dict(torch.load(file), strict=False)


def test_round_trip(case):
    model = case.model()
    exported = openflamingo.export(model)
    assert exported.keys() <= case.state.keys()  # less a tied head, which is its table
    assert case.state.keys() - exported.keys() <= {"lang_encoder.lm_head.weight"}
    for key, tensor in exported.items():
        assert torch.equal(tensor, case.state[key]), key
    again = openflamingo.translate(model, openflamingo.parse(exported))
    assert again.keys() == model.trained_parameters().keys()
    assert all(torch.equal(t, model.trained_parameters()[key]) for key, t in again.items())


def test_a_head_under_its_new_name(neox):
    state = dict(neox.state)
    state["lang_encoder.lm_head.weight"] = state.pop("lang_encoder.embed_out.weight")
    model = neox.model(load=False)
    model.load_state_dict(state)
    assert torch.equal(neox.logits(model), neox.logits(neox.model()))


def test_frozen_embeddings_have_to_be_said(mpt):
    state = {key: t for key, t in mpt.state.items() if not key.endswith("wte.weight")}
    with pytest.raises(ValueError, match=r"lang_encoder\.transformer\.wte\.weight.*freeze_lm_embeddings=True"):
        mpt.model(load=False).load_state_dict(state)
    frozen = mpt.model(load=False, freeze_lm_embeddings=True)
    rows = frozen.added_tokens.embedding.clone()
    with pytest.warns(UserWarning, match=r"lang_encoder\.transformer\.wte\.weight.*added tokens"):
        frozen.load_state_dict(state)
    assert torch.equal(frozen.added_tokens.embedding, rows)


# Refused ------------------------------------------------------------------------------------------------------------


def test_another_interval(mpt):
    with pytest.raises(ValueError, match=r"cross_attn_every_n_layers.* 2.* 1\b.*2 blocks"):
        mpt.model(cross_attn_every_n_layers=1)


def test_another_width(mpt):
    wide = {key: torch.zeros(*t.shape[:-1], t.shape[-1] * 2) for key, t in mpt.state.items()}
    wide["perceiver.latents"] = mpt.state["perceiver.latents"]
    with pytest.raises(ValueError, match=r"language model.* 128.* 64"):
        mpt.model(load=False).load_state_dict(wide)


def test_another_family(mpt, neox):
    with pytest.raises(ValueError, match=r"lang_encoder\.gpt_neox\.layers.*transformer\."):
        mpt.model(load=False).load_state_dict(neox.state)


def test_another_language_model_of_the_same_shape(mpt):
    table = "lang_encoder.transformer.wte.weight"
    other = mpt.state | {table: mpt.state[table].roll(1, 0)}
    model = mpt.model()
    before = mpt.logits(model)
    with pytest.raises(ValueError, match=r"wte\.weight.*another.*cosine"):
        model.load_state_dict({**other, "perceiver.latents": other["perceiver.latents"] + 1})
    assert torch.equal(mpt.logits(model), before)  # nothing of it was taken


def test_a_table_that_was_trained_along_is_used_and_told(mpt):
    table = "lang_encoder.transformer.wte.weight"
    moved = mpt.state[table] + 0.001
    model = mpt.model(load=False)
    with pytest.warns(UserWarning, match=r"wte\.weight.*include_backbones=True"):
        model.load_state_dict(mpt.state | {table: moved})
    assert torch.equal(model.language_model.get_input_embeddings().weight[:320], moved[:320])
    assert torch.equal(model.added_tokens.embedding, moved[320:])


def test_closed_gates_are_told(mpt):
    shut = {key: torch.zeros_like(t) if key.endswith("_gate") else t for key, t in mpt.state.items()}
    with pytest.warns(UserWarning, match="4 gates.*zero"):
        mpt.model(load=False).load_state_dict(shut)
    one = next(key for key in shut if key.endswith("attn_gate"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mpt.model(load=False).load_state_dict(shut | {one: torch.ones(1)})


class Malicious:
    """Unpickled the unsafe way, it makes a directory."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return (os.mkdir, (str(self.file),))


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_code_in_a_checkpoint_does_not_run(mpt, tmp_path, legacy):
    trap, file = tmp_path / "trap", tmp_path / "checkpoint.pt"
    torch.save(mpt.state | {"evil": Malicious(trap)}, file, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match=r"posix\.mkdir") as refused:
        openflamingo.read(file)
    assert "weights_only" not in str(refused.value)  # no advice to run it
    assert not trap.exists()
    torch.load(file, weights_only=False)
    assert trap.exists()  # it would have


def test_a_bare_pickle_does_not_run(tmp_path):
    trap, file = tmp_path / "trap", tmp_path / "checkpoint.pt"
    file.write_bytes(pickle.dumps({"perceiver.latents": Malicious(trap)}))
    with pytest.raises(ValueError, match="not opened"):
        openflamingo.read(file)
    assert not trap.exists()


def test_files_of_before_the_zip_format_are_read(mpt, tmp_path):
    file = tmp_path / "old.pt"
    torch.save(mpt.state, file, _use_new_zipfile_serialization=False)
    assert openflamingo.read(file).tensors.keys() == mpt.state.keys()


def broken(mpt, kind, file):
    whole = mpt.save(file).read_bytes()
    if kind == "truncated":
        file.write_bytes(whole[: len(whole) // 2])
    elif kind == "text":
        file.write_bytes(b"<!DOCTYPE html><title>404</title>")
    elif kind == "pointer":
        file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    elif kind == "empty":
        file.write_bytes(b"")
    elif kind == "list":
        torch.save([torch.zeros(1)], file)
    elif kind == "other":
        torch.save({"model.weight": torch.zeros(1), "epoch": 1}, file)
    elif kind == "number":
        torch.save(mpt.state | {"perceiver.latents": 3}, file)


@pytest.mark.parametrize(
    "kind, said",
    [
        ("truncated", "complete"),
        ("text", "damaged"),
        ("pointer", "Git LFS"),
        ("empty", "empty"),
        ("list", "list"),
        ("other", r"perceiver\.latents.*model\.weight, epoch"),
        ("number", r"perceiver\.latents.*int.*tensor"),
    ],
)
def test_broken_files(mpt, tmp_path, kind, said):
    file = tmp_path / "checkpoint.pt"
    broken(mpt, kind, file)
    with pytest.raises(ValueError, match=said):
        openflamingo.read(file)


def test_no_file(tmp_path):
    with pytest.raises(ValueError, match=r"gone\.pt"):
        openflamingo.read(tmp_path / "gone.pt")
    with pytest.raises(ValueError, match="directory"):
        openflamingo.read(tmp_path)
