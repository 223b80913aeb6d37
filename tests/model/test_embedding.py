"""`VisionTower.embed`: the vector by which each library compares images, of length 1."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from flamboyance.model.vision import VisionTower, tower_spec
from tests.model.test_vision import FAMILIES, SIZED
from tests.model.test_vision_libraries import OPENCLIP
from tests.model.towers import pixels, randomise, saved

TEXT = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "vocab_size": 50, "eos_token_id": 1,
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_the_librarys_pooled_output(tmp_path, family):
    model_class, config = FAMILIES[family]
    model = randomise(model_class(config))
    tower = VisionTower.from_pretrained(saved(model, tmp_path))
    images = pixels()
    with torch.no_grad():
        if family == "siglip2":
            cells = images.reshape(2, 3, 4, 8, 4, 8).permute(0, 2, 4, 3, 5, 1).reshape(2, 16, -1)
            mask = torch.ones(2, 16)
            expected = model(cells, spatial_shapes=torch.tensor([[4, 4]] * 2), pixel_attention_mask=mask).pooler_output
        elif family == "vit":  # its pooler is a layer that many files lack
            expected = model(images).last_hidden_state[:, 0]
        else:
            expected = model(images).pooler_output
    torch.testing.assert_close(tower.embed(images), normalize(expected, dim=-1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(tower.embed(images).norm(dim=-1), torch.ones(2))


def test_clip_projects_where_it_was_asked_to_and_its_files_can(tmp_path):
    config = CLIPConfig(vision_config=SIZED, text_config=TEXT, projection_dim=20)  # the tower's own says 512
    whole = randomise(CLIPModel(config))
    features = whole.vision_model(pixels()).pooler_output
    plain, projected = (normalize(x, dim=-1) for x in (features, whole.visual_projection(features)))

    name = saved(whole, tmp_path / "whole")
    tower = VisionTower.from_pretrained(name, projection=True)
    torch.testing.assert_close(tower.embed(pixels()), projected, atol=1e-5, rtol=1e-4)
    assert not any(p.requires_grad for p in tower.parameters())
    without = VisionTower.from_pretrained(name)
    assert without.projection is None
    torch.testing.assert_close(without.embed(pixels()), plain, atol=1e-5, rtol=1e-4)
    assert torch.equal(tower(pixels()), without(pixels()))
    assert tower.spec == without.spec
    half = VisionTower.from_pretrained(name, projection=True, dtype="bfloat16")
    assert half.embed(pixels()).dtype == torch.float32
    torch.testing.assert_close(half.embed(pixels()), projected, atol=0.05, rtol=0.05)

    alone = CLIPVisionModel(CLIPVisionConfig(**SIZED))
    alone.load_state_dict(whole.vision_model.state_dict())
    tower = VisionTower.from_pretrained(saved(alone, tmp_path / "alone"), projection=True)
    assert tower.projection is None
    torch.testing.assert_close(tower.embed(pixels()), plain, atol=1e-5, rtol=1e-4)

    both = CLIPVisionModelWithProjection(CLIPVisionConfig(**SIZED, projection_dim=20))
    both.vision_model.load_state_dict(alone.state_dict())
    both.visual_projection.load_state_dict(whole.visual_projection.state_dict())
    tower = VisionTower.from_pretrained(saved(both, tmp_path / "both"), projection=True)
    torch.testing.assert_close(tower.embed(pixels()), projected, atol=1e-5, rtol=1e-4)


def test_siglip_without_its_head_pools_by_the_mean_not_by_random_weights(tmp_path):
    model = randomise(SiglipVisionModel(SiglipVisionConfig(**SIZED)))
    name = saved(model, tmp_path)
    weights = {k: v for k, v in load_file(tmp_path / "model.safetensors").items() if "head." not in k}
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    expected = model(pixels()).last_hidden_state.mean(1)
    torch.testing.assert_close(
        VisionTower.from_pretrained(name).embed(pixels()), normalize(expected, dim=-1), atol=1e-5, rtol=1e-4
    )


def test_openclip_is_encode_image(tmp_path):
    open_clip = pytest.importorskip("open_clip")
    (tmp_path / "flamboyance-embedding.json").write_text(json.dumps(OPENCLIP), encoding="utf-8")
    open_clip.add_model_config(tmp_path)
    model = randomise(open_clip.create_model("flamboyance-embedding"))
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    tower = VisionTower.from_pretrained("flamboyance-embedding", pretrained=str(tmp_path / "weights.pt"))
    with torch.no_grad():
        expected = model.encode_image(pixels(), normalize=True)
    assert expected.shape == (2, 24)
    torch.testing.assert_close(tower.embed(pixels()), expected)
    tower.model.output_tokens = True
    torch.testing.assert_close(tower.embed(pixels()), expected)


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "test_nfnet", "test_resnet"])
def test_timm_is_what_its_classifier_sees(name):
    timm = pytest.importorskip("timm")
    tower = VisionTower.from_config(tower_spec(f"timm/{name}"))
    randomise(tower)
    whole = timm.create_model(name, num_classes=7).eval()
    whole.load_state_dict(tower.model.state_dict(), strict=False)
    images = pixels(side=tower.image_size)
    with torch.no_grad():
        expected = whole.forward_head(whole.forward_features(images), pre_logits=True)
    torch.testing.assert_close(tower.embed(images), normalize(expected, dim=-1), atol=1e-5, rtol=1e-4)


def test_wrong_pixels_are_refused(tmp_path):
    tower = VisionTower.from_pretrained(saved(CLIPVisionModel(CLIPVisionConfig(**SIZED)), tmp_path))
    with pytest.raises(ValueError, match=r"48x48.*32x32"):
        tower.embed(pixels(1, side=48))
