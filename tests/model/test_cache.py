"""A cache with room holds what transformers' own holds, whatever is done with it."""

import copy

import pytest
import torch
from transformers import DynamicCache

from flamboyance.model.cache import ROOM, RoomyLayer, branch, roomy
from tests.model.families import images, make, prompt

HEADS, WIDTH = 2, 3


def states(rows: int, tokens: int, random: torch.Generator):
    return tuple(torch.randn(rows, HEADS, tokens, WIDTH, generator=random) for _ in range(2))


def same(ours, theirs) -> bool:
    return all(
        torch.equal(a.keys, b.keys) and torch.equal(a.values, b.values)
        for a, b in zip(ours.layers, theirs.layers, strict=True)
    )


def grow(caches, rows: int, tokens: int, random: torch.Generator) -> None:
    for layer in range(2):
        keys, values = states(rows, tokens, random)
        found = [cache.update(keys, values, layer) for cache in caches]
        for one, other in zip(*found, strict=True):
            assert torch.equal(one, other)


def test_beams():
    """A prompt, branched, then more tokens than there is room for, reordered within each prompt's rows."""
    random = torch.Generator().manual_seed(0)
    prompt, reference = DynamicCache(), DynamicCache()
    grow([prompt, reference], 2, 7, random)
    ours = branch(prompt, 3)
    reference.batch_repeat_interleave(3)
    for step in range(2 * ROOM + 5):
        grow([ours, reference], 6, 1, random)
        if step % 2:
            order = torch.cat([torch.randint(0, 3, (3,), generator=random) + 3 * row for row in range(2)])
            ours.reorder_cache(order)
            reference.reorder_cache(order)
        assert same(ours, reference)
    assert ours.get_seq_length() == 7 + 2 * ROOM + 5
    assert prompt.get_seq_length() == 7 and len(prompt.layers[0].keys) == 2  # as it was


def test_greedy():
    random = torch.Generator().manual_seed(1)
    ours, reference = roomy(), DynamicCache()
    for tokens in (5, *[1] * (ROOM + 3), 9):
        grow([ours, reference], 2, tokens, random)
    assert same(ours, reference) and all(isinstance(layer, RoomyLayer) for layer in ours.layers)


@pytest.mark.parametrize("times", [1, 2])
def test_branches_do_not_see_each_other(times):
    random = torch.Generator().manual_seed(2)
    trunk, reference = roomy(), DynamicCache()
    grow([trunk, reference], 2, 4, random)
    grow([trunk, reference], 2, 1, random)
    first, second = branch(trunk, times), branch(trunk, times)
    other = copy.deepcopy(reference)
    for cache in (reference, other):
        cache.batch_repeat_interleave(times)
    for _ in range(3):
        grow([first, reference], 2 * times, 1, random)
        grow([second, other], 2 * times, 1, random)
    assert same(first, reference) and same(second, other) and trunk.get_seq_length() == 5


def test_crop_and_go_on():
    random = torch.Generator().manual_seed(3)
    ours, reference = roomy(), DynamicCache()
    grow([ours, reference], 1, 6, random)
    for cache in (ours, reference):
        cache.crop(-2)
    grow([ours, reference], 1, 3, random)
    assert same(ours, reference) and ours.get_seq_length() == 7


def test_rows_that_change_in_number():
    random = torch.Generator().manual_seed(4)
    ours, reference = roomy(), DynamicCache()
    grow([ours, reference], 3, 6, random)
    for cache in (ours, reference):
        cache.batch_select_indices(torch.tensor([2, 0]))
    grow([ours, reference], 2, 1, random)
    assert same(ours, reference)


def test_a_cache_of_inference_mode_goes_on_outside():
    random = torch.Generator().manual_seed(5)
    ours, reference = roomy(), DynamicCache()
    with torch.inference_mode():
        grow([ours, reference], 1, 6, random)
    grow([ours, reference], 1, 1, random)
    assert same(ours, reference)


def test_other_caches_are_refused():
    with pytest.raises(ValueError, match=r"DynamicCache.*dict|dict.*DynamicCache"):
        branch({}, 2)


CALL = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}


@pytest.mark.parametrize("family", ["llama", "opt", "mpt", "mosaic_gpt", "gptj"])
def test_generating_does_not_change_the_given_cache(family):
    """Another question after the same text has the answer that it has without a cache."""
    model = make(family)
    text, first, second = torch.tensor([prompt(4)]), torch.tensor([[5, 6, 7]]), torch.tensor([[8, 9]])
    media = model.encode_media(images(1))
    cache = model(text, media=media, use_cache=True).past_key_values
    for question in (first, second, first):
        whole = torch.cat([text, question], dim=1)
        expected = model.generate(whole, media=media, **CALL)
        assert torch.equal(model.generate(whole, media=media, past_key_values=cache, **CALL), expected)
        assert cache.get_seq_length() == text.shape[1]


@pytest.mark.parametrize("family", ["llama", "opt", "mpt"])
@pytest.mark.parametrize("beams", [1, 2])
def test_a_cache_a_mask_and_a_text_that_do_not_fit_are_refused(family, beams):
    model = make(family)
    text, more = torch.tensor([prompt(4)]), torch.tensor([[5, 6, 7]])
    media = model.encode_media(images(1))

    def cache():
        return model(text, media=media, use_cache=True).past_key_values

    width, new = text.shape[1], more.shape[1]
    for ids, known, mask in (
        (text, cache(), None),  # the cache holds it all
        (more, cache(), None),  # neither the whole text nor a mask of it
        (more, cache(), torch.ones(1, width + new + 2)),
        (text, None, torch.ones(1, width + 4)),
    ):
        given = {"attention_mask": mask, "past_key_values": known, "num_beams": beams}
        with pytest.raises(ValueError, match="cache"):
            model.generate(ids, media=media, **given, **CALL)
    with pytest.raises(ValueError, match="attention_mask"):
        model(more, past_key_values=cache(), media=media, attention_mask=torch.ones(1, new))
    with pytest.raises(ValueError, match="attention_mask"):
        model.score(text, [[3]], media=media, attention_mask=torch.ones(1, width + 4))
