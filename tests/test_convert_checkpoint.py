"""`convert`: OpenFlamingo's checkpoint -> a directory that opens again."""

import shutil
import warnings

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from flamboyance import FlamingoForConditionalGeneration, FlamingoProcessor, names
from flamboyance.checkpoints import released
from flamboyance.convert_checkpoint import convert_file
from tests.checkpoints.golden import golden


@pytest.fixture(scope="module", params=["mpt1b-every2-text_first", "gpt_neox-every2-text_first"])
def case(request, tmp_path_factory):
    case = golden(request.param, tmp_path_factory.mktemp("golden"))
    case.save(case.directory / "checkpoint.pt")
    return case


@pytest.fixture
def known(case, monkeypatch):
    """The case's model as one of the released, under two names, and a third of another interval."""
    config = case.model(load=False).config
    monkeypatch.setattr(released, "BASE_VOCABULARY", config.base_vocab_size)
    monkeypatch.setattr(released, "VISION_WIDTH", config.vision_width)
    monkeypatch.setattr(released, "TOWER", dict(config.vision, name="nobody/no-tower"))
    monkeypatch.setattr(released, "tower_config", lambda: config.vision["config"])
    monkeypatch.setitem(released.ARCHITECTURES, "tiny", lambda: config.text_config)
    table = {
        "tiny": names.Release("nobody/no-language-model", 2, "tiny"),
        "tiny-every4": names.Release("nobody/no-language-model", 4, "tiny"),
    }
    monkeypatch.setattr(names, "RELEASED", table)
    return table


def test_with_backbones(case, tmp_path):
    target = convert_file(case.directory / "checkpoint.pt", tmp_path / "new" / "model", **case.backbones)
    assert not list(target.glob("**/pytorch_model*")) and (target / "model.safetensors").is_file()
    model = FlamingoForConditionalGeneration.from_pretrained(target)
    assert torch.equal(case.logits(model), case.logits(case.model()))
    processor = FlamingoProcessor.from_pretrained(target)
    assert processor.image_token_id == model.config.image_token_id
    assert processor.image_processor.image_size == (32, 32)
    assert model.tokenizer is not None


def test_trained_weights_keep_their_precision(case, tmp_path):
    """Whatever the language model's files have."""
    language = tmp_path / "language"
    shutil.copytree(case.backbones["language"], language)
    AutoModelForCausalLM.from_pretrained(language, dtype=torch.bfloat16).save_pretrained(language)
    given = case.backbones | {"language": str(language)}
    target = convert_file(case.directory / "checkpoint.pt", tmp_path / "model", **given)
    exact = convert_file(case.directory / "checkpoint.pt", tmp_path / "exact", **case.backbones)
    found, wanted = (load_file(one / "model.safetensors") for one in (target, exact))
    own = [name for name in wanted if name.startswith(("resampler.", "cross_attention."))]
    assert own and all(torch.equal(found[name], wanted[name]) for name in own)
    assert {found[name].dtype for name in own} == {torch.float32}


@pytest.mark.parametrize("named", [None, "tiny", "openflamingo/tiny"])
def test_a_released_model_needs_no_weights_of_its_backbones(case, known, tmp_path, named):
    with pytest.warns(UserWarning, match=r"tokenizer of nobody/no-language-model"):
        target = convert_file(case.directory / "checkpoint.pt", tmp_path, named, local_files_only=True)
    assert sorted(file.name for file in target.iterdir()) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    with pytest.raises(OSError, match=r"nobody/no-language-model.*language=DIRECTORY"):
        FlamingoForConditionalGeneration.from_pretrained(target, local_files_only=True)
    where = {part: case.backbones[part] for part in ("language", "vision")}
    model = FlamingoForConditionalGeneration.from_pretrained(target, **where)
    assert torch.equal(case.logits(model), case.logits(case.model()))


def test_a_released_model_with_local_backbones(case, known, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        target = convert_file(case.directory / "checkpoint.pt", tmp_path, "tiny", **case.backbones)
    model = FlamingoForConditionalGeneration.from_pretrained(target)
    assert torch.equal(case.logits(model), case.logits(case.model()))
    assert FlamingoProcessor.from_pretrained(target).image_token_id == model.config.image_token_id


def test_a_released_model_opens_from_local_files(case, known):
    model = FlamingoForConditionalGeneration.from_pretrained(
        "openflamingo/tiny", checkpoint=case.directory / "checkpoint.pt", local_files_only=True, **case.backbones
    )
    assert torch.equal(case.logits(model), case.logits(case.model()))


def test_which_of_several_has_to_be_said(case, known, tmp_path):
    known["tiny-instruct"] = known["tiny"]
    with pytest.raises(ValueError, match=r"model='tiny' or 'tiny-instruct'"):
        convert_file(case.directory / "checkpoint.pt", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_another_model(case, known, tmp_path):
    with pytest.raises(ValueError, match=r"cross_attn_every_n_layers.* 2.* 4\b.* tiny\b"):
        convert_file(case.directory / "checkpoint.pt", tmp_path / "out", "tiny-every4")
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_none_of_the_released(case, tmp_path):
    with pytest.raises(ValueError, match=r"released.* 2 blocks.*backbones"):
        convert_file(case.directory / "checkpoint.pt", tmp_path / "out")
    with pytest.raises(ValueError, match=r"'tiny' is no released OpenFlamingo model.*OpenFlam"):
        convert_file(case.directory / "checkpoint.pt", tmp_path / "out", "tiny")


def test_a_file_in_the_way(case, tmp_path):
    (tmp_path / "out").write_text("mine", encoding="utf-8")
    with pytest.raises(ValueError, match="out is a file"):
        convert_file(case.directory / "checkpoint.pt", tmp_path / "out", **case.backbones)
    assert (tmp_path / "out").read_text(encoding="utf-8") == "mine"


def test_frozen_embeddings(tmp_path):
    case = golden("mpt1b-every2-text_first", tmp_path)
    state = {key: t for key, t in case.state.items() if not key.endswith("wte.weight")}
    file = case.save(tmp_path / "checkpoint.pt", state)
    with pytest.raises(ValueError, match="freeze_lm_embeddings=True"):
        convert_file(file, tmp_path / "out", **case.backbones)
    with pytest.warns(UserWarning, match="mean"):
        convert_file(file, tmp_path / "out", freeze_lm_embeddings=True, **case.backbones)
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_closed_gates_are_told(case, known, tmp_path):
    shut = {key: torch.zeros_like(t) if key.endswith("_gate") else t for key, t in case.state.items()}
    with pytest.warns(UserWarning, match="4 gates.*zero"):
        convert_file(case.save(tmp_path / "c.pt", shut), tmp_path / "out", "tiny", **case.backbones)
