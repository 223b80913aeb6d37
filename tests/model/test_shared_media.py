"""Rows of a few-shot batch share their demonstrations: equal media are computed once, and no result changes."""

import pytest
import torch
from torch.testing import assert_close

from flamboyance.model.media import Media, rows_of
from flamboyance.model.pixels import first_of_equal, unpadded
from tests.model.families import images, make, pad_left, prompt


@pytest.fixture
def model():
    return make("opt")


@pytest.fixture
def seen(model):
    """The numbers of images that the tower was given."""
    numbers: list[int] = []
    model.vision.register_forward_pre_hook(lambda module, args: numbers.append(len(args[0])))
    return numbers


def batch(padded: bool) -> tuple[dict, torch.Tensor, list[int]]:
    """Three prompts with 3, 2 and 3 images, of which four are distinct: two demonstrations and two queries."""
    a, b, first, second = images(4)[0]
    pixels = torch.stack([a, b, first, b, second, torch.zeros_like(a), a, b, second]).unflatten(0, (3, 3))
    counts = [3, 2, 3]
    if not padded:
        pixels = torch.cat([row[:count] for row, count in zip(pixels, counts, strict=True)])
    text = pad_left([prompt(3, 4, 2), prompt(5, 2, seed=1), prompt(2, 2, 6, seed=2)])
    return text, pixels, counts


def unshared(model, pixels: torch.Tensor, counts: list[int]) -> Media:
    """Media of which every image is computed for itself."""
    rows = pixels if pixels.ndim == 6 else pixels.split(counts)
    each = [image for row, count in zip(rows, counts, strict=True) for image in row[:count]]
    parts = [model.encode_media(image[None, None]) for image in each]
    return Media.join(parts, rows_of(counts))


@torch.no_grad()
@pytest.mark.parametrize("padded", [True, False])
def test_equal_images_are_computed_once(model, seen, padded):
    text, pixels, counts = batch(padded)
    media = model.encode_media(pixels, counts)
    assert seen == [4] and len(media.latents) == 4
    assert media.rows == ((0, 1, 2), (1, 3), (0, 1, 3)) and media.counts == counts
    each = unshared(model, pixels, counts)
    assert len(each.latents) == 8
    tolerance = {"atol": 2e-5, "rtol": 1e-4}
    real = text["attention_mask"].bool()
    assert_close(model(**text, media=media).logits[real], model(**text, media=each).logits[real], **tolerance)
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    for beams in (1, 3):
        found, wanted = (model.generate(**text, media=m, num_beams=beams, **options) for m in (media, each))
        assert found.tolist() == wanted.tolist()
    found, wanted = (model.score(**text, media=m, candidates=[[5, 6], [7]]) for m in (media, each))
    assert_close(found, wanted, **tolerance)
    assert_close(media.last.latents, each.last.latents, **tolerance)


@torch.no_grad()
def test_a_conversation_goes_on_with_an_image_that_was_shown(model):
    a, b = images(2)[0]
    shown = model.encode_media(torch.stack([a, b, a])[None])
    more = shown.append(model.encode_media(b[None, None]))
    assert more.counts == [4] and len(shown.latents) == 2
    each = unshared(model, torch.stack([a, b, a, b])[None], [4])
    ids = torch.tensor([prompt(3, 2, 4, 1)])
    assert_close(model(ids, media=more).logits, model(ids, media=each).logits, atol=2e-5, rtol=1e-4)


def test_training_computes_every_image(model, seen):
    text, pixels, counts = batch(padded=True)
    model.train()
    model(**text, pixel_values=pixels, media_counts=counts)
    assert seen == [8]


def test_gradients_reach_every_copy_of_the_pixels(model, seen):
    text, pixels, counts = batch(padded=False)
    model.vision.requires_grad_(False)
    pixels.requires_grad_()
    model(**text, pixel_values=pixels, media_counts=counts).logits.sum().backward()
    assert seen == [8] and pixels.grad.flatten(1).any(1).all()


def test_media_of_one_sum_are_still_told_apart():
    image = torch.arange(24.0).view(1, 1, 2, 3, 4)
    media = torch.cat([image, image.flip(-1), image, image.flip(-1)])
    assert media.flatten(1).sum(1).unique().numel() == 1
    assert first_of_equal(media, [0, 1, 2, 3]) == ([0, 1], [0, 1, 0, 1])
    assert first_of_equal(torch.full((2, 1, 1, 2, 2), float("nan")), [0, 1]) == ([0, 1], [0, 1])


def test_entries_beyond_a_count_are_no_media():
    media, places, counts = unpadded(torch.zeros(2, 3, 1, 3, 4, 4), torch.tensor([1, 2]))
    assert media.shape == (6, 1, 3, 4, 4) and places == [0, 3, 4] and counts == [1, 2]


@torch.no_grad()
def test_counts_that_do_not_fit_latents_or_features(model):
    latents = model.encode_media(images(2)).latents
    with pytest.raises(ValueError, match="2"):
        model.media_of(latents, [1, 2])
