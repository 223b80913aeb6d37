"""What must not change a result: batch, padding, cache, beams, how media are given, threads, who asks first."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.testing import assert_close
from transformers import DynamicCache

from flamboyance.model.media import Media, count_seen, prefill_layout
from tests.model.families import EOC, FAMILIES, IMAGE, PAD, VOCABULARY, images, make, pad_left, prompt

EVERY = list(FAMILIES)
SEVERAL = ["opt", "mpt", "mosaic_gpt", "llama", "gemma3_text", "gpt_neo"]


@pytest.fixture(scope="module")
def models():
    made = {}
    return lambda family: made.setdefault(family, make(family))


def generate(model, new=6, **inputs):
    """New tokens only; never ends early, so that lengths compare."""
    out = model.generate(**inputs, max_new_tokens=new, min_new_tokens=new, do_sample=False)
    return out[:, inputs["input_ids"].shape[1] :]


@torch.no_grad()
@pytest.mark.parametrize("family", EVERY)
def test_padded_batch_equals_single_rows(models, family):
    model = models(family)
    rows, counts = [prompt(3, 4), prompt(9, 2, 5, seed=1, lead=2), prompt(1, seed=2)], [2, 3, 1]
    pixels = images(*counts)
    batch = model(**pad_left(rows), pixel_values=pixels, media_counts=counts)
    together = generate(model, **pad_left(rows), pixel_values=pixels, media_counts=counts)
    for i, (row, count) in enumerate(zip(rows, counts, strict=True)):
        alone = model(torch.tensor([row]), pixel_values=pixels[i : i + 1, :count])
        assert_close(batch.logits[i, -len(row) :], alone.logits[0], atol=1e-4, rtol=1e-4)
        new = generate(model, input_ids=torch.tensor([row]), pixel_values=pixels[i : i + 1, :count])
        assert together[i].tolist() == new[0].tolist()


@torch.no_grad()
@pytest.mark.parametrize("family", EVERY)
def test_cached_equals_uncached(models, family):
    model = models(family)
    inputs = pad_left([prompt(3, 4), prompt(9, 2, seed=1, lead=2)])
    media = model.encode_media(images(2, 2))
    whole = model(**inputs, media=media).logits
    cache, steps, mask = DynamicCache(config=model.config.text_config), [], inputs["attention_mask"]
    for start, end in ((0, 5), (5, 6), (6, 7), (7, inputs["input_ids"].shape[1])):
        seen = count_seen(inputs["input_ids"], IMAGE, media)[:, start:end]
        steps.append(
            model(
                inputs["input_ids"][:, start:end],
                attention_mask=mask[:, :end],
                media=media,
                past_key_values=cache,
                use_cache=True,
                images_seen=seen,
            ).logits
        )
    real = mask.bool()
    assert_close(torch.cat(steps, 1)[real], whole[real], atol=1e-4, rtol=1e-4)
    cached, plain = (generate(model, **inputs, media=media, use_cache=use) for use in (True, False))
    assert cached.tolist() == plain.tolist()


@torch.no_grad()
@pytest.mark.parametrize("family", SEVERAL)
def test_beams_equal_a_hand_expanded_batch(models, family):
    """One beam step by hand: scores of beams are those of the rows written out."""
    model = models(family)
    rows, pixels = [prompt(3, 4), prompt(5, 2, seed=1)], images(2, 2)
    out = model.generate(
        **pad_left(rows),
        pixel_values=pixels,
        num_beams=3,
        num_return_sequences=3,
        max_new_tokens=5,
        min_new_tokens=5,
        length_penalty=0.0,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
    )
    for i, sequence in enumerate(out.sequences):
        row, pixel = rows[i // 3], pixels[i // 3 : i // 3 + 1]
        new = sequence[-5:]
        logits = model(torch.tensor([row + new.tolist()]), pixel_values=pixel).logits[0]
        logprobs = logits[len(row) - 1 : -1].log_softmax(-1)
        score = logprobs.gather(1, new[:, None]).sum()
        assert_close(out.sequences_scores[i], score, atol=1e-3, rtol=1e-3)
        assert IMAGE not in new and PAD not in new
    alone = model.generate(
        input_ids=torch.tensor(rows[1:]), pixel_values=pixels[1:], num_beams=3, max_new_tokens=5, min_new_tokens=5,
        length_penalty=0.0, do_sample=False,
    )  # fmt: skip
    assert alone[0, -5:].tolist() == out.sequences[3, -5:].tolist()


def dense_reference(block, x, latents, image_of_token):
    """Masked attention over all images' latents at once, written out: x (T, D), latents (M, L, Dv)."""
    attention, heads = block.attention, block.attention.heads
    q = attention.to_q(attention.norm(x)).view(len(x), heads, -1)
    k, v = attention.to_kv(latents.flatten(0, 1)).view(-1, 2, heads, q.shape[-1]).unbind(1)
    scores = torch.einsum("thd,shd->hts", q, k) * q.shape[-1] ** -0.5
    owner = torch.arange(len(latents)).repeat_interleave(latents.shape[1])
    scores = scores.masked_fill(owner[None, None] != image_of_token[None, :, None], float("-inf"))
    weights = scores.softmax(-1).nan_to_num(0.0)
    out = torch.einsum("hts,shd->thd", weights, v).flatten(1)
    x = x + attention.to_out(out) * block.attention_gate.tanh()
    return x + block.feed_forward(x) * block.feed_forward_gate.tanh()


