"""The resampler on images and videos."""

import pytest
import torch
from torch.testing import assert_close

from flamboyance.model.resampler import PerceiverResampler, stretched
from tests.model.families import images, make, prompt


def test_an_image_is_resampled_alone():
    resampler = PerceiverResampler(24, depth=2, heads=2, dim_head=8, latents=5)
    patches = torch.randn(4, 1, 9, 24)
    assert_close(resampler(patches)[2:3], resampler(patches[2:3]))


def test_frames_of_a_video_are_told_apart_by_time_embeddings_alone():
    patches = torch.randn(2, 3, 9, 24)
    still = PerceiverResampler(24, depth=2, heads=2, dim_head=8, latents=5)
    assert_close(still(patches), still(patches.flip(1)))
    video = PerceiverResampler(24, depth=2, heads=2, dim_head=8, latents=5, max_frames=4)
    assert (video(patches) - video(patches.flip(1))).abs().max() > 1e-3


@pytest.mark.parametrize("frames", [1, 3, 4, 7, 9])
def test_time_embeddings_are_stretched_for_longer_videos(frames):
    """Flamingo trains on 8 frames and tests on 30 by linear interpolation, ends kept."""
    resampler = PerceiverResampler(24, depth=1, heads=2, dim_head=8, latents=5, max_frames=4)
    times, own = stretched(resampler.time_embeddings, frames), resampler.time_embeddings
    assert times.shape == (frames, 24)
    if frames <= 4:
        assert_close(times, own[:frames])
    else:
        assert_close(times[0], own[0])
        assert_close(times[-1], own[-1])
        place = torch.linspace(0, 3, frames)[1]
        assert_close(times[1], own[0] + (own[1] - own[0]) * place)


def test_a_video_in_a_prompt():
    model = make("llama", max_frames=4)
    pixels = images(2, frames=3)
    media = model.encode_media(pixels)
    assert media.latents.shape == (2, 5, 24)
    ids = torch.tensor([prompt(3, 4)])
    with torch.no_grad():
        forward, backward = (model(ids, pixel_values=p).logits for p in (pixels, pixels.flip(2)))
    assert (forward - backward).abs().max() > 1e-4


def test_one_norm_of_keys_and_values_and_squared_relu():
    """A layer as the original Flamingo's figures state it, written out."""
    torch.manual_seed(0)
    own = PerceiverResampler(24, depth=1, heads=2, dim_head=8, latents=5)
    original = PerceiverResampler(
        24, depth=1, heads=2, dim_head=8, latents=5, activation="squared_relu", norm_keys_values=True
    )
    original.load_state_dict(own.state_dict())  # the parameters are the same
    layer = original.layers[0]
    for norm in (layer.attention.norm_media, layer.attention.norm_latents):
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    patches = torch.randn(3, 1, 9, 24)
    x = original.latents.expand(3, -1, -1)
    q = layer.attention.to_q(layer.attention.norm_latents(x)).view(3, 5, 2, 8)
    joined = layer.attention.norm_media(torch.cat([patches[:, 0], x], 1))
    k, v = layer.attention.to_kv(joined).view(3, 14, 2, 2, 8).unbind(2)
    weights = (torch.einsum("mqhk,mshk->mhqs", q, k) / 8**0.5).softmax(-1)
    x = x + layer.attention.to_out(torch.einsum("mhqs,mshk->mqhk", weights, v).flatten(2))
    up = layer.feed_forward.up(layer.feed_forward.norm(x))
    x = x + layer.feed_forward.down(torch.where(up > 0, up * up, 0.0))
    with torch.no_grad():
        assert_close(original(patches), original.norm(x), rtol=1e-4, atol=1e-4)
        assert_close(original.weights(patches)[0], weights, rtol=1e-4, atol=1e-4)
        assert (original(patches) - own(patches)).abs().max() > 1e-2
