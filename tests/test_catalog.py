"""What a model's name means, and how quickly a name that means nothing is reported."""

import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from flamboyance import FlamingoForConditionalGeneration, FlamingoProcessor, catalog, load_mini, names
from flamboyance.cli import main
from flamboyance.recipes import finetune
from tests.tiny import save_tiny_flamingo


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_tiny_flamingo(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize("name", ["mini", "flamingo-mini"])
def test_the_embedded_model_opens_by_name_everywhere(name):
    own, processor = load_mini()
    entry = catalog.resolve(name)
    assert entry.kind == "embedded" and entry.embedded and entry.is_flamingo() and entry.name == "mini"
    opened, opened_processor = entry.open()
    direct = FlamingoForConditionalGeneration.from_pretrained(name)
    direct_processor = FlamingoProcessor.from_pretrained(name)
    for model in (opened, direct):
        assert all(torch.equal(own.state_dict()[key], value) for key, value in model.state_dict().items())
    for other in (opened_processor, direct_processor):
        assert other.image_processor == processor.image_processor
        assert other.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    assert entry.config().to_dict() == finetune.outline(name).to_dict()
    assert entry.config().text_config.to_dict() == own.config.text_config.to_dict()


def test_released_names_with_and_without_organisation():
    for short in names.RELEASED:
        for name in (short, f"openflamingo/{short}"):
            entry = catalog.resolve(name)
            assert (entry.kind, entry.name) == ("released", f"openflamingo/{short}") and entry.is_flamingo()
    config = entry.config()
    assert config.text_config.hidden_size == 4096 and config.cross_attn_every_n_layers == 4
    spec, images = entry.tower()
    assert spec["name"] == "openai/clip-vit-large-patch14" and images.image_size == (224, 224)


def test_a_directory_comes_first_and_opens(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "openflamingo").mkdir()
    name = "openflamingo/OpenFlamingo-3B-vitl-mpt1b"
    Path(name).symlink_to(tiny)
    assert catalog.resolve(name).kind == "directory"
    assert catalog.resolve(tiny).config().text_config.hidden_size == 32
    model, processor = catalog.resolve(name).open()
    assert model.config.text_config.hidden_size == 32 and model.tokenizer is not None
    assert processor.image_token_id == model.config.image_token_id
    spec, _ = catalog.resolve(str(tiny)).tower()
    assert Path(spec["name"]) == tiny / "vision"


def test_a_model_directory_called_mini_is_not_passed_over_silently(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mini").mkdir()  # a run's directory, say: no model
    assert catalog.resolve("mini").kind == "embedded"
    Path("mini").rmdir()
    Path("mini").symlink_to(tiny)
    with pytest.warns(UserWarning, match="'mini'.*directory"):
        assert catalog.resolve("mini").kind == "directory"
    with pytest.warns(UserWarning, match="'mini'.*directory"):
        assert FlamingoForConditionalGeneration.from_pretrained("mini").config.text_config.hidden_size == 32
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_mini()
        assert catalog.resolve("./mini").kind == "directory"


def test_another_kind_of_model_is_no_flamingo(tiny):
    assert catalog.resolve(tiny).is_flamingo()
    assert not catalog.resolve(tiny / "language").is_flamingo()


@pytest.mark.parametrize(
    "name, meant",
    [
        ("minii", "'mini'"),
        ("Mini", "'mini'"),
        ("flamingo_mini", "'flamingo-mini'"),
        ("OpenFlamingo-3B-vitl-mpt1", "'openflamingo/OpenFlamingo-3B-vitl-mpt1b'"),
        ("openflamingo/openflamingo-9b-vitl-mpt7b", "'openflamingo/OpenFlamingo-9B-vitl-mpt7b'"),
        ("OpenFlamingo/OpenFlamingo-4B-vitl-rpj3b", "'openflamingo/OpenFlamingo-4B-vitl-rpj3b'"),
        ("someone/OpenFlamingo-4B-vitl-rpj3b-langinstuct", "'openflamingo/OpenFlamingo-4B-vitl-rpj3b-langinstruct'"),
    ],
)
def test_a_typo_says_what_was_meant(name, meant):
    for ask in (
        lambda: catalog.resolve(name).open(),
        lambda: catalog.resolve(name).config(),
        lambda: catalog.resolve(name).is_flamingo(),
        lambda: FlamingoForConditionalGeneration.from_pretrained(name),
        lambda: FlamingoProcessor.from_pretrained(name),
    ):
        with pytest.raises(OSError, match=f"'{name}'.*{meant}"):
            ask()


@pytest.mark.parametrize(
    "name", ["", " ", "./none", "/none", "~/none", "a/b/c", "a b", "none/", "name\n", "ünï", "\ud83d"]
)
def test_what_can_be_no_name_is_refused_at_once(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError, match=r"no such directory|name is empty"):
        catalog.resolve(name)


def test_a_file_is_not_a_model(tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes(b"x")
    with pytest.raises(OSError, match="flamboyance convert"):
        catalog.resolve(tmp_path / "checkpoint.pt")


def test_the_commands_open_models_by_the_catalog(capsys):
    assert main(["info", "OpenFlamingo-3B-vitl-mpt1"]) == 2
    assert "openflamingo/OpenFlamingo-3B-vitl-mpt1b" in capsys.readouterr().err
    assert main(["info", "flamingo-mini"]) == 0
    assert main(["rices", "none", "--model", "minii"]) == 2


NO_NETWORK = """
import sys, time
import flamboyance as fl
from flamboyance import catalog, hub
hub.KEPT[False] = 0  # each question asks again
for ask in (
    lambda name: catalog.resolve(name).open(),
    lambda name: catalog.resolve(name).is_flamingo(),
    fl.FlamingoForConditionalGeneration.from_pretrained,
    fl.FlamingoProcessor.from_pretrained,
):
    for name in ("nobody/nothing", "openflamingo/OpenFlamingo-3B-vitl-mpt1b"):
        began = time.monotonic()
        try:
            ask(name)
        except OSError as error:
            print(f"{time.monotonic() - began:.1f} {name} {' '.join(str(error).split())}")
        else:
            print("0.0", name, "true")
"""


def test_an_unknown_name_without_a_network_is_reported_at_once():
    # Nothing listens on this port of this machine: as without a network, each request fails.
    environment = {key: value for key, value in os.environ.items() if key not in ("HF_HUB_OFFLINE", "HF_ENDPOINT")}
    environment |= {"HF_ENDPOINT": "http://127.0.0.1:9", "NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", NO_NETWORK], env=environment, capture_output=True, text=True, timeout=600, check=True
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 8 and all(float(line.split()[0]) < 20 for line in lines), lines  # a retried one takes 23 s
    unknown = [line for line in lines if "nobody/nothing" in line]
    assert len(unknown) == 4 and all("not within reach" in line for line in unknown), lines
    assert "Retrying" not in done.stderr


def test_code_beside_a_language_model_is_not_asked_about(tiny, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("builtins.input", lambda *question: asked.append(question) or "n")
    shutil.copytree(tiny, tmp_path / "model")
    config = tmp_path / "model" / "language" / "config.json"
    config.write_text(
        json.dumps({"model_type": "theirs", "auto_map": {"AutoConfig": "a.C", "AutoModelForCausalLM": "a.M"}}),
        encoding="utf-8",
    )
    with pytest.raises(ValueError, match="custom code"):
        catalog.resolve(tmp_path / "model").open()
    assert not asked


@pytest.mark.parametrize(
    "file, content",
    [
        ("tokenizer_config.json", b"[" * 100_000),
        ("tokenizer_config.json", b"[]"),
        ("processor_config.json", b"[]"),
        ("generation_config.json", b"[]"),
        ("language/generation_config.json", b"[]"),
        ("preprocessor_config.json", b"[" * 100_000),
        ("vision/config.json", b'{"model_type": "clip_vision_model", "hidden_size": 64}'),
        ("vision/config.json", b'{"model_type": "clip_vision_model", "patch_size": "x"}'),
    ],
)
def test_damaged_files_of_a_directory_are_one_line(tiny, tmp_path, file, content):
    shutil.copytree(tiny, tmp_path / "model")
    (tmp_path / "model" / file).write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "model"))):
        catalog.resolve(tmp_path / "model").open()


def test_an_empty_name_is_no_model_whoever_opens_it(tiny, monkeypatch):
    monkeypatch.chdir(tiny)
    for opened in (FlamingoForConditionalGeneration, FlamingoProcessor):
        with pytest.raises(ValueError, match="name is empty"):
            opened.from_pretrained("")
