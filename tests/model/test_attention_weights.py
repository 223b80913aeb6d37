"""Attention weights on request: those by which the blocks and the resampler sum, and nothing changes without them."""

import pytest
import torch
from torch.testing import assert_close
from transformers.modeling_outputs import CausalLMOutputWithPast

from flamboyance.model.resampler import PerceiverResampler, rollout
from tests.model.families import images, make, prompt

LATENTS, HEADS = 5, 2


def texts() -> tuple[torch.Tensor, torch.Tensor]:
    """Two rows of text with two images each. The second begins with tokens before its first image, and has a run of
    more tokens for one image than fit in one block of attention."""
    first = [*prompt(70, 3), 5, 6]
    second = [7, 8, 9, *prompt(4, 66)]
    width = max(len(first), len(second))
    rows = torch.tensor([[*row, *[10] * (width - len(row))] for row in (first, second)])
    return rows, images(2, 2)


def by_hand(block, x, media, seen):
    """The weights and the result of a block's cross-attention, token by token, for hidden states x (R, T, D)."""
    own = block.attention
    weights = torch.zeros(len(x), own.heads, x.shape[1], LATENTS)
    out = torch.zeros_like(x)
    for row in range(len(x)):
        for token in range(x.shape[1]):
            if not seen[row, token]:
                continue
            latents = media.latents[media.rows[row][seen[row, token] - 1]]
            keys, values = own.to_kv(latents).chunk(2, dim=-1)
            q = own.to_q(own.norm(x[row, token]))
            heads = []
            for head in range(own.heads):
                part = slice(head * 8, (head + 1) * 8)
                scores = keys[:, part] @ q[part] / 8**0.5
                share = scores.exp() / scores.exp().sum()
                weights[row, head, token] = share
                heads.append(share @ values[:, part])
            out[row, token] = own.to_out(torch.cat(heads))
    return weights, out


@torch.no_grad()
def test_the_weights_are_those_by_which_a_block_sums():
    model = make("llama")
    ids, pixels = texts()
    media = model.encode_media(pixels, [2, 2])
    seen = (ids == model.config.image_token_id).cumsum(1)
    entered = []
    handles = [
        block.register_forward_hook(lambda module, args, out: entered.append((args[0], out))) for block in model.blocks
    ]
    out = model(ids, media=media, output_attentions=True)
    for handle in handles:
        handle.remove()
    assert len(out.cross_attentions) == len(model.cross_attention_layers) == 3
    for block, found, (x, result) in zip(model.blocks, out.cross_attentions, entered, strict=True):
        weights, attended = by_hand(block, x, media, seen)
        assert_close(found, weights, atol=1e-5, rtol=1e-4)
        x = x + attended * block.attention_gate.tanh()
        assert_close(result, x + block.feed_forward(x) * block.feed_forward_gate.tanh(), atol=1e-4, rtol=1e-4)
    assert not out.cross_attentions[0][1, :, :3].any()  # before the first image


@torch.no_grad()
def test_nothing_changes_without_them():
    model = make("llama")
    ids, pixels = texts()
    plain, asked = (model(ids, pixel_values=pixels, media_counts=[2, 2], output_attentions=on) for on in (False, True))
    assert type(plain) is CausalLMOutputWithPast and "cross_attentions" not in plain
    assert torch.equal(plain.logits, asked.logits)
    assert asked.attentions is None  # fused
    model.language_model.set_attn_implementation("eager")
    asked = model(ids, pixel_values=pixels, media_counts=[2, 2], output_attentions=True)
    assert [tuple(one.shape) for one in asked.attentions] == [(2, 4, ids.shape[1], ids.shape[1])] * 3
    assert_close(asked.logits, plain.logits, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_texts_without_images_have_zeros():
    model = make("opt")
    out = model(torch.tensor([[5, 6, 7], [8, 9, 10]]), output_attentions=True)
    assert [tuple(one.shape) for one in out.cross_attentions] == [(2, HEADS, 3, LATENTS)] * 3
    assert not any(one.any() for one in out.cross_attentions)


@pytest.mark.parametrize("family", ["llama", "mpt"])
@torch.no_grad()
def test_each_step_of_generation_has_the_weights_of_the_whole_text(family):
    model = make(family)
    ids = torch.tensor([prompt(4, 3)] * 2)
    pixels = images(2, 2)
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "return_dict_in_generate": True}
    out = model.generate(ids, pixel_values=pixels, media_counts=[2, 2], output_attentions=True, **options)
    assert len(out.cross_attentions) == 5
    whole = model(out.sequences[:, :-1], pixel_values=pixels, media_counts=[2, 2], output_attentions=True)
    for layer, expected in enumerate(whole.cross_attentions):
        steps = torch.cat([step[layer] for step in out.cross_attentions], dim=2)
        assert_close(steps, expected, atol=1e-4, rtol=1e-3)
    plain = model.generate(ids, pixel_values=pixels, media_counts=[2, 2], **options)
    assert torch.equal(plain.sequences, out.sequences) and "cross_attentions" not in plain


