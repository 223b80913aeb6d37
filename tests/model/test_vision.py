"""Towers: features are the last block's patch tokens before the final norm, in every library."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTModel,
)

from flamboyance.checkpoints.preprocessing import image_processor_of
from flamboyance.checkpoints.save_backbones import save_tower
from flamboyance.images import ImageProcessor
from flamboyance.model import vision, vision_transformers
from flamboyance.model.vision import VisionTower, chosen_settings, tower_preprocessing, tower_spec
from tests.model.towers import pixels, plain_clip, randomise, saved

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8}
SIZED = SMALL | {"image_size": 32, "intermediate_size": 64}
FAMILIES = {
    "clip": (CLIPVisionModel, CLIPVisionConfig(**SIZED)),
    "siglip": (SiglipVisionModel, SiglipVisionConfig(**SIZED)),
    "siglip2": (Siglip2VisionModel, Siglip2VisionConfig(**SMALL, intermediate_size=64, num_patches=16)),
    "dinov2": (Dinov2Model, Dinov2Config(**SMALL, image_size=32)),
    "registers": (
        Dinov2WithRegistersModel,
        Dinov2WithRegistersConfig(**SMALL, image_size=32, num_register_tokens=3),
    ),
    "vit": (ViTModel, ViTConfig(**SIZED)),
}


@pytest.mark.parametrize("quick", [True, False])
def test_clip_is_its_definition_alone_or_within_a_whole_clip(tmp_path, quick):
    act = {"hidden_act": "quick_gelu" if quick else "gelu"}
    model = randomise(CLIPVisionModel(CLIPVisionConfig(**SIZED, **act)))
    expected = plain_clip(model.state_dict(), pixels(), quick)
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    whole = CLIPModel(CLIPConfig(vision_config=SIZED | act, text_config=text | {"vocab_size": 50, "eos_token_id": 1}))
    whole.vision_model.load_state_dict(model.state_dict())
    for i, module in enumerate((model, whole)):
        tower = VisionTower.from_pretrained(saved(module, tmp_path / str(i)))
        torch.testing.assert_close(tower(pixels()), expected, atol=1e-5, rtol=1e-4)
        assert (tower.width, tower.image_size, tower.patches) == (32, 32, 16)
        assert tower.spec["library"] == "transformers" and tower.spec["config"]["model_type"] == "clip_vision_model"


def test_directories_written_by_older_transformers_load(tmp_path):
    from safetensors.torch import load_file, save_file

    model = randomise(CLIPVisionModel(CLIPVisionConfig(**SIZED)))
    name = saved(model, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file({f"vision_model.{k}": v for k, v in weights.items()}, tmp_path / "model.safetensors", {"format": "pt"})
    assert torch.equal(VisionTower.from_pretrained(name)(pixels()), model(pixels()).last_hidden_state[:, 1:])
    del weights["encoder.layers.1.mlp.fc1.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"encoder\.layers\.1\.mlp\.fc1"):
        VisionTower.from_pretrained(name)


@pytest.mark.parametrize("family", FAMILIES)
def test_final_norm_of_the_features_is_the_librarys_output(tmp_path, family):
    model_class, config = FAMILIES[family]
    model = randomise(model_class(config))
    tower = VisionTower.from_pretrained(saved(model, tmp_path))
    images = pixels()
    options = {}
    if family == "siglip2":  # takes flattened patches
        cells = images.reshape(2, 3, 4, 8, 4, 8).permute(0, 2, 4, 3, 5, 1).reshape(2, 16, -1)
        options = {"spatial_shapes": torch.tensor([[4, 4]] * 2), "pixel_attention_mask": torch.ones(2, 16)}
    with torch.no_grad():
        output = model(cells if options else images, **options).last_hidden_state[:, -16:]
    features = tower(images)
    assert features.shape == (2, 16, 32)
    if family == "clip":  # its output has no final norm
        assert torch.equal(features, output)
        return
    norm = model.layernorm if hasattr(model, "layernorm") else model.post_layernorm
    torch.testing.assert_close(norm(features), output, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(features, output, atol=0.1)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tower_is_rebuilt_from_its_spec(tmp_path, family):
    model_class, config = FAMILIES[family]
    tower = VisionTower.from_pretrained(saved(randomise(model_class(config)), tmp_path))
    spec = json.loads(json.dumps(tower.spec))
    again = VisionTower.from_config(spec)
    again.load_state_dict(tower.state_dict())
    assert torch.equal(again(pixels()), tower(pixels()))
    with torch.device("meta"):
        empty = VisionTower.from_config(spec)
    assert {p.device.type for p in empty.parameters()} == {"meta"}
    assert (empty.width, empty.image_size, empty.patches) == (32, 32, 16)


@pytest.mark.parametrize("family", FAMILIES)
def test_images_of_another_size_are_seen_as_the_library_interpolates_positions(tmp_path, family):
    model_class, config = FAMILIES[family]
    model = randomise(model_class(config))
    name = saved(model, tmp_path / "own")
    tower = VisionTower.from_pretrained(name, image_size=48)
    assert (tower.width, tower.image_size, tower.patches) == (32, 48, 36)
    images = pixels(side=48)
    options: dict = {"interpolate_pos_encoding": True}
    if family == "siglip2":
        cells = images.reshape(2, 3, 6, 8, 6, 8).permute(0, 2, 4, 3, 5, 1).reshape(2, 36, -1)
        options = {"spatial_shapes": torch.tensor([[6, 6]] * 2), "pixel_attention_mask": torch.ones(2, 36)}
    elif family in ("dinov2", "registers"):
        options = {}  # it always does
    with torch.no_grad():
        output = model(cells if family == "siglip2" else images, **options).last_hidden_state[:, -36:]
    features = tower(images)
    norm = torch.nn.Identity() if family == "clip" else getattr(model, "layernorm", None) or model.post_layernorm
    torch.testing.assert_close(norm(features), output, atol=1e-5, rtol=1e-4)

    again = VisionTower.from_pretrained(name, **chosen_settings(json.loads(json.dumps(tower.spec))))
    assert torch.equal(again(images), features) and again.spec == tower.spec
    assert tower_spec(name, image_size=48) == tower.spec
    rebuilt = VisionTower.from_config(tower.spec)
    rebuilt.load_state_dict(tower.state_dict())
    assert torch.equal(rebuilt(images), features)
    save_tower(tower, tmp_path / "copy")
    spec = dict(tower.spec, name=str(tmp_path / "copy"))
    assert torch.equal(VisionTower.from_pretrained(spec["name"], **chosen_settings(spec))(images), features)
    same = VisionTower.from_pretrained(name, image_size=32)
    assert torch.equal(same(pixels()), VisionTower.from_pretrained(name)(pixels()))


def test_preprocessing_follows_the_chosen_size(tmp_path):
    name = saved(randomise(CLIPVisionModel(CLIPVisionConfig(**SIZED))), tmp_path)
    assert image_processor_of(tower_spec(name, image_size=48)) == ImageProcessor.clip(48)
    ImageProcessor(size=40, crop=(32, 32), mean=(0.1, 0.2, 0.3)).save_pretrained(name)
    expected = ImageProcessor(size=60, crop=(48, 48), mean=(0.1, 0.2, 0.3))
    assert image_processor_of(tower_spec(name, image_size=48)) == expected
    ImageProcessor(size=(32, 32)).save_pretrained(name)
    assert image_processor_of(tower_spec(name, image_size=48)) == ImageProcessor(size=(48, 48))
    with pytest.raises(ValueError, match=r"image_size=50.*multiple of 8"):
        VisionTower.from_pretrained(name, image_size=50)


def test_siglip_within_a_whole_siglip(tmp_path):
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text |= {"vocab_size": 50, "bos_token_id": 0, "eos_token_id": 1}
    model = SiglipModel(SiglipConfig(vision_config=SIZED, text_config=text))
    randomise(model)
    tower = VisionTower.from_pretrained(saved(model, tmp_path))
    output = model.vision_model(pixels()).last_hidden_state
    torch.testing.assert_close(model.vision_model.post_layernorm(tower(pixels())), output, atol=1e-5, rtol=1e-4)


def test_frozen_in_eval_in_dtype_and_free_of_its_batch(tmp_path):
    config = Dinov2Config(**SMALL, image_size=32, hidden_dropout_prob=0.5, drop_path_rate=0.5)
    name = saved(randomise(Dinov2Model(config)), tmp_path)
    tower = VisionTower.from_pretrained(name)
    parent = nn.ModuleList([tower]).train()
    assert parent.training and not any(m.training for m in tower.modules())
    assert not any(p.requires_grad for p in tower.parameters())
    images = pixels(5)
    together = tower(images)
    assert not together.requires_grad and torch.equal(together, tower(images))
    for i in range(5):
        torch.testing.assert_close(tower(images[i : i + 1])[0], together[i], atol=1e-5, rtol=1e-4)
    with ThreadPoolExecutor(2) as pool:
        halves = list(pool.map(tower, [images[:2], images[2:]] * 4))
    for i in range(0, 8, 2):
        torch.testing.assert_close(torch.cat(halves[i : i + 2]), together, atol=1e-5, rtol=1e-4)
    half = VisionTower.from_pretrained(name, dtype="bfloat16")
    assert half.dtype == half(images).dtype == torch.bfloat16
    torch.testing.assert_close(half(images).float(), together, atol=0.2, rtol=0.1)
    assert tower(pixels(1, side=48)).shape == (1, 36, 32)  # DINOv2 takes any size


def test_openai_names_need_no_open_clip(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    spec = tower_spec("ViT-L-14", "openai")
    assert (spec["library"], spec["name"]) == ("transformers", "openai/clip-vit-large-patch14")
    for name in ("vit-l/14", "ViT-L-14-quickgelu", "ViT-L/14"):
        assert tower_spec(name, "openai") == spec
    assert tower_spec("openai/clip-vit-large-patch14") == spec
    assert tower_spec("ViT-L/14@336px", "openai")["name"] == "openai/clip-vit-large-patch14-336"
    assert tower_spec("ViT-B-32", "openai")["name"] == "openai/clip-vit-base-patch32"
    assert tower_spec("ViT-B-16", "openai")["name"] == "openai/clip-vit-base-patch16"
    with torch.device("meta"):
        tower = VisionTower.from_config(spec)
    assert tower.model.config.hidden_act == "quick_gelu"
    assert (tower.width, tower.image_size, tower.patches) == (1024, 224, 256)
    # OpenCLIP's tower (303,966,208) without its projection of 1024 x 768
    assert sum(p.numel() for p in tower.parameters()) == 303_966_208 - 1024 * 768
    assert tower_preprocessing(spec) == {
        "image_size": 224,
        "mean": (0.48145466, 0.4578275, 0.40821073),
        "std": (0.26862954, 0.26130258, 0.27577711),
        "resize": "shortest",
    }
    with pytest.raises(ImportError, match="pip install open_clip_torch"):
        VisionTower.from_pretrained("ViT-H-14", pretrained="laion2b_s32b_b79k")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match="pip install timm"):
        VisionTower.from_pretrained("timm/dm_nfnet_f0.dm_in1k")


def test_openai_weights_have_quick_gelu_whatever_their_config_says(tmp_path, monkeypatch):
    model = randomise(CLIPVisionModel(CLIPVisionConfig(**SIZED, hidden_act="gelu")))
    row = (saved(model, tmp_path), 32, 2, 2, 8, 32)
    monkeypatch.setitem(vision_transformers.OPENAI_TOWERS, "vit-b-32", row)
    tower = VisionTower.from_pretrained("ViT-B-32", pretrained="openai")
    torch.testing.assert_close(tower(pixels()), plain_clip(model.state_dict(), pixels()), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda d: tower_spec("ViT-L-14"), "pretrained='openai'"),
        (lambda d: tower_spec("x", library="torchvision"), "transformers, openclip, timm"),
        (lambda d: tower_spec(d, "openai", library="transformers"), "directory"),
        (lambda d: VisionTower.from_config({"library": None}), "name or a config"),
        (
            lambda d: VisionTower.from_config({"library": "transformers", "config": {"model_type": "bert"}}),
            "'bert'.*clip_vision_model",
        ),
        (
            lambda d: VisionTower.from_pretrained(d)(pixels(1, side=48)),
            "48x48.*32x32",
        ),
        (
            lambda d: VisionTower.from_pretrained(d)(pixels()[0]),
            r"\(3, 32, 32\).*\(images",
        ),
    ],
)
def test_mistakes_are_explained(tmp_path, call, message):
    saved(CLIPVisionModel(CLIPVisionConfig(**SIZED)), tmp_path)
    with pytest.raises(ValueError, match=message):
        call(str(tmp_path))


@pytest.mark.parametrize("together, calls", [(1, 5), (16, 5), (32, 3), (48, 2), (1000, 1)])
def test_images_are_computed_a_few_at_a_time(tmp_path, monkeypatch, together, calls):
    """16 patches each; on a CPU at most so many patches together."""
    tower = VisionTower.from_pretrained(saved(randomise(CLIPVisionModel(CLIPVisionConfig(**SIZED))), tmp_path))
    five = torch.randn(5, 3, 32, 32)
    wanted, embedded = tower(five), tower.embed(five)
    batches = []
    patching = next(m for m in tower.modules() if isinstance(m, nn.Conv2d))
    patching.register_forward_pre_hook(lambda module, given: batches.append(1))
    monkeypatch.setattr(vision, "TOGETHER", together)
    torch.testing.assert_close(tower(five), wanted, atol=1e-5, rtol=1e-4)
    assert len(batches) == calls
    torch.testing.assert_close(tower.embed(five), embedded, atol=1e-5, rtol=1e-4)
    assert len(batches) == 2 * calls
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    tower(five)
    assert len(batches) == 2 * calls + 1  # other processes may have more images or fewer
