"""`train contrastive`: from pairs in tars to a tower that `train new` opens."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedTokenizerFast,
)

from flamboyance.checkpoints.save_backbones import save_timm
from flamboyance.cli import main
from flamboyance.data.formats.user_data import UserData
from flamboyance.data.pairs import PairProcessor
from flamboyance.images import ImageProcessor
from flamboyance.model.vision import VisionTower
from flamboyance.recipes.arguments import resolve
from flamboyance.recipes.contrastive import contrastive, validate
from flamboyance.recipes.new import new
from flamboyance.training.loop import train
from tests.tiny import IMAGE_SIZE, save_tiny_flamingo, tiny_tokenizer
from tests.training.tiny_run import write_shards


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tower, a text encoder, shards of pairs, and a folder of other pairs."""
    folder = tmp_path_factory.mktemp("contrastive")
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    vision = CLIPVisionConfig(num_attention_heads=2, image_size=IMAGE_SIZE, patch_size=8, **sizes)
    CLIPVisionModel(vision).save_pretrained(folder / "tower")
    ImageProcessor.clip(IMAGE_SIZE).save_pretrained(folder / "tower")
    tokenizer = tiny_tokenizer()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, unk_token="<unk>", eos_token="</s>", pad_token="</s>"
    ).save_pretrained(folder / "text")
    BertModel(BertConfig(vocab_size=len(tokenizer), num_attention_heads=2, **sizes)).save_pretrained(folder / "text")
    write_shards(folder)
    save_timm(timm.create_model("test_efficientnet"), folder / "normalised")
    return folder


def given(home: Path, output: Path, *more: str) -> list[str]:
    named = {one.partition("=")[0] for one in more}
    settings = [f"output={output}", f"vision={home / 'tower'}", f"text={home / 'text'}", f"data={home}/pairs-*.tar"]
    settings += ["steps=6", "batch_size=6", "width=16", "learning_rate=3e-3", "schedule=constant", "workers=0"]
    settings += ["precision=fp32", "checkpoint_every=3", "seed=1", "threads=1"]
    return [one for one in settings if one.partition("=")[0] not in named] + list(more)


