"""save_pretrained and from_pretrained: what is written, what is refused, and that nothing is lost on the way."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

import flamboyance.checkpoints.directory
from flamboyance import FlamingoForConditionalGeneration
from tests.checkpoints.golden import Golden, golden

open_model = FlamingoForConditionalGeneration.from_pretrained


@pytest.fixture(scope="module", params=["mpt1b-every2-text_first", "gpt_neox-every2-text_first"])
def case(request, tmp_path_factory):
    return golden(request.param, tmp_path_factory.mktemp("golden"))


@pytest.fixture(scope="module")
def model(case):
    return case.model()


@pytest.fixture
def saved(model, tmp_path):
    model.save_pretrained(tmp_path / "saved", include_backbones=False)
    return tmp_path / "saved"


def test_what_trained_is_saved_and_nothing_else(case, model, saved):
    tensors = load_file(saved / "model.safetensors")
    assert tensors.keys() == model.trained_parameters().keys()
    assert {name.split(".")[0] for name in tensors} == {"resampler", "cross_attention", "added_tokens"}
    processor = {"tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"}
    processor |= {"processor_config.json", "chat_template.jinja"}
    assert {file.name for file in saved.iterdir()} - processor == {
        "README.md", "config.json", "generation_config.json", "model.safetensors",
    }  # fmt: skip
    again = open_model(saved)
    assert torch.equal(case.logits(again), case.logits(model))
    assert all(torch.equal(p, again.trained_parameters()[name]) for name, p in model.trained_parameters().items())


def test_the_frozen_language_model_is_its_own(case, model, saved):
    from transformers import AutoModelForCausalLM

    own = AutoModelForCausalLM.from_pretrained(case.directory / "language")
    opened = open_model(saved).language_model
    assert opened.state_dict().keys() == own.state_dict().keys()
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(opened(ids).logits, own(ids).logits)


def test_with_backbones_it_stands_alone(case, model, tmp_path):
    model.save_pretrained(tmp_path / "whole", include_backbones=True)
    shutil.move(tmp_path / "whole", tmp_path / "elsewhere")
    config = json.loads((tmp_path / "elsewhere" / "config.json").read_text(encoding="utf-8"))
    assert (config["language"], config["vision"]["name"]) == ("./language", "./vision")
    again = open_model(tmp_path / "elsewhere")
    assert torch.equal(case.logits(again), case.logits(model))
    # Saved elsewhere without them, it names them where they are; saved in place, they stay within.
    again.save_pretrained(tmp_path / "light", include_backbones=False)
    assert not (tmp_path / "light" / "language").exists()
    assert torch.equal(case.logits(open_model(tmp_path / "light")), case.logits(model))
    again.save_pretrained(tmp_path / "elsewhere")
    shutil.move(tmp_path / "elsewhere", tmp_path / "third")
    assert torch.equal(case.logits(open_model(tmp_path / "third")), case.logits(model))


def test_relative_names_of_backbones_hold_from_elsewhere(case, tmp_path, monkeypatch):
    for part in ("vision", "language", "tokenizer"):
        shutil.copytree(case.directory / part, tmp_path / part)
    monkeypatch.chdir(tmp_path)
    Golden(case.case, Path("."), case.state).model().save_pretrained("saved")
    monkeypatch.chdir(tmp_path.parent)
    open_model(tmp_path / "saved")


@pytest.mark.parametrize("fails_at", ["weights", "config"])
def test_a_save_that_dies_leaves_the_old_one(case, model, saved, monkeypatch, fails_at):
    def disk_full(tensors, file, **_):
        with open(file, "wb") as part:
            part.write(b"half of a file")
        raise OSError(28, "No space left on device")

    before = {file.name: file.read_bytes() for file in saved.iterdir()}
    if fails_at == "weights":
        monkeypatch.setattr(flamboyance.checkpoints.directory, "save_file", disk_full)
    else:
        monkeypatch.setattr(type(model.config), "to_json_string", lambda *_, **__: disk_full({}, "/dev/null"))
    with pytest.raises(OSError, match="No space left"):
        model.save_pretrained(saved, include_backbones=False)
    assert {file.name: file.read_bytes() for file in saved.iterdir()} == before
    monkeypatch.undo()
    assert torch.equal(case.logits(open_model(saved)), case.logits(model))


def test_a_save_that_is_killed_leaves_the_old_one(case, model, saved, monkeypatch):
    class Killed(BaseException):
        pass

    def killed(*_):
        raise Killed

    monkeypatch.setattr(flamboyance.checkpoints.directory.os, "replace", killed)
    monkeypatch.setattr(flamboyance.checkpoints.directory.os, "unlink", lambda *_: None)  # nor is anything cleaned up
    with pytest.raises(Killed):
        model.save_pretrained(saved, include_backbones=False)
    monkeypatch.undo()
    assert torch.equal(case.logits(open_model(saved)), case.logits(model))


def test_backbones_are_put_in_place_whole(case, model, tmp_path, monkeypatch):
    model.save_pretrained(tmp_path, include_backbones=True)

    def disk_full(directory, **_):
        (Path(directory) / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model.language_model, "save_pretrained", disk_full)
    with pytest.raises(OSError, match="No space left"):
        model.save_pretrained(tmp_path, include_backbones=True)
    assert torch.equal(case.logits(open_model(tmp_path)), case.logits(model))


CHANGES = {
    "renamed": (lambda t: {("resampler.lat" if k == "resampler.latents" else k): v for k, v in t.items()}, "lacks"),
    "missing": (lambda t: {k: v for k, v in t.items() if k != "resampler.latents"}, "lacks"),
    "shape": (lambda t: t | {"resampler.latents": torch.zeros(3, 32)}, r"\(3, 32\).*\(64"),
    "unknown": (lambda t: t | {"resampler.latents2": torch.zeros(1)}, "resampler.latents2"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_tensors_that_do_not_fit_are_refused_by_name(saved, change):
    alter, said = CHANGES[change]
    file = saved / "model.safetensors"
    save_file(alter(load_file(file)), file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=said) as refused:
        open_model(saved)
    assert "resampler.latents" in str(refused.value) and str(file) in str(refused.value)


def test_closed_gates_are_told(saved):
    file = saved / "model.safetensors"
    shut = {k: v * 0 if k.endswith("_gate") else v for k, v in load_file(file).items()}
    save_file(shut, file, metadata={"format": "pt"})
    with pytest.warns(UserWarning, match="4 gates.*zero"):
        open_model(saved)


def test_auto_class(case, model, saved):
    again = AutoModelForImageTextToText.from_pretrained(saved)
    assert type(again) is FlamingoForConditionalGeneration
    assert torch.equal(case.logits(again), case.logits(model))
    half = AutoModelForImageTextToText.from_pretrained(saved, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    eager = AutoModelForImageTextToText.from_pretrained(saved, attn_implementation="eager")
    assert eager.language_model.config._attn_implementation == "eager"


def test_precision(case, model, saved, tmp_path):
    half = open_model(saved, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    close = torch.nn.functional.cosine_similarity(case.logits(half).flatten(), case.logits(model).flatten(), dim=0)
    assert close > 0.99
    assert {p.dtype for p in open_model(saved, dtype="auto").parameters()} == {torch.float32}
    # "auto" is the precision that the language model is stored in.
    half.save_pretrained(tmp_path / "half", include_backbones=True)
    assert load_file(tmp_path / "half" / "model.safetensors")["resampler.latents"].dtype == torch.bfloat16
    assert {p.dtype for p in open_model(tmp_path / "half", dtype="auto").parameters()} == {torch.bfloat16}
    assert {p.dtype for p in open_model(tmp_path / "half", dtype="float32").parameters()} == {torch.float32}


def test_a_deep_copy_is_independent(case, model):
    before = case.logits(model)
    twin = copy.deepcopy(model)
    assert torch.equal(case.logits(twin), before)
    with torch.no_grad():
        for p in model.cross_attention.parameters():
            p.mul_(0)
    try:
        assert torch.equal(case.logits(twin), before)  # its hooks call its own blocks
        assert not torch.equal(case.logits(model), before)
    finally:
        model.load_state_dict(case.state)
    with torch.no_grad():
        twin.added_tokens.embedding.mul_(0)
    assert torch.equal(case.logits(model), before)
