"""ImageProcessor against torchvision, OpenCLIP and transformers, and its config files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessor
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from flamboyance.images import OPENAI_MEAN, OPENAI_STD, ImageError, ImageProcessor

HALF = (0.5, 0.5, 0.5)
# (width, height): exact, wide, tall, odd, smaller than the crop, a line, one pixel; crops at .5 of a pixel.
SIZES = [(224, 224), (640, 480), (333, 481), (500, 301), (100, 77), (13, 7), (3, 400), (1, 1), (224, 227), (225, 230)]


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_torchvision_and_open_clip_bit_for_bit(size: tuple[int, int]) -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    image = noise(*size)
    bicubic = transforms.InterpolationMode.BICUBIC
    for edge, crop in ((224, (224, 224)), (224, (180, 224)), (100, (224, 180)), (37, (21, 20))):
        steps = [transforms.Resize(edge, bicubic), transforms.CenterCrop(crop), transforms.ToTensor()]
        theirs = transforms.Compose([*steps, transforms.Normalize(OPENAI_MEAN, OPENAI_STD)])
        assert torch.equal(ImageProcessor(edge, crop)(image), theirs(image))
    steps = [transforms.Resize((96, 64), bicubic), transforms.ToTensor(), transforms.Normalize(HALF, HALF)]
    assert torch.equal(ImageProcessor((96, 64), None, HALF, HALF)(image), transforms.Compose(steps)(image))


def test_equals_open_clip() -> None:
    open_clip = pytest.importorskip("open_clip")
    for ours, name in ((ImageProcessor.clip(32), "shortest"), (ImageProcessor((32, 32)), "squash")):
        theirs = open_clip.image_transform(32, is_train=False, resize_mode=name)
        assert torch.equal(ours(noise(50, 41)), theirs(noise(50, 41)))


THEIRS: dict[str, Any] = {
    "CLIP": CLIPImageProcessorPil(),
    "CLIP, squashed": CLIPImageProcessorPil(size={"height": 64, "width": 48}, do_center_crop=False),
    "SigLIP": SiglipImageProcessorPil(),
    "DINOv2": BitImageProcessorPil(size={"shortest_edge": 256}, image_mean=[0.4, 0.5, 0.6]),
    "ViT": ViTImageProcessorPil(),
    "ViT, plain": ViTImageProcessorPil(do_normalize=False),
    "ConvNeXt at 224": ConvNextImageProcessorPil(size={"shortest_edge": 224}),
    "ConvNeXt at 384": ConvNextImageProcessorPil(),
}


@pytest.mark.parametrize("name", THEIRS)
def test_equals_transformers(tmp_path: Path, name: str) -> None:
    theirs = THEIRS[name]
    theirs.save_pretrained(tmp_path)
    ours = ImageProcessor.from_pretrained(tmp_path, local_files_only=True)
    ours.save_pretrained(tmp_path / "again")
    assert ImageProcessor.from_pretrained(tmp_path / "again") == ours
    compared = 0
    for size in SIZES:
        image = noise(*size)
        if ours.crop and _half_a_pixel(ours, image):
            continue
        expected = theirs(image, return_tensors="pt").pixel_values[0]
        torch.testing.assert_close(ours(image), expected, rtol=0, atol=1e-5)
        assert ours(image).shape[1:] == ours.image_size
        compared += 1
    assert compared >= 6


def _half_a_pixel(processor: ImageProcessor, image: Image.Image) -> bool:
    """Where the margin is 3, 7, 11 … pixels, transformers' crop starts one pixel before torchvision's."""
    height, width = processor._resized(*image.size)
    return any((have - want) % 4 == 3 for have, want in zip((height, width), processor.image_size, strict=True))


@pytest.mark.parametrize("ours", [ImageProcessor.clip(48), ImageProcessor((32, 40), None, HALF, HALF, 2)], ids=str)
def test_transformers_reads_what_is_saved(tmp_path: Path, ours: ImageProcessor) -> None:
    ours.save_pretrained(tmp_path)
    theirs = CLIPImageProcessorPil.from_pretrained(tmp_path)
    for size in ((64, 64), (100, 77), (13, 20)):
        torch.testing.assert_close(ours(noise(*size)), theirs(noise(*size), return_tensors="pt").pixel_values[0])
    assert CLIPImageProcessor.from_pretrained(tmp_path)(noise(9, 9), return_tensors="pt").pixel_values.shape[1] == 3


OLD_CLIP = {"feature_extractor_type": "CLIPFeatureExtractor", "size": 224, "crop_size": 224, "do_center_crop": True}
OLD_VIT = {"feature_extractor_type": "ViTFeatureExtractor", "size": 224, "image_mean": HALF, "image_std": HALF}


def test_older_forms_of_the_config(tmp_path: Path) -> None:
    assert ImageProcessor.from_config(OLD_CLIP) == ImageProcessor.clip(224)
    assert ImageProcessor.from_config(OLD_VIT) == ImageProcessor((224, 224), None, HALF, HALF, resample=2)
    nested = {"processor_class": "CLIPProcessor", "image_processor": OLD_CLIP}
    (tmp_path / "processor_config.json").write_text(json.dumps(nested), encoding="utf-8")
    assert ImageProcessor.from_pretrained(tmp_path) == ImageProcessor.clip(224)


BAD_CONFIGS = {
    "no crop": ({"size": {"shortest_edge": 224}, "do_center_crop": False}, "crop"),
    "no resize": ({"do_resize": False}, "do_resize=false"),
    "no rescale": ({"do_rescale": False}, "do_rescale=false"),
    "odd rescale": ({"rescale_factor": 1 / 127.5}, "rescale_factor=0.0078.*1/255"),
    "NaFlex": ({"image_processor_type": "Siglip2ImageProcessor", "max_num_patches": 256}, "varying shape"),
    "padding": ({"image_processor_type": "CLIPImageProcessor", "do_pad": True}, "do_pad=True"),
    "BGR": ({"image_processor_type": "MobileViTImageProcessor", "do_flip_channel_order": True}, "do_flip_channel_ord"),
    "more than the crop": ({"image_processor_type": "PoolFormerImageProcessor", "crop_pct": 0.9}, "crop_pct=0.9"),
    "LeViT": ({"image_processor_type": "LevitImageProcessorFast", "size": {"shortest_edge": 224}}, "LevitImage.*CLIP"),
    "EfficientNet": ({"feature_extractor_type": "EfficientNetFeatureExtractor"}, "EfficientNet.*CLIP"),
    "longest edge": ({"size": {"shortest_edge": 800, "longest_edge": 1333}}, "height and width"),
}


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_configs_that_cannot_be_followed(case: str) -> None:
    config, message = BAD_CONFIGS[case]
    with pytest.raises(ValueError, match=message):
        ImageProcessor.from_config(config)


def test_a_directory_without_a_config(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"preprocessor_config\.json.*ImageProcessor\.clip"):
        ImageProcessor.from_pretrained(tmp_path)


BAD_ARGUMENTS = {
    "edge alone": ({"size": 224}, "size=224.*crop"),
    "no length": ({"size": (0, 5)}, "pixels, 1 or more"),
    "three lengths": ({"size": (5, 5, 5)}, "size=.5, 5, 5."),
    "two means": ({"size": (5, 5), "mean": (0.5, 0.5)}, "three values"),
    "std of 0": ({"size": (5, 5), "std": (0.5, 0.0, 0.5)}, "std above 0"),
    "filter": ({"size": (5, 5), "resample": 99}, "99"),
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_bad_arguments(case: str) -> None:
    arguments, message = BAD_ARGUMENTS[case]
    with pytest.raises(ValueError, match=message):
        ImageProcessor(**arguments)


def test_a_thread_of_a_picture_is_refused_before_it_fills_the_memory() -> None:
    with pytest.raises(ImageError, match=r"1 x 60000.*224 x 13440000"):
        ImageProcessor.clip(224)(Image.new("RGB", (1, 60_000)))
    assert ImageProcessor((224, 224))(Image.new("RGB", (1, 60_000))).shape == (3, 224, 224)
