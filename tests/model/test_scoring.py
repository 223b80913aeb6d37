"""Scores of candidates are the log-probabilities of the prompts with the candidates written out."""

import pytest
import torch
from torch.testing import assert_close
from transformers import DynamicCache

from tests.model.families import images, make, pad_left, prompt

CANDIDATES = [[7], [7, 9, 11], [12, 13], [5, 6, 7, 8, 9], [7, 9]]


@pytest.fixture(scope="module")
def models():
    made = {}
    return lambda family: made.setdefault(family, make(family))


@torch.no_grad()
def by_hand(model, row, pixels, candidate):
    """(tokens,) log-probability of each of the candidate's tokens after an unpadded prompt."""
    logits = model(torch.tensor([row + candidate]), pixel_values=pixels).logits[0].float()
    return logits[len(row) - 1 : -1].log_softmax(-1).gather(1, torch.tensor(candidate)[:, None])[:, 0]


@pytest.mark.parametrize("family", ["opt", "mpt", "mosaic_gpt", "llama", "gemma3_text", "gpt_neo"])
@pytest.mark.parametrize("normalize", ["sum", "mean"])
def test_exact_under_left_padding(models, family, normalize):
    model = models(family)
    rows, counts = [prompt(3, 4), prompt(9, 2, 5, seed=1, lead=2), prompt(1, seed=2)], [2, 3, 1]
    pixels = images(*counts)
    scores = model.score(
        **pad_left(rows), pixel_values=pixels, media_counts=counts, candidates=CANDIDATES, normalize=normalize
    )
    for i, (row, count) in enumerate(zip(rows, counts, strict=True)):
        each = [by_hand(model, row, pixels[i : i + 1, :count], c) for c in CANDIDATES]
        expected = torch.stack([getattr(x, normalize)() for x in each])
        assert_close(scores[i], expected, atol=1e-4, rtol=1e-4)


def test_batch_size_and_a_cached_beginning_change_nothing(models):
    model = models("llama")
    row, pixels = prompt(3, 4), images(2)
    inputs = {"input_ids": torch.tensor([row]), "media": model.encode_media(pixels)}
    scores = model.score(**inputs, candidates=CANDIDATES)
    assert_close(model.score(**inputs, candidates=CANDIDATES, batch_size=1), scores)
    cache = DynamicCache()
    with torch.no_grad():
        seen = torch.ones(1, 4).long()
        model(
            inputs["input_ids"][:, :4], media=inputs["media"], past_key_values=cache, images_seen=seen, use_cache=True
        )
    assert_close(model.score(**inputs, candidates=CANDIDATES, past_key_values=cache), scores)
    assert cache.get_seq_length() == 4, "the caller's cache is left as it was"


def test_prompts_are_computed_once(models):
    model = models("llama")
    lengths = []
    hook = model.language_model.register_forward_pre_hook(
        lambda lm, args, kwargs: lengths.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    row = prompt(20, 20)
    model.score(torch.tensor([row]), pixel_values=images(2), candidates=CANDIDATES, batch_size=100)
    hook.remove()
    assert lengths == [len(row), 4], "the prompt, then all candidates' tokens but the last"
