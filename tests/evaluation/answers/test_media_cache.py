"""Images are encoded once, and what is kept is bounded."""

import copy
import dataclasses
import os

import pytest
import torch

from flamboyance.evaluation.answers.media_cache import MediaCache
from flamboyance.images import ImageError
from flamboyance.model.kept_media import size
from tests.evaluation.small_tasks import draw, tiny_answers


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_answers(tmp_path_factory.mktemp("model"))


@pytest.fixture
def images(tmp_path):
    return draw(tmp_path / "images", 6, 0)


def expected(tiny, prompts):
    pixels = torch.stack([tiny.processor.image_processor(path) for row in prompts for path in row])[:, None]
    return tiny.model.encode_media(pixels, [len(row) for row in prompts])


def check(tiny, found, prompts):
    wanted = expected(tiny, prompts)
    for row, other in zip(found.rows, wanted.rows, strict=True):
        assert torch.allclose(found.latents[list(row)], wanted.latents[list(other)], atol=1e-5)
        for (k, v), (k2, v2) in zip(found.keys_values, wanted.keys_values, strict=True):
            assert torch.allclose(k[list(row)], k2[list(other)], atol=1e-5)
            assert torch.allclose(v[list(row)], v2[list(other)], atol=1e-5)


@pytest.mark.parametrize("most", [0, 5000, 2e9])
def test_the_same_media_whatever_is_kept(tiny, images, most):
    cache = MediaCache(tiny.model, tiny.processor, most)
    for prompts in ([images[:2], images[1:4]], [images[3:5], images[:1]], [images]):
        check(tiny, cache.media(prompts), prompts)
    assert cache.encoded == 6 if most == 2e9 else cache.encoded > 6


def test_what_is_kept_is_bounded(tiny, images):
    one = size(MediaCache(tiny.model, tiny.processor).media([images[:1]]))
    cache = MediaCache(tiny.model, tiny.processor, most_bytes=3.5 * one)
    cache.media([images])
    assert len(cache._kept) == 3 and cache._kept.bytes == 3 * one
    cache.media([images[3:4]])  # used again: the next to go is another
    cache.media([images[:1]])
    assert cache.encoded == 7
    assert images[3] in cache._kept and images[4] not in cache._kept


def test_images_are_kept_on_disk_between_runs(tiny, images, tmp_path):
    first = MediaCache(tiny.model, tiny.processor, folder=tmp_path / "media")
    first.media([images[:4]])
    second = MediaCache(tiny.model, tiny.processor, folder=tmp_path / "media")
    check(tiny, second.media([images]), [images])
    assert second.encoded == 2
    (tmp_path / "changed").mkdir()
    draw(tmp_path / "changed", 1, 9)[0].replace(images[0])  # another picture under the same name
    third = MediaCache(tiny.model, tiny.processor, folder=tmp_path / "media")
    check(tiny, third.media([images]), [images])
    assert third.encoded == 1


def test_an_image_of_the_same_size_and_time_is_noticed_and_a_moved_one_is_known(tiny, images, tmp_path):
    images[0].write_bytes(images[0].read_bytes() + bytes(2000))
    MediaCache(tiny.model, tiny.processor, folder=tmp_path / "media").media([images])
    stat, other = images[0].stat(), draw(tmp_path / "other", 1, 9)[0].read_bytes()
    images[0].write_bytes(other + bytes(stat.st_size - len(other)))
    os.utime(images[0], ns=(stat.st_atime_ns, stat.st_mtime_ns))
    moved = images[5].rename(tmp_path / "moved.png")
    now = [*images[:5], moved]
    cache = MediaCache(tiny.model, tiny.processor, folder=tmp_path / "media")
    check(tiny, cache.media([now]), [now])
    assert cache.encoded == 1


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), None])
def test_latents_on_disk_that_are_none_are_made_again(tiny, images, tmp_path, wrong):
    from safetensors.torch import load_file, save_file

    MediaCache(tiny.model, tiny.processor, folder=tmp_path / "media").media([images])
    file = next((tmp_path / "media").rglob("*.safetensors"))
    latents = load_file(file)["latents"]
    if wrong is None:
        latents = latents[:-1].clone()
    else:
        latents[0, 0] = wrong
    save_file({"latents": latents}, file)
    cache = MediaCache(tiny.model, tiny.processor, folder=tmp_path / "media")
    check(tiny, cache.media([images]), [images])
    assert cache.encoded == 1


def test_a_model_that_computes_no_numbers_is_refused(tiny, images, tmp_path):
    kept = tiny.model.resampler.latents.detach().clone()
    with torch.no_grad():
        tiny.model.resampler.latents[0, 0] = float("nan")
    try:
        cache = MediaCache(tiny.model, tiny.processor, folder=tmp_path / "media")
        with pytest.raises(ValueError, match=r"0\.png: .* not finite"):
            cache.media([images])
        assert not list(tmp_path.rglob("media/*/*.safetensors"))
    finally:
        with torch.no_grad():
            tiny.model.resampler.latents.copy_(kept)


def test_nothing_is_read_ahead_that_is_on_disk_or_stays_behind(tiny, images, tmp_path):
    MediaCache(tiny.model, tiny.processor, folder=tmp_path / "media").media([images[:4]])
    cache = MediaCache(tiny.model, tiny.processor, most_bytes=0, folder=tmp_path / "media")
    cache.ahead([*images, tmp_path / "not there.png"])
    assert len(cache._decoding) == 3
    cache._decoding.pop(tmp_path / "not there.png").exception()
    for _ in range(2):
        cache.ahead(images)
        check(tiny, cache.media([images]), [images])
        assert not cache._decoding
    assert cache.encoded == 2


def test_another_preprocessing_has_media_of_its_own(tiny, images, tmp_path):
    first = MediaCache(tiny.model, tiny.processor, folder=tmp_path / "media")
    first.media([images])
    other = copy.copy(tiny.processor)
    other.image_processor = dataclasses.replace(tiny.processor.image_processor, mean=(0.1, 0.2, 0.3))
    cache = MediaCache(tiny.model, other, folder=tmp_path / "media")
    cache.media([images])
    assert cache.encoded == 6


def test_a_damaged_file_on_disk_is_made_again(tiny, images, tmp_path):
    MediaCache(tiny.model, tiny.processor, folder=tmp_path / "media").media([images])
    files = sorted((tmp_path / "media").rglob("*.safetensors"))
    assert len(files) == 6
    os.truncate(files[0], 10)
    cache = MediaCache(tiny.model, tiny.processor, folder=tmp_path / "media")
    check(tiny, cache.media([images]), [images])
    assert cache.encoded == 1


def test_another_model_has_media_of_its_own(tiny, images, tmp_path):
    MediaCache(tiny.model, tiny.processor, folder=tmp_path / "media").media([images])
    with torch.no_grad():
        tiny.model.resampler.latents.add_(0.5)
    try:
        cache = MediaCache(tiny.model, tiny.processor, folder=tmp_path / "media")
        check(tiny, cache.media([images]), [images])
        assert cache.encoded == 6
    finally:
        with torch.no_grad():
            tiny.model.resampler.latents.sub_(0.5)


def test_a_truncated_image_is_named(tiny, images):
    os.truncate(images[2], 60)
    cache = MediaCache(tiny.model, tiny.processor)
    cache.ahead(images)
    with pytest.raises(ImageError, match=r"2\.png"):
        cache.media([images])
    check(tiny, cache.media([images[:2]]), [images[:2]])  # goes on with others
