"""The original Flamingo's recipes: published values, and small ones around given backbones."""

import dataclasses
import io
import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from flamboyance.checkpoints.save_backbones import save_tower
from flamboyance.configuration_original import Size, chinchilla, cross_attention
from flamboyance.model.vision import VisionTower, tower_spec
from flamboyance.recipes import RECIPES, flamingo
from flamboyance.recipes.arguments import resolve
from flamboyance.recipes.published import GivenBackbones
from flamboyance.training.loop import train
from tests.processes import ranks
from tests.tiny import tiny_tokenizer
from tests.training.tiny_run import write_shards, write_tar
from tests.videos.make import grey, write_video

GIVEN = ["output=o", "laion=l.tar", "mmc4=m.tar"]
SMALL: dict[str, Any] = {"depth": 1, "width": 48, "heads": 2, "dim_head": 16, "latents": 4}


@pytest.mark.parametrize("name", flamingo.RECIPES)
def test_published_values(name: str) -> None:
    run = resolve(RECIPES[name], GIVEN)
    training, mmc4 = run.training, run.training.sources["mmc4"]
    assert (training.learning_rate, training.warmup_steps, training.schedule, training.steps) == (
        *(1e-4, 5000, "constant"),
        500_000,
    )
    weights = {source: made.weight for source, made in training.sources.items()}
    assert weights == {"laion": 0.2, "mmc4": 1.0} and mmc4.max_tokens == 256
    with pytest.raises(ValueError, match=rf"^{name} has no language model.*language="):
        run.build()


def test_blocks_follow_the_language_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    text = chinchilla(Size(layers=9, width=256, every=4), vocabulary=len(tokenizer))
    AutoModelForCausalLM.from_config(text).save_pretrained(tmp_path / "language")
    tokenizer.save_pretrained(tmp_path / "language")
    save_tower(VisionTower.from_config(tower_spec("timm/test_nfnet")), tmp_path / "vision")
    given = GivenBackbones(language=str(tmp_path / "language"), vision=str(tmp_path / "vision"))
    model, processor = flamingo.build("flamingo-9b", given, resampler=SMALL)
    assert model.cross_attention_layers == [0, 4, 8]
    assert model.config.cross_attention == cross_attention(256)
    assert model.config.cross_attention["heads"] == 2 and model.config.cross_attention["dim_head"] == 128
    assert model.config.resampler["activation"] == "squared_relu" and model.config.resampler["max_frames"] == 8
    assert processor.image_processor.image_size == (160, 160)
    torch.nn.init.ones_(model.blocks[0].attention_gate)
    model.save_pretrained(tmp_path / "model", include_backbones=True)
    opened = type(model).from_pretrained(tmp_path / "model")
    own = model.own_parameters()
    assert opened.config.resampler == model.config.resampler
    assert all(torch.equal(own[name], value) for name, value in opened.own_parameters().items())


@pytest.mark.parametrize("name", ["flamingo-9b", "openflamingo-4b"])
def test_a_plan_is_of_the_model_that_is_trained(name: str, tmp_path: Path) -> None:
    """Around the given backbones, and the published ones in the place of those that are not given."""
    save_parts(tmp_path)
    published = resolve(RECIPES[name], GIVEN).outline().to_dict()
    language, vision = (f"{part}={tmp_path / part}" for part in ("language", "vision"))
    run = resolve(RECIPES[name], [*GIVEN, language, vision])
    both = run.outline().to_dict()
    assert both == run.build()[0].config.to_dict()
    assert both["text_config"]["num_hidden_layers"] == 3 and both["vision"]["config"]["image_size"] == 64
    tower = {"vision": both["vision"], "vision_width": both["vision_width"]}
    assert resolve(RECIPES[name], [*GIVEN, vision]).outline().to_dict() == published | tower
    tower = {name: published[name] for name in tower}
    assert resolve(RECIPES[name], [*GIVEN, language]).outline().to_dict() == both | tower


@pytest.mark.parametrize("name", ["flamingo-3b", "openflamingo-3b"])
def test_a_folder_of_the_recipes_name_does_not_matter(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = resolve(RECIPES[name], GIVEN).outline()
    (tmp_path / name).mkdir()
    (tmp_path / name / "config.json").write_text("{}", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert resolve(RECIPES[name], GIVEN).outline().to_dict() == published.to_dict()


def save_parts(folder: Path) -> None:
    """A language model of Chinchilla's architecture, an NFNet, and shards of all four parts of the mixture."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    text = chinchilla(Size(layers=3, width=128, every=1), vocabulary=len(tokenizer))
    AutoModelForCausalLM.from_config(text).save_pretrained(folder / "language")
    tokenizer.save_pretrained(folder / "language")
    save_tower(VisionTower.from_config(tower_spec("timm/test_nfnet", image_size=64)), folder / "vision")
    write_shards(folder)
    clips: dict[str, bytes] = {}
    for number in range(6):
        file = io.BytesIO()
        write_video(file, [grey(5 * (number + shown)) for shown in range(2 + number % 3)], rate=1, format="mp4")
        clips |= {f"{number}.mp4": file.getvalue(), f"{number}.txt": b"a cat"}
    write_tar(folder / "videos.tar", clips)


def mixture(folder: Path, output: Path, steps: int = 10, workers: int = 0, accumulated: int = 1) -> None:
    """`flamingo-3b` on its four parts, with its own batches and weights, around small backbones."""
    given = [f"output={output}", f"laion={folder}/pairs-{{0..1}}.tar", f"mmc4={folder}/documents-{{0..2}}.tar"]
    given += [f"captions={folder}/pairs-2.tar", f"videos={folder}/videos.tar", "mmc4.min_image_bytes=0"]
    given += ["warmup_steps=2", "learning_rate=1e-3", "precision=fp32", "threads=1"]
    given += [f"steps={steps}", f"workers={workers}", f"gradient_accumulation_steps={accumulated}"]
    run = resolve(RECIPES["flamingo-3b"], given)
    backbones = GivenBackbones(language=str(folder / "language"), vision=str(folder / "vision"))
    build = partial(flamingo.build, "flamingo-3b", backbones, resampler=SMALL)
    train(dataclasses.replace(run, build=build))


@pytest.mark.slow
def test_ten_steps_of_all_four_parts_on_two_processes(tmp_path: Path) -> None:
    save_parts(tmp_path)
    ranks(mixture, tmp_path, tmp_path / "two", log=tmp_path / "log")
    lines = [json.loads(one) for one in (tmp_path / "two" / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 11))
    weights = {"laion": 0.2, "captions": 0.2, "videos": 0.03, "mmc4": 1.0}
    for line in lines:
        parts = {name: line[f"loss/{name}"] for name in weights}
        assert all(map(math.isfinite, parts.values())) and not line["skipped"]
        assert line["loss"] == pytest.approx(sum(weights[name] * loss for name, loss in parts.items()))
    assert lines[-1]["loss"] != lines[0]["loss"]
    assert len(lines[-1]["gates/attention"]) == 3 and all(lines[-1]["gates/attention"])
    # As many streams of data in one process are the same documents in the same steps.
    mixture(tmp_path, tmp_path / "one", steps=3, workers=2, accumulated=2)
    alone = [json.loads(one) for one in (tmp_path / "one" / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["loss"] for line in lines[:3]] == pytest.approx([line["loss"] for line in alone], rel=1e-4)
    assert lines[0]["images"] == alone[0]["images"]
