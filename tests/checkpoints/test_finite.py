"""Weights, features and latents that are not finite are refused by name."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from flamboyance import FlamingoForConditionalGeneration, FlamingoProcessor
from flamboyance.checkpoints import openflamingo
from tests.tiny import IMAGE_SIZE, save_tiny_flamingo

open_model = FlamingoForConditionalGeneration.from_pretrained
TENSORS = {
    "model.safetensors": "cross_attention.0.attention_gate",
    "language/model.safetensors": "model.decoder.layers.1.fc1.weight",
    "vision/model.safetensors": "encoder.layers.0.mlp.fc1.bias",
}


@pytest.fixture
def directory(tmp_path):
    return save_tiny_flamingo(tmp_path)


@pytest.mark.parametrize(
    "file, value, dtype",
    [
        ("model.safetensors", "nan", torch.float32),
        ("model.safetensors", "inf", torch.bfloat16),
        ("model.safetensors", "-inf", torch.float16),
        ("language/model.safetensors", "nan", torch.bfloat16),
        ("vision/model.safetensors", "-inf", torch.float32),
    ],
)
def test_weights_in_a_directory(directory, file, value, dtype):
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(directory / file).items()}
    [name] = [name for name in tensors if name.endswith(TENSORS[file].split(".", 1)[-1])]
    tensors[name].view(-1)[0] = float(value)
    save_file(tensors, directory / file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="not finite") as refused:
        open_model(directory)
    assert TENSORS[file].rpartition(".")[0].rpartition(".")[2] in str(refused.value)


def test_weights_in_an_openflamingo_checkpoint(directory):
    model = open_model(directory)
    state = {key: tensor.clone() for key, tensor in openflamingo.export(model).items()}
    state["perceiver.latents"][0, 0] = float("nan")
    before = model.resampler.latents.clone()
    with pytest.raises(ValueError, match=r"perceiver\.latents .*not finite"):
        openflamingo.load(model, openflamingo.parse(state))
    assert torch.equal(model.resampler.latents, before)


def test_a_backbone_for_a_new_model(directory):
    file = directory / "language" / "model.safetensors"
    tensors = load_file(file)
    next(iter(tensors.values())).view(-1)[0] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    processor = FlamingoProcessor.from_pretrained(directory)
    with pytest.raises(ValueError, match="not finite"):
        FlamingoForConditionalGeneration.from_backbones(directory / "vision", directory / "language", processor)


def test_pixels_features_and_latents(directory):
    model = open_model(directory)
    pixels = torch.randn(2, 1, 3, IMAGE_SIZE, IMAGE_SIZE)
    patches = model.vision(pixels.flatten(0, 1)).unflatten(0, (2, 1))
    latents = model.resample(patches, [1, 1]).latents.detach()
    for wrong in ([1], [1, 1, 1], [3, -1]):
        with pytest.raises(ValueError, match="media_counts"):
            model.resample(patches, wrong)
        with pytest.raises(ValueError, match="media_counts"):
            model.media_of(latents, wrong)
    for given, work in (
        (pixels, lambda x: model.encode_media(x, [1, 1])),
        (patches, lambda x: model.resample(x, [1, 1])),
        (latents, lambda x: model.media_of(x, [1, 1])),
    ):
        work(given)
        broken = given.clone()
        broken[1].view(-1)[0] = float("nan")
        with pytest.raises(ValueError, match=r"1 of 2.*not finite"):
            work(broken)


@pytest.mark.parametrize("part", ["language", "vision"])
def test_a_backbone_that_lacks_weights(directory, part):
    """They would be random, which transformers reports in its log alone."""
    file = directory / part / "model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(file).items() if "layers.1" not in name}
    save_file(tensors, file, metadata={"format": "pt"})
    wanted = r"layers\.1\."
    with pytest.raises(ValueError, match=wanted):
        open_model(directory)
    processor = FlamingoProcessor.from_pretrained(directory)
    with pytest.raises(ValueError, match=wanted):
        FlamingoForConditionalGeneration.from_backbones(directory / "vision", directory / "language", processor)