@torch.no_grad()
def test_beams_have_the_weights_of_their_steps():
    model = make("llama")
    ids, pixels = torch.tensor([prompt(4, 3)]), images(2)
    out = model.generate(
        ids, pixel_values=pixels, num_beams=3, max_new_tokens=4, output_attentions=True, return_dict_in_generate=True
    )
    whole = model(out.sequences[:, :-1], pixel_values=pixels, output_attentions=True).cross_attentions
    places = [int(place) for place in out.beam_indices[0] if place >= 0]
    for step, place in enumerate(places):
        for layer, expected in enumerate(whole):
            found = out.cross_attentions[step][layer][place, :, -1]
            assert_close(found, expected[0, :, ids.shape[1] - 1 + step], atol=1e-4, rtol=1e-3)


def test_steps_of_several_tokens_are_refused():
    model = make("llama")
    with pytest.raises(ValueError, match=r"output_attentions.*prompt_lookup_num_tokens"):
        model.generate(
            torch.tensor([prompt(4)]), pixel_values=images(1), output_attentions=True, prompt_lookup_num_tokens=2
        )


@torch.no_grad()
def test_the_resampler_s_weights_are_those_by_which_it_sums():
    torch.manual_seed(0)
    resampler = PerceiverResampler(24, depth=2, heads=2, dim_head=8, latents=5, max_frames=3)
    patches = torch.randn(3, 2, 9, 24)
    weights = resampler.weights(patches)
    assert [tuple(one.shape) for one in weights] == [(3, 2, 5, 18 + 5)] * 2
    timed = (patches + resampler.time_embeddings[:2, None]).flatten(1, 2)
    latents = resampler.latents.expand(3, -1, -1)
    for layer, shares in zip(resampler.layers, weights, strict=True):
        own = layer.attention
        normed = own.norm_latents(latents)
        values = own.to_kv(torch.cat([own.norm_media(timed), normed], dim=1)).chunk(2, dim=-1)[1]
        heads = [shares[:, head] @ values[..., head * 8 : head * 8 + 8] for head in range(2)]
        latents = latents + own.to_out(torch.cat(heads, dim=-1))
        latents = latents + layer.feed_forward(latents)
    assert_close(resampler.norm(latents), resampler(patches), atol=1e-4, rtol=1e-4)


def test_rollout_of_known_weights():
    """Two latents, three patches, computed by hand."""
    first = torch.tensor([[0.6, 0.2, 0.0, 0.2, 0.0], [0.0, 0.0, 0.4, 0.4, 0.2]])  # three patches, then two latents
    second = torch.tensor([[0.0, 0.0, 0.0, 0.0, 1.0], [0.5, 0.0, 0.0, 0.5, 0.0]])
    # After the first layer: half of what the latents attend to in the patches.
    assert_close(rollout([first[None, None]]), torch.tensor([[[0.3, 0.1, 0.0], [0.0, 0.0, 0.2]]]))
    # Latent 0: half itself, half latent 1. Latent 1: half itself, a quarter patch 0, a quarter latent 0.
    expected = torch.tensor([[[0.15, 0.05, 0.1], [0.25 + 0.075, 0.025, 0.1]]])
    assert_close(rollout([first[None, None], second[None, None]]), expected)
    # Two heads count half each.
    heads = torch.stack([first, torch.tensor([[0.0, 0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0, 0.0]])])
    assert_close(rollout([heads[None]])[0, 0], torch.tensor([0.15, 0.05, 0.25]))


@torch.no_grad()
def test_patch_shares_are_those_of_each_image():
    model = make("llama")
    pixels = images(3)[0]
    shares = model.patch_shares(pixels)
    assert shares.shape == (3, LATENTS, 4)
    assert_close(shares[1:2], model.patch_shares(pixels[1:2]))
    assert bool((shares >= 0).all()) and bool((shares.sum(-1) < 1).all())
    assert model.vision.grid(4, 16, 16) == (2, 2) and model.vision.grid(8, 16, 32) == (2, 4)
    with pytest.raises(ValueError, match=r"7 patches .* 16x16"):
        model.vision.grid(7, 16, 16)