@torch.no_grad()
@pytest.mark.parametrize("lengths", [[4] * 33, [1, 200, 3, 90], [0, 0, 5]])
def test_sparse_sight_equals_dense_masked_attention(models, lengths):
    model = models("llama")
    block = model.cross_attention[0]
    rows = [prompt(*lengths, lead=3), prompt(*lengths[::-1], seed=1, lead=3)]
    media = model.encode_media(images(*[len(lengths)] * 2))
    ids = torch.tensor(rows)
    x = torch.randn(*ids.shape, model.config.text_config.hidden_size)
    layout = prefill_layout(count_seen(ids, IMAGE, media), media)
    got = block(x, *media.keys_values[0], layout)
    for b in range(2):
        own = torch.cumsum(ids[b] == IMAGE, 0) - 1
        latents = media.latents[b * len(lengths) : (b + 1) * len(lengths)]
        assert_close(got[b], dense_reference(block, x[b], latents, own), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_rows_after_one_prompt_are_further_queries_of_its_image(models):
    """40 candidates of three tokens, after two prompts: each prompt's 60 tokens are one block, of the last image."""
    model = models("llama")
    block, media = model.cross_attention[0], model.encode_media(images(2, 1))
    x = torch.randn(40, 3, model.config.text_config.hidden_size)
    seen = torch.tensor([2, 1]).repeat_interleave(20)[:, None].expand(-1, 3)
    layout = prefill_layout(seen, media)
    assert layout.image_of_block.tolist() == [1, 2] and layout.token_of_query.shape == (2, 60)
    got = block(x, *media.keys_values[0], layout)
    for row in (0, 19, 20, 39):
        one = prefill_layout(seen[[0, 20]], media)
        alone = block(x[[row % 20, 20 + row % 20]], *media.keys_values[0], one)
        assert_close(got[row], alone[row // 20], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_33_images_in_one_prompt(models):
    """The whole model, against the language model run with dense attention written out before each layer."""
    model = models("llama")
    row = prompt(*[3] * 33)
    media = model.encode_media(images(33))
    logits = model(torch.tensor([row]), media=media).logits[0]
    own = torch.cumsum(torch.tensor(row) == IMAGE, 0) - 1
    hooks = []
    for index, block in zip(model.cross_attention_layers, model.cross_attention, strict=True):

        def dense(layer, args, block=block):
            return (dense_reference(block, args[0][0], media.latents, own)[None], *args[1:])

        hooks.append(model.language_model.model.layers[index].register_forward_pre_hook(dense))
    try:
        table = model.language_model.get_input_embeddings()
        embeds = model.added_tokens.embed(torch.tensor([row]), table)
        out = model.language_model(inputs_embeds=embeds).logits[0]  # outside `conditioned`: only these hooks act
    finally:
        for hook in hooks:
            hook.remove()
    assert_close(logits[:, :VOCABULARY], out[:, :VOCABULARY], atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("family", SEVERAL)
def test_media_given_equal_images_given(models, family):
    model = models(family)
    inputs, counts = pad_left([prompt(3, 4), prompt(2, seed=1)]), [2, 1]
    pixels = images(*counts)
    media = model.encode_media(pixels, counts)
    assert len(media.latents) == 3, "padding images are not encoded"
    a = model(**inputs, pixel_values=pixels, media_counts=counts).logits
    assert_close(model(**inputs, media=media).logits, a, atol=0, rtol=0)
    poisoned = pixels.clone()
    poisoned[1, 1] = float("nan")
    assert_close(model(**inputs, pixel_values=poisoned, media_counts=counts).logits, a, atol=0, rtol=0)
    shared = Media(media.latents, media.keys_values, ((0, 1), (0,)))
    with pytest.raises(AssertionError):
        assert_close(model(**inputs, media=shared).logits[1], a[1])


@torch.no_grad()
@pytest.mark.parametrize("family", EVERY)
def test_conversation_continued_with_a_new_image(models, family):
    model = models(family)
    first, second = prompt(3, 4), prompt(5, seed=1)
    media = model.encode_media(images(2))
    turn = model.generate(
        input_ids=torch.tensor([first]), media=media, max_new_tokens=4, min_new_tokens=4, do_sample=False,
        return_dict_in_generate=True,
    )  # fmt: skip
    longer = media.append(model.encode_media(images(1, seed=5)))
    whole = torch.cat([turn.sequences, torch.tensor([second])], 1)
    continued = generate(model, input_ids=whole, media=longer, past_key_values=turn.past_key_values)
    afresh = generate(model, input_ids=whole, media=longer)
    assert continued.tolist() == afresh.tolist()
    other = media.append(model.encode_media(images(1, seed=6)))
    change = model(whole, media=other).logits[0, -1] - model(whole, media=longer).logits[0, -1]
    assert change.abs().max() > 1e-3, "the new image matters"


@torch.no_grad()
def test_direct_cached_forward_sees_the_newest_image(models):
    """A manual loop needs to say nothing: the last <image> tokens belong to the last images."""
    model = models("llama")
    first, second = prompt(3, 4), prompt(5, seed=1)
    media = model.encode_media(images(3))
    whole = model(torch.tensor([first + second]), media=media).logits[:, -len(second) :]
    start = Media(media.latents, media.keys_values, ((0, 1),))
    cache = model(torch.tensor([first]), media=start, use_cache=True).past_key_values
    new = model(torch.tensor([second]), media=media, past_key_values=cache).logits
    assert_close(new, whole, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_rows_without_images_and_text_alone(models):
    model = models("llama")
    with_image, without = prompt(3), [*prompt(0)[1:], 5, 6, 7]
    inputs = pad_left([with_image, without])
    mixed = model(**inputs, pixel_values=images(1, 0), media_counts=[1, 0]).logits
    alone = model(torch.tensor([without])).logits
    assert_close(mixed[1, -len(without) :], alone[0], atol=1e-4, rtol=1e-4)
    together = generate(model, **inputs, pixel_values=images(1, 0), media_counts=[1, 0])
    assert together[1].tolist() == generate(model, input_ids=torch.tensor([without]))[0].tolist()


@torch.no_grad()
def test_with_shut_gates_it_is_the_language_model(models):
    model = make("llama", seed=3)
    for block in model.cross_attention:
        block.attention_gate.zero_()
        block.feed_forward_gate.zero_()
    ids = torch.tensor([[*prompt(0)[1:], 5, 6, 7, 8]])
    assert_close(model(ids).logits[..., :VOCABULARY], model.language_model(ids).logits[..., :VOCABULARY])


@torch.no_grad()
def test_the_language_model_alone_is_untouched(models):
    model = models("llama")
    ids = torch.tensor([[5, 6, 7]])
    keys = set(model.language_model.state_dict())
    fresh = type(model.language_model)(copy.deepcopy(model.config.text_config))
    assert keys == set(fresh.state_dict())
    fresh.load_state_dict(model.language_model.state_dict())
    assert_close(model.language_model(ids).logits, fresh(ids).logits, atol=0, rtol=0)


def test_two_threads_share_a_model(models):
    model = models("llama")
    jobs = [
        ({"input_ids": torch.tensor([prompt(3, 4, seed=s)]), "pixel_values": images(2, seed=s)}, 2 + s % 3)
        for s in range(6)
    ]

    def run(job):
        inputs, beams = job
        return model.generate(**inputs, max_new_tokens=8, num_beams=beams, do_sample=False).tolist()

    one_after_another = [run(job) for job in jobs]
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(run, jobs)) == one_after_another


@torch.no_grad()
def test_chunked_prefill_and_prompt_lookup(models):
    model = models("llama")
    inputs = {"input_ids": torch.tensor([prompt(3, 4, 5)]), "pixel_values": images(3)}
    plain = generate(model, **inputs)
    chunked = model.generate(**inputs, max_new_tokens=6, min_new_tokens=6, do_sample=False, prefill_chunk_size=4)
    assert chunked[:, -6:].tolist() == plain.tolist()
    looked_up = model.generate(
        **inputs, max_new_tokens=6, min_new_tokens=6, do_sample=False, prompt_lookup_num_tokens=3
    )
    assert looked_up[:, -6:].tolist() == plain.tolist()


@torch.no_grad()
def test_returned_sequences_sampling_and_streaming(models):
    from transformers import TextStreamer

    model = models("llama")
    inputs = {"input_ids": torch.tensor([prompt(3), prompt(3, seed=4)]), "pixel_values": images(1, 1)}
    torch.manual_seed(0)
    sampled = model.generate(**inputs, do_sample=True, num_return_sequences=4, max_new_tokens=5, temperature=2.0)
    assert sampled.shape[0] == 8 and len({tuple(row) for row in sampled.tolist()}) > 2
    assert not (sampled[:, 4:] == IMAGE).any()

    class Seen(TextStreamer):
        def __init__(self):
            self.tokens = []

        def put(self, value):
            self.tokens += value.flatten().tolist()

        def end(self):
            self.tokens.append("end")

    streamer = Seen()
    one = {name: value[:1] for name, value in inputs.items()}
    out = model.generate(**one, max_new_tokens=4, do_sample=False, streamer=streamer)
    assert streamer.tokens == [*out[0].tolist(), "end"]


@torch.no_grad()
@pytest.mark.parametrize("beams", [1, 3])
def test_images_and_padding_never_come_and_raw_logits_stay_raw(models, beams):
    out = models("opt").generate(
        torch.tensor([prompt(3, 4)]), pixel_values=images(2), num_beams=beams, max_new_tokens=3, min_new_tokens=3,
        do_sample=False, return_dict_in_generate=True, output_scores=True, output_logits=True,
    )  # fmt: skip
    for scores, logits in zip(out.scores, out.logits, strict=True):
        barred = scores.isinf().all(0).nonzero().flatten().tolist()
        assert {IMAGE, PAD} <= set(barred) <= {IMAGE, PAD, EOC}  # the end of a chunk has its turn after three tokens
        assert logits.isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "gpt2", "mpt"])
def test_padding_without_a_mask_is_seen_as_padding(models, family):
    """Greedy, beams, several sequences and candidates alike."""
    model = models(family)
    inputs = pad_left([prompt(3), prompt(9, seed=1)])
    media = model.encode_media(images(1, 1))
    for options in ({}, {"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}):
        told = generate(model, **inputs, media=media, **options)
        assert torch.equal(generate(model, input_ids=inputs["input_ids"], media=media, **options), told)
    told = model.score(**inputs, media=media, candidates=[[5, 6], [7]])
    assert_close(model.score(inputs["input_ids"], [[5, 6], [7]], media=media), told)
