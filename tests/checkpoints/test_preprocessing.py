"""Images are prepared as the vision tower expects them; frames need a model with time embeddings."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel

from flamboyance import FlamingoForConditionalGeneration, FlamingoProcessor
from flamboyance.checkpoints.preprocessing import image_processor_of
from flamboyance.images import ImageProcessor, preprocessor_config
from flamboyance.recipes import openflamingo
from flamboyance.recipes.published import GivenBackbones
from tests.tiny import save_tiny_flamingo, tiny_tokenizer

SIZES = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
HALF = (0.5, 0.5, 0.5)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_flamingo(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("towers") / "siglip"
    SiglipVisionModel(SiglipVisionConfig(**SIZES, image_size=16, patch_size=8)).save_pretrained(directory)
    return str(directory)


def build(vision: str, tiny: Path, images: Any) -> tuple[Any, FlamingoProcessor]:
    processor = FlamingoProcessor(images, tiny_tokenizer())
    made = FlamingoForConditionalGeneration.from_backbones(vision, str(tiny / "language"), processor)
    return made, processor


def test_another_towers_processor_is_refused(tiny: Path, siglip: str) -> None:
    with pytest.raises(ValueError, match=r"mean 0\.481, .* 0\.269, .*siglip.*16x16 .* mean 0\.5, 0\.5"):
        build(siglip, tiny, ImageProcessor.clip(16))
    clip = str(tiny / "vision")
    for wrong in (
        ImageProcessor((16, 16), None, HALF, HALF),  # another mean and deviation, no crop
        ImageProcessor.clip(32),  # another size
        ImageProcessor(64, (16, 16)),  # another part of the image
        ImageProcessor((16, 16)),  # no crop
        ImageProcessor(16, (16, 16), std=HALF),
    ):
        with pytest.raises(ValueError, match="another vision tower"):
            build(clip, tiny, wrong)
    build(clip, tiny, ImageProcessor.clip(16))
    build(siglip, tiny, ImageProcessor((16, 16), None, HALF, HALF))
    _, own = build(siglip, tiny, made := lambda image: torch.zeros(3, 16, 16))
    assert own.image_processor is made  # a function cannot be looked into


def test_a_function_that_prepares_images_is_not_saved_without_a_word(tiny: Path, siglip: str, tmp_path: Path) -> None:
    model, _ = build(siglip, tiny, lambda image: torch.zeros(3, 16, 16))
    with pytest.warns(UserWarning, match="cannot be saved"):
        model.save_pretrained(tmp_path)


def test_a_processor_without_images_follows_the_tower(tiny: Path, siglip: str) -> None:
    assert build(siglip, tiny, None)[1].image_processor == ImageProcessor((16, 16), None, HALF, HALF)
    assert build(str(tiny / "vision"), tiny, None)[1].image_processor == ImageProcessor.clip(16)


def test_what_a_towers_directory_states_comes_before_its_kind(tiny: Path, tmp_path: Path) -> None:
    own = ImageProcessor((16, 16), None, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    tower = shutil.copytree(tiny / "vision", tmp_path / "tower")
    own.save_pretrained(tower)
    assert build(str(tower), tiny, None)[1].image_processor == own
    build(str(tower), tiny, own)
    with pytest.raises(ValueError, match=r"16x16.*mean 0\.1, 0\.2, 0\.3"):
        build(str(tower), tiny, ImageProcessor.clip(16))


def test_a_recipe_with_another_tower_prepares_images_as_that_tower(
    tiny: Path, siglip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "OpenFlamingo-3B-vitl-mpt1b"
    language = str(tiny / "language")
    published = FlamingoProcessor(ImageProcessor.clip(16), tiny_tokenizer())
    monkeypatch.setattr(FlamingoProcessor, "of_released", lambda *_, **__: published)
    _, processor = openflamingo.build(name, GivenBackbones(language=language, vision=siglip))
    assert processor.image_processor == ImageProcessor((16, 16), None, HALF, HALF)
    published.image_processor = ImageProcessor.clip(16)
    clip = openflamingo.build(name, GivenBackbones(language=language, vision=str(tiny / "vision")))[1]
    assert clip.image_processor == ImageProcessor.clip(16)


def test_several_frames_need_time_embeddings(tiny: Path) -> None:
    model, processor = FlamingoForConditionalGeneration.from_pretrained(tiny), FlamingoProcessor.from_pretrained(tiny)
    pictures = list(torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8))
    inputs = processor("<image>a cat", [pictures])
    assert inputs.pixel_values.shape[2] == 3
    for use in (
        lambda: model(**inputs),
        lambda: model.generate(**inputs, max_new_tokens=2),
        lambda: model.score(**inputs, candidates=["cat", "dog"]),
        lambda: model.encode_media(inputs.pixel_values[0], [1]),
        lambda: model.resample(torch.zeros(1, 3, 4, 32), [1]),
    ):
        with pytest.raises(ValueError, match=r"3 frames.*time embeddings"):
            use()
    still = processor("<image>a cat", [pictures[:1]])
    assert torch.equal(model(**still).logits, model(**processor("<image>a cat", pictures[0])).logits)
    torch.manual_seed(0)
    videos = FlamingoForConditionalGeneration.from_backbones(
        str(tiny / "vision"), str(tiny / "language"), processor, resampler={"max_frames": 4}
    )
    first = videos.encode_media(inputs.pixel_values).latents
    assert not torch.allclose(first, videos.encode_media(inputs.pixel_values.flip(2)).latents)


def test_clip_without_a_stated_preprocessing(tmp_path: Path, tiny: Path) -> None:
    CLIPVisionModel(CLIPVisionConfig(**SIZES, image_size=24, patch_size=8)).save_pretrained(tmp_path)
    assert build(str(tmp_path), tiny, None)[1].image_processor == ImageProcessor.clip(24)


def test_a_repository_with_another_kind_of_preprocessing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The family's own is for repositories that state none."""
    vision = {"library": "transformers", "name": "somebody/levit", "pretrained": None, "config": {"model_type": "vit"}}
    config = {"image_processor_type": "LevitImageProcessor", "size": {"shortest_edge": 224}}
    monkeypatch.setattr(preprocessor_config, "find", lambda *given, **hub: config)
    with pytest.raises(ValueError, match="LevitImageProcessor"):
        image_processor_of(vision)
