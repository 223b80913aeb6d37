"""`flamboyance rices`: features built ahead, found again by what the evaluation opens."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import flamboyance as fl
from flamboyance import catalog
from flamboyance.cli import main
from flamboyance.evaluation.rices.features import Encoder, build
from flamboyance.mini import load_mini
from tests.tiny import save_tiny_flamingo


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    """A CSV of 6 rows and 5 images."""
    rows = []
    for i in range(5):
        levels = np.random.default_rng(i).integers(0, 256, (8, 8, 3)).astype(np.uint8)
        Image.fromarray(levels).save(tmp_path / f"{i}.png")
        rows.append((f"{i}.png", f"kind {i % 2}"))
    rows.append(("0.png", "kind 0"))
    with (tmp_path / "birds.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("image", "label"), *rows])
    return tmp_path / "birds.csv"


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_what_is_built_ahead_is_what_an_evaluation_opens(birds, tmp_path, capsys, monkeypatch):
    model, processor = load_mini()
    spec = model.vision.spec
    opened = Encoder.open(spec["name"], spec["pretrained"], spec["library"], processor.image_processor)
    capsys.readouterr()
    assert run("rices", birds, "--features", tmp_path / "cache") == 0
    said = capsys.readouterr()
    assert "5 of 5 images" in said.out and str(tmp_path / "cache" / opened.folder) in said.out
    assert said.err == ""
    monkeypatch.setattr(opened.tower, "embed", lambda pixels: pytest.fail("it was built again"))
    images = sorted(tmp_path.glob("*.png"))
    assert len(set(build(images, opened, tmp_path / "cache").rows(images))) == 5


def test_another_model_and_another_tower(birds, tmp_path, capsys):
    model = save_tiny_flamingo(tmp_path / "tiny")
    assert run("rices", birds, "--model", model, "--features", tmp_path / "cache") == 0
    assert run("rices", birds, "--tower", model / "vision", "--features", tmp_path / "cache") == 0
    folders = {path.name for path in (tmp_path / "cache").iterdir()}
    assert len(folders) == 1  # the model's tower, prepared for alike: the same
    other = save_tiny_flamingo(tmp_path / "other", seed=1)
    assert run("rices", birds, "--tower", other / "vision", "--features", tmp_path / "cache") == 0
    assert len(list((tmp_path / "cache").iterdir())) == 2
    capsys.readouterr()


def test_another_tower_of_the_same_name_is_refused(birds, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def asked(seed):
        tower = save_tiny_flamingo(tmp_path / "tiny", seed) / "vision"
        encoder = Encoder.open(str(tower))
        return fl.evaluate(
            birds, last, output=tmp_path / "run", shots=(1,), seeds=(0,), demonstrations=("rices",), encoder=encoder
        )

    assert asked(0) == asked(0)
    with pytest.raises(ValueError, match="features: 'vision-"):
        asked(1)


def last(demonstrations, query):
    return demonstrations[-1].answer


def test_images_that_cannot_be_read_are_named(birds, tmp_path, capsys):
    (tmp_path / "2.png").write_bytes(b"cut")
    assert run("rices", birds, "--features", tmp_path / "cache") == 0
    said = capsys.readouterr()
    assert f"warning: {tmp_path / '2.png'}: " in said.err
    assert "1 image has no feature" in said.err
    assert said.out.startswith("features of 4 of 5 images")
    for i in range(5):
        (tmp_path / f"{i}.png").write_bytes(b"cut")
    assert run("rices", birds, "--features", tmp_path / "cache") == 1


def test_refusals(birds, tmp_path, capsys):
    for arguments, message in (
        (("nothing.csv",), "nothing.csv"),
        (("coco",), "--data"),
        ((birds, "--tower", tmp_path / "gone"), "gone"),
        ((birds, "--tower-pretrained", "openai"), "--tower-pretrained"),
        ((birds, "--device", "cuda"), "no CUDA device") if not torch.cuda.is_available() else ((), "TASK"),
    ):
        try:
            status = run("rices", *arguments, "--features", tmp_path / "cache")
        except SystemExit as end:
            status = end.code
        assert status == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()


def test_the_tower_of_a_released_model_needs_no_download():
    spec, processor = catalog.resolve("openflamingo/OpenFlamingo-3B-vitl-mpt1b").tower()
    assert (spec["library"], spec["name"]) == ("transformers", "openai/clip-vit-large-patch14")
    assert processor.image_size == (224, 224)
