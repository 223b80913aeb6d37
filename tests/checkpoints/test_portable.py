"""A saved directory is complete and opens wherever it is copied to; the same is what goes to the hub."""

import json
import os
import shutil
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from transformers import CLIPVisionConfig, CLIPVisionModel

import flamboyance as fl
from flamboyance import FlamingoForConditionalGeneration, FlamingoProcessor, flamingo
from flamboyance.checkpoints import card
from tests.checkpoints.test_adapters import logits, on_tower, train_a_little
from tests.processes import python
from tests.tiny import save_tiny_flamingo

open_model = FlamingoForConditionalGeneration.from_pretrained
COMPLETE = {
    "README.md", "config.json", "generation_config.json", "model.safetensors", "preprocessor_config.json",
    "tokenizer.json", "tokenizer_config.json", "language", "vision",
}  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_tiny_flamingo(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def mini():
    """The embedded model, a little different from the one in the package."""
    model, _ = fl.load_mini()
    with torch.no_grad():
        model.resampler.latents.mul_(1.1)
    return model


def front_matter(directory):
    return yaml.safe_load((directory / "README.md").read_text(encoding="utf-8").split("---")[1])


def names_a_path(directory: Path, *paths: Path) -> list[str]:
    texts = [file for file in directory.rglob("*") if file.suffix in (".json", ".md", ".jinja")]
    return [str(file) for file in texts for path in paths if str(path) in file.read_text(encoding="utf-8")]


def test_a_fine_tune_of_the_embedded_model_opens_elsewhere(mini, tmp_path):
    mini.save_pretrained(tmp_path / "saved")
    assert {file.name for file in (tmp_path / "saved").iterdir()} >= COMPLETE
    package = Path(fl.__file__).parent
    assert names_a_path(tmp_path / "saved", tmp_path, package) == []
    shutil.move(tmp_path / "saved", tmp_path / "moved")
    code = """
import os, sys
os.chdir(sys.argv[2])
import torch
import flamboyance as fl
from PIL import Image
model = fl.FlamingoForConditionalGeneration.from_pretrained(sys.argv[1])
processor = fl.FlamingoProcessor.from_pretrained(sys.argv[1])
inputs = processor(text=["<image>Output:"], images=[[Image.new("RGB", (64, 64), (200, 30, 40))]])
with torch.no_grad():
    print(model(**inputs).logits.double().sum().item())
"""
    printed = python(code, tmp_path / "moved", tmp_path, log=tmp_path / "log")
    from PIL import Image

    inputs = mini.processor(text=["<image>Output:"], images=[[Image.new("RGB", (64, 64), (200, 30, 40))]])
    with torch.no_grad():
        wanted = mini(**inputs).logits.double().sum().item()
    assert float(printed.splitlines()[-1]) == pytest.approx(wanted, rel=1e-5)
    assert front_matter(tmp_path / "moved")["license"] == "apache-2.0"


def test_no_file_of_the_package_names_a_path():
    package = Path(fl.__file__).parent / "weights"
    for file in package.rglob("config.json"):
        assert "/" not in json.loads(file.read_text(encoding="utf-8")).get("_name_or_path", "")
        assert '"/' not in file.read_text(encoding="utf-8"), file


def test_a_new_model_around_local_backbones(tiny, tmp_path):
    backbones = tiny.parent / "backbones"
    model = FlamingoForConditionalGeneration.from_backbones(
        backbones / "vision", backbones / "language", FlamingoProcessor.from_pretrained(tiny)
    )
    model.save_pretrained(tmp_path / "saved")
    assert names_a_path(tmp_path / "saved", tiny.parent, tmp_path) == []
    shutil.move(tmp_path / "saved", tmp_path / "moved")
    with pytest.warns(UserWarning, match="gates"):
        assert torch.equal(logits(open_model(tmp_path / "moved")), logits(model))
    assert FlamingoProcessor.from_pretrained(tmp_path / "moved").image_token_id == model.config.image_token_id


def test_backbones_without_a_name_are_written(tiny, tmp_path):
    named = open_model(tiny)
    config = type(named.config).from_dict(named.config.to_dict())
    config.language, config.vision = None, dict(config.vision, name=None)
    model = FlamingoForConditionalGeneration(config)
    for block in model.blocks:
        torch.nn.init.constant_(block.attention_gate, 1.0)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(open_model(tmp_path)), logits(model))


def test_every_file_has_the_umasks_mode(tiny, tmp_path):
    before = os.umask(0o022)
    try:
        open_model(tiny).save_pretrained(tmp_path / "model")
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "model").rglob("*") if path.is_file()]
    assert {"model.safetensors", "config.json"} <= {path.name for path in files}
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o644}


def test_backbones_of_the_hub_are_named(tiny, tmp_path):
    model = open_model(tiny)
    model.config.language, model.config.vision = "facebook/opt-125m", dict(model.config.vision, name="openai/clip")
    model.save_pretrained(tmp_path)
    assert not (tmp_path / "language").exists() and not (tmp_path / "vision").exists()
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["language"] == "facebook/opt-125m"
    assert front_matter(tmp_path)["base_model"] == ["openai/clip", "facebook/opt-125m"]


