"""only_attend_immediate_media=False: a token attends to all images up to it."""

import pytest
import torch
from torch.testing import assert_close

from flamboyance import FlamingoForConditionalGeneration
from flamboyance.checkpoints import openflamingo
from flamboyance.model.cross_attention import MaskedCrossAttention
from flamboyance.model.media import Media, Spans, count_seen, decoding_layout, prefill_layout, traced_layout
from flamboyance.reports.attention import attention_maps
from tests.model.check_family import check
from tests.model.families import IMAGE, images, make, pad_left, prompt
from tests.model.test_compile import SEEN, inputs, prefill_and_step

EVERY = {"only_attend_immediate_media": False}
ROWS = ((0, 3), (2,), (1, 4, 0))
IDS = torch.tensor([[9, IMAGE, 9, 9, IMAGE, 9, 9], [9, 9, IMAGE, 9, 9, 9, 9], [IMAGE, IMAGE, 9, IMAGE, 9, 9, 9]])


def shown(layout, shape, count: int) -> list[list[set[int]]]:
    """The images that each token's query meets."""
    image = layout.image_of_block
    met = torch.nn.functional.one_hot(image.clamp(min=0), count) * (image >= 0)[..., None]
    width = layout.to_blocks(torch.zeros(*shape, 1, 1)).shape[1]
    blocks = met.amax(1)[:, None, None].expand(-1, width, -1, -1).float()
    found = layout.from_blocks(blocks, *shape)
    return [[set(token.nonzero().flatten().tolist()) for token in row] for row in found]


@pytest.mark.parametrize("kind", SEEN)
@pytest.mark.parametrize("times", [1, 2])
def test_layouts_show_each_token_all_images_up_to_it(kind, times):
    media = Media(torch.randn(5, 1, 4), (), ROWS)
    seen = count_seen(IDS, IMAGE, media) if SEEN[kind] is None else SEEN[kind]
    seen = seen.repeat_interleave(times, 0)
    expected = [[set(ROWS[i // times][:met]) for met in row] for i, row in enumerate(seen.tolist())]
    for layout in (prefill_layout(seen, media, every=True), traced_layout(seen, media, every=True)):
        assert shown(layout, seen.shape, 5) == expected

    spans = Media(media.latents, (), ((0, 1), (2,), (3, 4)))
    object.__setattr__(spans, "rows", Spans(torch.tensor([0, 2, 3]), torch.tensor([2, 1, 2])))
    seen = seen.clamp(max=torch.tensor([2, 1, 2]).repeat_interleave(times)[:, None])
    expected = [[{(0, 2, 3)[i // times] + n for n in range(met)} for met in row] for i, row in enumerate(seen.tolist())]
    assert shown(traced_layout(seen, spans, every=True), seen.shape, 5) == expected


def test_attention_is_its_definition():
    torch.manual_seed(0)
    attention, latents = MaskedCrossAttention(12, 6, heads=2, dim_head=4), torch.randn(5, 3, 6)
    media = Media(latents, (), ROWS)
    seen = count_seen(IDS, IMAGE, media)
    x, (keys, values) = torch.randn(3, 7, 12), attention.keys_values(latents)
    expected = torch.zeros(3, 7, 12)
    q = attention.to_q(attention.norm(x)).view(3, 7, 2, 4)
    for row, counts in enumerate(seen.tolist()):
        for token, count in enumerate(counts):
            if count:
                some = list(ROWS[row][:count])
                k, v = (t[some].transpose(0, 1).reshape(2, -1, 4) for t in (keys, values))
                scores = (k * q[row, token][:, None]).sum(-1) / 2
                out = (scores.softmax(-1)[..., None] * v).sum(1)
                expected[row, token] = attention.to_out(out.flatten())
    for layout in (prefill_layout(seen, media, every=True), traced_layout(seen, media, every=True)):
        assert_close(attention(x, keys, values, layout), expected, atol=1e-6, rtol=1e-5)
        assert_close(attention.weights(x, keys, layout).sum(-1)[:, 0], (seen > 0).float(), atol=1e-6, rtol=1e-5)
    last = attention(x[:, -1:], keys, values, decoding_layout(media, x.device, every=True))
    assert_close(last, expected[:, -1:], atol=1e-6, rtol=1e-5)
    none = Media(latents, (), (*ROWS[:2], ()))
    assert not attention(x[:, -1:], keys, values, decoding_layout(none, x.device, every=True))[2].any()
    none = Media(latents, (), ((), (), ()))
    assert not attention(x[:, -1:], keys, values, decoding_layout(none, x.device, every=True)).any()


@pytest.mark.parametrize("family", ["opt", "mpt", "llama", "mosaic_gpt"])
def test_caches_padding_beams_candidates_and_demonstrations(family):
    check(family, **EVERY)


@torch.no_grad()
def test_only_earlier_images_make_a_difference():
    every, one = make("opt", **EVERY), make("opt")
    for counts, alike in (((1, 1), True), ((2, 1), False)):
        texts = pad_left([prompt(*[3] * count, seed=i) for i, count in enumerate(counts)])
        found = [model(**texts, pixel_values=images(*counts), media_counts=counts).logits for model in (every, one)]
        assert_close(found[0][1], found[1][1], atol=1e-5, rtol=1e-5)
        assert torch.allclose(found[0][0], found[1][0], atol=1e-5) == alike
    given = {"input_ids": torch.tensor([prompt(3, 4)]), "media_counts": [2]}
    pixels = images(2)
    both = every(**given, pixel_values=pixels, output_attentions=True)
    assert both.cross_attentions[0].shape[-1] == 2 * 5  # latents of two images
    other = every(**given, pixel_values=torch.stack([pixels[0, 1] * 0, pixels[0, 1]])[None]).logits
    assert not torch.allclose(both.logits[0, -1], other[0, -1], atol=1e-3)


def test_it_is_saved_and_openflamingo_has_no_place_for_it(tmp_path):
    model = make("opt", **EVERY)
    model.config.save_pretrained(tmp_path)
    again = FlamingoForConditionalGeneration.from_config(tmp_path)
    assert not again.config.cross_attention["only_attend_immediate_media"] and again._every_image
    with pytest.raises(ValueError, match="only_attend_immediate_media=False"):
        openflamingo.export(model)


def test_attention_maps_are_of_one_image():
    """The refusal comes before anything of the processor is used."""
    with pytest.raises(ValueError, match="2 images at a time"):
        attention_maps(make("opt", **EVERY), None, "<image><image>a", ["a.jpg", "b.jpg"])


@pytest.mark.slow
@torch.no_grad()
def test_it_compiles_without_a_graph_break():
    torch._dynamo.reset()
    model, given = make("opt", **EVERY), inputs()
    wanted_whole = model(**given).logits
    media = model.encode_media(given["pixel_values"])
    wanted = prefill_and_step(model, media, given)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for one, other in zip(prefill_and_step(compiled, media, given), wanted, strict=True):
        assert_close(one, other, atol=1e-4, rtol=1e-4)
    assert_close(compiled(**given).logits, wanted_whole, atol=1e-4, rtol=1e-4)
    torch._dynamo.reset()
