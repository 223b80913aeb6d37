"""Towers of OpenCLIP and timm: the same features, whatever the library's own output is."""

import json

import pytest
import torch

from flamboyance.checkpoints.save_backbones import save_tower
from flamboyance.model.vision import VisionTower, chosen_settings, tower_preprocessing, tower_spec
from tests.model.towers import pixels, plain_clip, randomise

OPENCLIP = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture
def openclip(tmp_path):
    """OpenCLIP with two tiny models of its own; weights of the first in a file."""
    open_clip = pytest.importorskip("open_clip")
    (tmp_path / "flamboyance-tiny.json").write_text(json.dumps(OPENCLIP), encoding="utf-8")
    (tmp_path / "flamboyance-tiny-quick.json").write_text(json.dumps(OPENCLIP | {"quick_gelu": True}), encoding="utf-8")
    open_clip.add_model_config(tmp_path)
    model = randomise(open_clip.create_model("flamboyance-tiny"))
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    return model, str(tmp_path / "weights.pt")


def test_openclip(openclip):
    model, weights = openclip
    tower = VisionTower.from_pretrained("flamboyance-tiny", pretrained=weights)
    features = tower(pixels())
    model.visual.output_tokens = True  # today's tokens have the final norm applied
    torch.testing.assert_close(model.visual.ln_post(features), model.visual(pixels())[1], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(features, model.visual(pixels())[1], atol=0.1)
    assert (tower.width, tower.image_size, tower.patches) == (32, 32, 16)
    assert not hasattr(tower.model, "token_embedding")  # no text tower
    with torch.device("meta"):
        empty = VisionTower.from_config(json.loads(json.dumps(tower.spec)))
    assert {k: v.shape for k, v in empty.state_dict().items()} == {k: v.shape for k, v in tower.state_dict().items()}
    quick = VisionTower.from_pretrained("flamboyance-tiny-quick", pretrained=weights)
    assert not torch.allclose(quick(pixels()), features, atol=1e-2)
    half = VisionTower.from_pretrained("flamboyance-tiny", pretrained=weights, dtype=torch.bfloat16)
    assert half(pixels()).dtype == torch.bfloat16


def as_transformers(visual):
    """OpenCLIP's weights under transformers' names."""
    state = {}
    for key, value in visual.items():
        key = key.replace("transformer.resblocks.", "encoder.layers.").replace("ln_pre", "pre_layrnorm")
        key = key.replace("ln_1", "layer_norm1").replace("ln_2", "layer_norm2")
        key = key.replace("attn.out_proj", "self_attn.out_proj").replace("c_fc", "fc1").replace("c_proj", "fc2")
        if "in_proj" in key:
            for part, third in zip("qkv", value.chunk(3), strict=True):
                state[key.replace("attn.in_proj_", f"self_attn.{part}_proj.")] = third
        else:
            state[key] = value
    for old, new in (
        ("class_embedding", ""),
        ("conv1.weight", "patch_embedding.weight"),
        ("positional_embedding", ""),
    ):
        state["embeddings." + (new or old)] = state.pop(old)
    state["embeddings.position_embedding.weight"] = state.pop("embeddings.positional_embedding")
    return state


def test_openclip_at_another_size(openclip):
    _, weights = openclip
    tower = VisionTower.from_pretrained("flamboyance-tiny", pretrained=weights, image_size=48)
    own = VisionTower.from_pretrained("flamboyance-tiny", pretrained=weights)
    assert (tower.image_size, tower.patches) == (48, 36) and tower_preprocessing(tower.spec)["image_size"] == 48
    state = as_transformers(own.model.state_dict())
    table = state["embeddings.position_embedding.weight"]
    grid = table[1:].T.reshape(1, 32, 4, 4)
    grid = torch.nn.functional.interpolate(grid, (6, 6), mode="bicubic", antialias=True)  # as open_clip does
    state["embeddings.position_embedding.weight"] = torch.cat([table[:1], grid.flatten(2)[0].T])
    images = pixels(side=48)
    torch.testing.assert_close(tower(images), plain_clip(state, images, quick=False), atol=1e-5, rtol=1e-4)
    again = VisionTower.from_pretrained("flamboyance-tiny", weights, **chosen_settings(tower.spec))
    assert torch.equal(again(images), tower(images))
    rebuilt = VisionTower.from_config(json.loads(json.dumps(tower.spec)))
    rebuilt.load_state_dict(tower.state_dict())
    assert torch.equal(rebuilt(images), tower(images))


def test_openclip_is_the_same_clip_as_transformers(openclip):
    model, weights = openclip
    state = as_transformers(model.visual.state_dict())
    for name, quick in (("flamboyance-tiny", False), ("flamboyance-tiny-quick", True)):
        tower = VisionTower.from_pretrained(name, pretrained=weights)
        torch.testing.assert_close(tower(pixels()), plain_clip(state, pixels(), quick), atol=1e-5, rtol=1e-4)


@pytest.mark.usefixtures("openclip")
def test_openclip_tags():
    spec = tower_spec("ViT-L-14", "openai", library="openclip")
    assert spec["library"] == "openclip" and spec["config"]["quick_gelu"]
    with torch.device("meta"):
        tower = VisionTower.from_config(spec)
        other = VisionTower.from_config(tower_spec("ViT-L/14", "laion2b_s32b_b82k"))
    assert sum(p.numel() for p in tower.parameters()) == 303_966_208
    activations = [type(t.model.transformer.resblocks[0].mlp.gelu).__name__ for t in (tower, other)]
    assert activations == ["QuickGELU", "GELU"]
    assert tower_preprocessing(other.spec)["mean"] == [0.5, 0.5, 0.5]
    assert tower_preprocessing(tower_spec("ViT-B-16-SigLIP", "webli"))["resize"] == "exact"


@pytest.mark.parametrize("name", ["test_convnext", "test_nfnet", "test_resnet"])
def test_timm_grids(name):
    timm = pytest.importorskip("timm")
    tower = VisionTower.from_config(tower_spec(f"timm/{name}"))
    randomise(tower)
    reference = timm.create_model(name, num_classes=0, global_pool="").eval()
    reference.load_state_dict(tower.model.state_dict(), strict=False)
    images = pixels(side=tower.image_size)
    with torch.no_grad():
        grid = reference.forward_features(images)  # (n, C, H, W)
    features = tower(images)
    assert features.shape == (2, 25, tower.width) and tower.patches is None
    # Row 1, column 2 of 5 x 5. The layout in memory differs, so a processor may sum in another order.
    torch.testing.assert_close(features[:, 7], grid[:, :, 1, 2], atol=1e-4, rtol=1e-4)
    assert tower(pixels(1, side=96)).shape[1] == 9


def test_timm_vit_and_weights_from_a_file(tmp_path):
    timm = pytest.importorskip("timm")
    model = randomise(timm.create_model("test_vit", num_classes=1000))
    torch.save(model.state_dict(), tmp_path / "vit.pth")
    tower = VisionTower.from_pretrained("test_vit", library="timm", pretrained=str(tmp_path / "vit.pth"))
    images = pixels(side=160)
    with torch.no_grad():
        output = model.forward_features(images)[:, model.num_prefix_tokens :]
    features = tower(images)
    torch.testing.assert_close(model.norm(features), output, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(features, output, atol=0.1)
    assert (tower.width, tower.image_size, tower.patches) == (64, 160, 100)
    assert set(tower_preprocessing(tower.spec)) == {"image_size", "mean", "std", "resize"}


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_efficientnet"])
def test_feature_levels_of_timm_are_averaged_to_the_coarsest_grid(name, tmp_path):
    timm = pytest.importorskip("timm")
    from safetensors.torch import save_file

    whole = randomise(timm.create_model(name, num_classes=7)).eval()
    save_file(whole.state_dict(), tmp_path / "weights.safetensors")
    opened = {"pretrained": str(tmp_path / "weights.safetensors"), "image_size": 64}
    tower = VisionTower.from_pretrained(f"timm/{name}", **opened, feature_levels=(2, 3))
    images = pixels(side=64)
    reductions = [info["reduction"] for info in whole.feature_info[2:4]]
    with torch.no_grad():
        fine, coarse = whole.forward_intermediates(images, indices=[2, 3], intermediates_only=True)
    assert [64 // grid.shape[2] for grid in (fine, coarse)] == reductions
    features = tower(images)
    assert (tower.width, tower.image_size) == (fine.shape[1] + coarse.shape[1], 64) == (features.shape[2], 64)
    cells, factor = coarse.shape[2], fine.shape[2] // coarse.shape[2]
    pooled = fine.unflatten(3, (cells, factor)).unflatten(2, (cells, factor)).mean((3, 5))
    cell = features[:, cells + 1] if cells > 1 else features[:, 0]  # row 1, column 1
    at = 1 if cells > 1 else 0
    expected = torch.cat([pooled[:, :, at, at], coarse[:, :, at, at]], dim=1)
    torch.testing.assert_close(cell, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(tower.embed(images), torch.nn.functional.normalize(features.mean(1), dim=-1))
    assert tower_preprocessing(tower.spec)["image_size"] == 64

    save_tower(tower, tmp_path / "saved")
    again = VisionTower.from_pretrained(str(tmp_path / "saved"), image_size=64, feature_levels=[2, 3])
    assert again.spec["library"] == "timm" and tower_preprocessing(again.spec) == tower_preprocessing(tower.spec)
    torch.testing.assert_close(again(images), features)
    with torch.device("meta"):
        empty = VisionTower.from_config(json.loads(json.dumps(tower.spec)))
    assert {k: v.shape for k, v in empty.state_dict().items()} == {k: v.shape for k, v in tower.state_dict().items()}


def test_weights_that_lack_a_part_of_a_tower_are_refused(tmp_path):
    timm = pytest.importorskip("timm")
    state = timm.create_model("test_efficientnet").state_dict()
    torch.save({k: v for k, v in state.items() if not k.startswith("blocks.2.")}, tmp_path / "part.pth")
    with pytest.raises(ValueError, match=r"part\.pth lack blocks\.2\..* more"):
        VisionTower.from_pretrained("timm/test_efficientnet", str(tmp_path / "part.pth"), feature_levels=[2])


def test_levels_that_a_tower_does_not_have_are_refused():
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match="no feature levels 9; expected numbers from 0"):
        VisionTower.from_config(tower_spec("timm/test_efficientnet", feature_levels=[9]))
    with pytest.raises(ValueError, match="feature_levels is for timm's towers; one of transformers"):
        tower_spec("openai/clip-vit-large-patch14", feature_levels=[1])


def test_another_size_of_a_timm_vit(tmp_path):
    timm = pytest.importorskip("timm")
    torch.save(randomise(timm.create_model("test_vit", num_classes=1000)).state_dict(), tmp_path / "vit.pth")
    tower = VisionTower.from_pretrained("timm/test_vit", str(tmp_path / "vit.pth"), image_size=96)
    assert tower(pixels(side=96)).shape == (2, 36, 64) and tower.image_size == 96


@pytest.mark.parametrize(
    "name, pretrained, options, message",
    [
        ("flamboyance-tiny", None, {"library": "openclip"}, "None"),
        ("no-such-model", "some_tag", {}, "OpenCLIP"),
        (
            "ViT-H-14",
            "no_such_tag",
            {},
            "'no_such_tag'",
        ),
        ("ViT-H-14", "laion2b_s32b_b79k", {"local_files_only": True}, "HF_HUB_OFFLINE=1"),
        ("timm/no_such_model", None, {}, "timm"),
        ("flamboyance-tiny", "x", {"image_size": 50}, "image_size=50; expected a multiple of 8"),
        ("RN50", "yfcc15m", {"image_size": 256}, "image_size=256.*ResNet"),
    ],
)
def test_mistakes_with_other_libraries_are_explained(openclip, monkeypatch, name, pretrained, options, message):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(ValueError, match=message):
        VisionTower.from_pretrained(name, pretrained, **options)