def test_the_card_says_what_the_model_is(tiny, tmp_path):
    model = open_model(tiny)
    on_tower(model)
    train_a_little(model)
    model.save_pretrained(tmp_path)
    about, text = front_matter(tmp_path), (tmp_path / "README.md").read_text(encoding="utf-8")
    assert (about["library_name"], about["pipeline_tag"]) == ("flamboyance", "image-text-to-text")
    assert "license" not in about
    for said in ("opt", "512 tokens", "4 |", "LORA on vision", "from_pretrained"):
        assert said in text, said
    [code] = [block.split("```")[0] for block in text.split("```python\n")[1:]]
    compile(code, "card", "exec")


def test_a_card_by_hand_stays(tiny, tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\nmine", encoding="utf-8")
    model = open_model(tiny)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text(encoding="utf-8").endswith("mine")
    open_model(tmp_path).save_pretrained(tmp_path / "again")
    assert front_matter(tmp_path / "again")["license"] == "mit"
    model.save_pretrained(tmp_path / "again")  # one that was generated is written again
    assert "license" not in front_matter(tmp_path / "again")


class Hub:
    """What of huggingface_hub's HfApi is asked, on this disk."""

    def __init__(self, folder: Path):
        self.folder, self.asked = folder, []

    def __call__(self, token=None):
        self.asked.append(("token", token))
        return self

    def create_repo(self, repo_id, **options):
        self.asked.append(("create_repo", repo_id, options))
        return SimpleNamespace(repo_id=f"somebody/{repo_id}" if "/" not in repo_id else repo_id)

    def create_branch(self, repo_id, **options):
        self.asked.append(("create_branch", repo_id, options))

    def upload_folder(self, *, repo_id, folder_path, **options):
        self.asked.append(("upload_folder", repo_id, options))
        shutil.copytree(folder_path, self.folder / repo_id)
        return f"https://hub/{repo_id}/commit/1"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    made = Hub(tmp_path / "hub")
    monkeypatch.setattr(flamingo, "HfApi", made)
    return made


def test_push_to_hub_uploads_all_of_it(mini, hub, tmp_path):
    address = mini.push_to_hub("mine", private=True, commit_message="first", token="t", tags=["birds"], revision="v1")
    assert address == "https://hub/somebody/mine/commit/1"
    uploaded = hub.folder / "somebody" / "mine"
    assert {file.name for file in uploaded.iterdir()} >= COMPLETE
    assert names_a_path(uploaded, tmp_path, Path(fl.__file__).parent) == []
    about = front_matter(uploaded)
    assert {"flamingo", "birds"} <= set(about["tags"]) and about["license"] == "apache-2.0"
    again = open_model(uploaded)
    assert torch.equal(again.resampler.latents, mini.resampler.latents)
    assert ("create_repo", "mine", {"private": True, "exist_ok": True}) in hub.asked
    assert ("create_branch", "somebody/mine", {"branch": "v1", "exist_ok": True}) in hub.asked
    [(_, _, commit)] = [asked for asked in hub.asked if asked[0] == "upload_folder"]
    assert commit["commit_message"] == "first" and commit["revision"] == "v1" and commit["create_pr"] is False


def test_saving_can_push(tiny, hub, tmp_path):
    open_model(tiny).save_pretrained(tmp_path / "birds", push_to_hub=True, tags=["small"])
    assert (hub.folder / "somebody" / "birds" / "model.safetensors").is_file()
    assert "small" in front_matter(hub.folder / "somebody" / "birds")["tags"]
    with pytest.raises(TypeError, match="repo"):
        open_model(tiny).save_pretrained(tmp_path / "birds", repo_id="x")


def test_a_local_backbone_is_not_pushed_by_its_path(tiny, hub, tmp_path):
    with pytest.raises(ValueError, match="this machine"):
        open_model(tiny).push_to_hub("mine", include_backbones=False)
    with pytest.raises(ValueError, match="this machine"):
        open_model(tiny).save_pretrained(tmp_path / "new", push_to_hub=True, include_backbones=False)
    assert not hub.asked and not (tmp_path / "new").exists()


def test_another_tower_is_described_as_it_is(tiny, tmp_path):
    other = CLIPVisionModel(CLIPVisionConfig(**open_model(tiny).config.vision["config"] | {"image_size": 32}))
    other.save_pretrained(tmp_path / "other")
    model = open_model(tiny, vision=str(tmp_path / "other"))
    assert model.config.vision["config"]["image_size"] == 32
    model.save_pretrained(tmp_path / "saved", include_backbones=False)
    again = open_model(tmp_path / "saved")
    pixels = torch.randn(1, 3, 32, 32)
    assert torch.equal(again.vision(pixels), model.vision(pixels))


def test_the_last_line_of_a_configuration(tiny):
    config = open_model(tiny).config
    assert repr(config).count("\n") == 0 and len(repr(config)) < 400
    for said in ("opt", "width 32", "cross_attn_every_n_layers=1", "4 latents"):
        assert said in repr(config), said
    assert type(config).from_dict(json.loads(config.to_json_string())).vocab_size == config.vocab_size


def test_licenses_are_read_from_the_front_matter_alone(tmp_path):
    (tmp_path / "README.md").write_text("# x\n\nlicense: mit\n", encoding="utf-8")
    assert card._license(tmp_path) is None
    assert card._license(None) is None