def lines(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def run(settings: Sequence[str]) -> Path:
    return train(resolve(contrastive, settings))


def test_a_run_resumes_exactly_and_its_tower_is_opened_by_new(home: Path, tmp_path: Path) -> None:
    whole = run(given(home, tmp_path / "whole", f"validation={home}/pairs-0.tar", "validate_every=3"))
    run(given(home, tmp_path / "pieces", "steps=3"))
    pieces = run(given(home, tmp_path / "pieces"))
    one, other = (load_file(directory / "model.safetensors") for directory in (whole, pieces))
    assert all(torch.equal(one[name], other[name]) for name in one)
    logged = [line for line in lines(tmp_path / "whole") if "loss" in line]
    assert [line["loss"] for line in logged] == [line["loss"] for line in lines(tmp_path / "pieces")]
    assert {"accuracy", "inverse_temperature", "tokens_per_s"} <= logged[0].keys() and logged[0]["targets"] == 6
    shares = [line["evaluation/image_of_text"] for line in lines(tmp_path / "whole") if line["step"] in (0, 3, 6)]
    assert len(shares) == 3 and all(0 <= share <= 1 for share in shares)
    tower, before = VisionTower.from_pretrained(str(whole)), VisionTower.from_pretrained(str(home / "tower"))
    pixels = torch.rand(1, 3, IMAGE_SIZE, IMAGE_SIZE)
    assert not torch.allclose(tower(pixels), before(pixels), atol=1e-3)
    language = save_tiny_flamingo(tmp_path / "flamingo").parent / "backbones" / "language"
    tiny_tokenizer().save_pretrained(language)
    settings = [f"output={tmp_path / 'new'}", f"vision={whole}", f"language={language}", f"data={home}/pairs-*.tar"]
    model, processor = resolve(new, settings).build()
    assert torch.equal(model.vision(pixels), tower(pixels))
    assert processor.image_processor == ImageProcessor.from_pretrained(home / "tower")


def test_it_learns_which_text_is_an_images(home: Path, tmp_path: Path) -> None:
    run(given(home, tmp_path / "run", "steps=40", "batch_size=12", "flip=0", "checkpoint_every=100"))
    losses = [line["loss"] for line in lines(tmp_path / "run")]
    # Three colours are told apart, pairs of one colour are not: from log 12 = 2.5 towards log 4 = 1.4, and a little
    # more for the smoothing of the targets.
    assert losses[0] > 2.2 and sum(losses[-5:]) / 5 < 2.1


def test_random_weights_and_another_size(home: Path, tmp_path: Path) -> None:
    settings = ("vision=timm/test_vit", "image_size=64", "from_scratch=vision,text", "steps=1")
    directory = run(given(home, tmp_path / "run", *settings))
    tower = VisionTower.from_pretrained(str(directory))
    assert tower.image_size == 64 and tower(torch.rand(1, 3, 64, 64)).shape == (1, tower.patches, tower.width)
    assert not (directory / "preprocessor_config.json").exists()


@pytest.mark.parametrize(
    "settings, message",
    [
        (["from_scratch=tower"], "from_scratch=tower: expected vision, text"),
        (["batch_size=1"], "batch_size=1: expected 2 or more"),
        (["weights=1,2"], "expected 1, one for each source"),
        (["from_scratch=vision", "vision_pretrained=x"], "give one of them"),
        (["compile=true"], "a contrastive run has no compile; leave"),
        (["parallel=fsdp"], "parallel=fsdp: a contrastive run has parallel=ddp alone"),
        (["vision=normalised", "from_scratch=vision"], "has batch normalisation"),
        (["cache_features=true"], "a contrastive run has no cache_features; leave"),
    ],
)
def test_mistakes(settings: list[str], message: str, home: Path, tmp_path: Path) -> None:
    settings = [one.replace("vision=normalised", f"vision={home / 'normalised'}") for one in settings]
    with pytest.raises(ValueError, match=message):
        run(given(home, tmp_path / "run", *settings))


class Perfect:
    """Knows each picture's text, and nothing else."""

    def __init__(self, names: list[str]) -> None:
        self.log_scale, self.names = torch.tensor(0.0), names

    def embed_images(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(pixels.mean((2, 3)).argmax(1), 3).float()  # red, green or blue

    def embed_texts(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        words = [tiny_tokenizer().decode(row[kept == 1]) for row, kept in zip(ids, mask, strict=True)]
        places = [next(i for i, name in enumerate(self.names) if name in word) for word in words]
        return torch.nn.functional.one_hot(torch.tensor(places), 3).float()


def test_equal_texts_are_both_right_in_validation(home: Path, tmp_path: Path) -> None:
    rows = []
    for number, name in enumerate(["red", "green", "blue"] * 4):
        Image.new("RGB", (8, 8), name).save(tmp_path / f"{number}.png")
        rows.append({"image": f"{number}.png", "text": f"a {name} cat"})
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    processor = PairProcessor(AutoTokenizer.from_pretrained(home / "text"), ImageProcessor.clip(IMAGE_SIZE))
    sources = (UserData(shards=str(tmp_path / "labels.jsonl"), batch_size=1),)
    found = validate(Perfect(["red", "green", "blue"]), processor, sources, 100)  # ty: ignore[invalid-argument-type]
    assert found == {"text_of_image": 1.0, "image_of_text": 1.0}
    found = validate(Perfect(["green", "blue", "red"]), processor, sources, 100)  # ty: ignore[invalid-argument-type]
    assert found == {"text_of_image": 0.0, "image_of_text": 0.0}


def test_validation_without_a_pair_says_why(home: Path, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "0.png")
    rows = [{"images": ["0.png", "0.png"], "text": "<image>a<image>b"}]
    (tmp_path / "pages.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    processor = PairProcessor(AutoTokenizer.from_pretrained(home / "text"), ImageProcessor.clip(IMAGE_SIZE))
    sources = (UserData(shards=str(tmp_path / "pages.jsonl"), batch_size=1),)
    with pytest.raises(ValueError, match=r"pages\.jsonl: no pair .*not one image with a text"):
        validate(Perfect([]), processor, sources, 100)  # ty: ignore[invalid-argument-type]


def test_interleaved_documents_are_left_out(home: Path, tmp_path: Path) -> None:
    table = tmp_path / "mixed.jsonl"
    rows = [{"image": f"{n}.jpg", "text": "a red cat"} for n in range(4)]
    rows.append({"images": ["0.jpg", "1.jpg"], "text": "<image>a<image>b"})
    table.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    from tests.data.files import jpeg

    for number in range(4):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(number))
    run(given(home, tmp_path / "run", f"data={table}", "batch_size=4", "steps=3", "checkpoint_every=1"))
    assert lines(tmp_path / "run")[-1]["dropped"].keys() == {"mixed: not one image with a text"}


def test_the_command_names_the_tower_and_plan_refuses(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "contrastive", *given(home, tmp_path / "run", "steps=1")]) == 0
    assert f"train new output=runs/flamingo vision={tmp_path / 'run' / 'model'} " in capsys.readouterr().out
    assert main(["plan", "contrastive"]) == 2
    assert "plan` estimates Flamingos" in capsys.readouterr().err
