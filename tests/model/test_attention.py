"""Attention to what rows share gives what every row with its own copy gives."""

import copy

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache
from transformers.models.mpt.modeling_mpt import MptAttention

from flamboyance.model import attention, mpt
from flamboyance.model.attention import attend, joined
from flamboyance.model.cache import branch, roomy

from . import families

HEADS, WIDTH = 4, 6
SHARED = attention.SHARED_BY_REGISTER | attention.SHARED_BY_CLASS


def pair(rows: int, heads: int, tokens: int, random: torch.Generator):
    return tuple(torch.randn(rows, heads, tokens, WIDTH, generator=random) for _ in range(2))


def whole(query, parts, mask, scale=None):
    keys, values = (joined([p[i] for p in parts], len(query)) for i in range(2))
    keys, values = (t.repeat_interleave(HEADS // t.shape[1], 1) for t in (keys, values))
    return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scale)


@pytest.mark.parametrize("heads", [HEADS, 2, 1])  # of keys
@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("texts", [(), (1,), (2,), (1, 2), (1, 2, 6)])
@pytest.mark.parametrize("most", [attention.MOST_SCORES, 0])
def test_equals_a_copy_for_each_row(monkeypatch, heads, tokens, texts, most):
    monkeypatch.setattr(attention, "MOST_SCORES", most)
    random = torch.Generator().manual_seed(0)
    query = torch.randn(6, HEADS, tokens, WIDTH, generator=random)
    before = [pair(count, heads, 5 + count, random) for count in texts]
    own = pair(6, heads, 4, random)
    length = sum(keys.shape[2] for keys, _ in (*before, own))
    seen = torch.rand(6, 1, tokens, length, generator=random) < 0.7
    seen[..., -1] = True  # a row that sees nothing has no meaning
    bias = torch.randn(1, HEADS, tokens, length, generator=random)
    for mask, scale in ((seen, None), (bias, 0.3), (None, None)):
        found = attend(query, *own, before, mask, scale)
        assert torch.allclose(found, whole(query, [*before, own], mask, scale), atol=1e-5)


def test_which_families_share():
    sharing = {name for name in families.FAMILIES if families.make(name).shares_prompts}
    assert sharing == set(families.FAMILIES) & SHARED
    assert sharing == set(families.FAMILIES) - {"gptj", "gpt_neo"}


def test_a_language_model_with_another_attention_keeps_it():
    model = families.make("llama").language_model
    model.set_attn_implementation("eager")
    attention.install_shared_attention(model)
    assert not attention.shares_prompts(model) and model.config._attn_implementation == "eager"


@pytest.mark.parametrize("other", ["sdpa", "eager"])
def test_an_attention_that_is_chosen_later(other):
    """Nothing is shared any more; what was shared before becomes the rows' own."""
    model = families.make("llama")
    given, options = prompts(model), {"do_sample": False, "num_beams": 3, "max_new_tokens": 5, "min_new_tokens": 5}
    expected = model.generate(**given, **options)
    assert model.shares_prompts
    start = branch(_read(model, given, 6), 1, share=True)
    model.language_model.set_attn_implementation(other)
    assert not model.shares_prompts
    assert torch.equal(model.generate(**given, **options), expected)
    assert torch.equal(model.generate(**given, **options, past_key_values=start), expected)


@pytest.fixture(params=sorted(set(families.FAMILIES) & SHARED))
def model(request):
    return families.make(request.param)


def prompts(model):
    """Two prompts, of different lengths, with an image each."""
    random = torch.Generator().manual_seed(3)
    ids = torch.randint(3, families.VOCABULARY, (2, 9), generator=random)
    ids[0, 3], ids[1, 1] = families.IMAGE, families.IMAGE
    mask = torch.ones_like(ids)
    ids[0, :2], mask[0, :2] = families.PAD, 0
    pixels = torch.randn(2, 1, 1, 3, families.PIXELS, families.PIXELS, generator=random)
    return {"input_ids": ids, "attention_mask": mask, "media": model.encode_media(pixels)}


def _read(model, given, tokens: int):
    """A cache of the prompts' first tokens."""
    cache = roomy()
    mask, media = given["attention_mask"][:, :tokens], given["media"]
    with torch.no_grad():
        ids = given["input_ids"][:, :tokens]
        model(ids, attention_mask=mask, media=media, past_key_values=cache, use_cache=True)
    return cache


def test_new_tokens_alone_after_a_cache(model):
    """The mask says what the cache holds; beams must not read the new tokens twice."""
    given = prompts(model)
    options = {"do_sample": False, "num_beams": 3, "max_new_tokens": 4, "min_new_tokens": 4}
    expected = model.generate(**given, **options)[:, 9:]
    for known in (6, 8):
        new = {**given, "input_ids": given["input_ids"][:, known:]}
        found = model.generate(**new, **options, past_key_values=_read(model, given, known))
        assert torch.equal(found[:, 9 - known :], expected)


def test_beams_and_candidates(model, monkeypatch):
    given, used = prompts(model), []
    plain = attention.attend
    monkeypatch.setattr(attention, "attend", lambda *a, **k: used.append(len(a[3])) or plain(*a, **k))
    for module in ("mosaic_gpt", "mpt"):
        monkeypatch.setattr(f"flamboyance.model.{module}.attend", attention.attend)
    options = {"do_sample": False, "num_beams": 3, "max_new_tokens": 6, "min_new_tokens": 6}
    options |= {"return_dict_in_generate": True, "output_scores": True}
    candidates = [[5, 6, 7], [5], [9, 4], [11, 3, 2, 8], [5, 6, 8]]

    def answers():
        out = model.generate(**given, **options)
        return out.sequences, torch.stack(out.scores), model.score(**given, candidates=candidates, batch_size=6)

    sequences, scores, likelihoods = answers()
    assert used and set(used) == {1}
    used.clear()
    monkeypatch.setattr(type(model), "shares_prompts", False)
    expected = answers()
    assert not used
    assert torch.equal(sequences, expected[0])
    assert torch.allclose(scores, expected[1], atol=1e-4)
    assert torch.allclose(likelihoods, expected[2], atol=1e-4)


def test_a_cache_that_is_continued_in_two_ways(model):
    """A beginning for both prompts, then their own tokens, then candidates: three levels."""
    given = prompts(model)
    ids, mask, media = given["input_ids"], given["attention_mask"], given["media"]
    ids[0], mask[0] = ids[1], 1  # the same beginning
    ids[1, 7] = 5
    start = roomy()
    media = media.select([0, 0], ((0,), (1,)))
    with torch.no_grad():
        model(input_ids=ids[:1, :6], media=media.select([0], ((0,),)), past_key_values=start, use_cache=True)
    known = branch(start, 1, share=True)
    candidates = [[5, 6, 7], [9, 4]]
    expected = model.score(ids, candidates, mask, media=media)
    found = model.score(ids, candidates, mask, media=media, past_key_values=known)
    assert torch.allclose(found, expected, atol=1e-4)
    options = {"do_sample": False, "num_beams": 2, "max_new_tokens": 4, "min_new_tokens": 4}
    wanted = model.generate(ids, media=media, attention_mask=mask, **options)
    assert torch.equal(model.generate(ids, media=media, attention_mask=mask, past_key_values=known, **options), wanted)
    assert known.get_seq_length() == 6  # as it was


def test_what_is_shared_becomes_the_rows_own_when_they_part():
    random = torch.Generator().manual_seed(0)
    trunk = roomy()
    trunk.update(*pair(2, HEADS, 5, random), 0)
    for change in ("crop", "select", "repeat"):
        shared, copied = branch(trunk, 3, share=True), branch(trunk, 3)
        new = pair(6, HEADS, 2, random)
        for cache in (shared, copied):
            cache.update(*new, 0)
            if change == "crop":
                cache.crop(-3)
            elif change == "select":
                cache.batch_select_indices(torch.tensor([4, 1]))
            else:
                cache.batch_repeat_interleave(2)
        assert not shared.layers[0].before
        assert torch.equal(shared.layers[0].keys, copied.layers[0].keys)
        assert torch.equal(shared.layers[0].values, copied.layers[0].values)
    shared = branch(trunk, 3, share=True)
    shared.reset()
    assert shared.get_seq_length() == 0 and trunk.get_seq_length() == 5


def test_branches_do_not_see_what_is_cut_off_and_written_anew():
    random = torch.Generator().manual_seed(0)
    trunk = roomy()
    trunk.update(*pair(2, HEADS, 5, random), 0)
    kept = trunk.layers[0].keys.clone()
    for share in (True, False):
        lent = branch(trunk, 1, share=share)
        other = branch(trunk, 1)
        other.crop(-2)
        other.update(*pair(2, HEADS, 2, random), 0)
        own = branch(trunk, 1, share=share)
        own.reset()
        layer = lent.layers[0]
        assert torch.equal(layer.before[0][0] if share else layer.keys, kept)
    trunk.crop(-2)
    lent = branch(trunk, 1, share=True)
    before = lent.layers[0].before[0][0].clone()
    trunk.crop(-1)
    trunk.update(*pair(2, HEADS, 1, random), 0)
    assert torch.equal(lent.layers[0].before[0][0], before)


def test_changes_before_anything_is_added():
    random = torch.Generator().manual_seed(0)
    trunk = roomy()
    trunk.update(*pair(2, HEADS, 5, random), 0)
    for change, shape in (("crop", (2, 3)), ("select", (1, 5)), ("repeat", (4, 5))):
        cache = branch(trunk, 3, share=True)
        if change == "crop":
            cache.crop(-2)
        elif change == "select":
            cache.batch_select_indices(torch.tensor([1]))
        else:
            cache.batch_repeat_interleave(2)
        keys = cache.layers[0].keys
        assert (len(keys), keys.shape[2]) == shape
    again = branch(branch(trunk, 1, share=True), 3)
    assert torch.equal(again.layers[0].keys, trunk.layers[0].keys.repeat_interleave(3, 0))


def test_single_tokens_in_bfloat16_are_written_out(monkeypatch):
    """And give what fused attention gives, to the precision."""
    monkeypatch.setattr(attention, "sdpa_attention_forward", None)
    random = torch.Generator().manual_seed(0)
    query = torch.randn(3, HEADS, 1, WIDTH, generator=random).bfloat16()
    keys, values = (t.bfloat16() for t in pair(3, 2, 9, random))
    seen = torch.ones(3, 1, 1, 9, dtype=torch.bool)
    seen[1, ..., :4] = False
    with torch.no_grad():
        found, _ = attention.attention(None, query, keys, values, seen)
    wanted = whole(query.float(), [(keys.float(), values.float())], seen).transpose(1, 2)
    assert found.dtype == torch.bfloat16 and torch.allclose(found.float(), wanted, atol=0.03)


@pytest.mark.parametrize("masked", [True, False])  # transformers gives no mask where no row has padding
def test_short_texts_that_are_learned_from_in_bfloat16_are_written_out(monkeypatch, masked):
    """And give what fused attention gives, and its gradients, to the precision."""
    monkeypatch.setattr(attention, "bfloat16_is_slow", lambda: False)
    random = torch.Generator().manual_seed(0)
    tokens = 9
    query = torch.randn(3, HEADS, tokens, WIDTH, generator=random).bfloat16()
    keys, values = (t.bfloat16() for t in pair(3, 2, tokens, random))
    seen = torch.ones(tokens, tokens, dtype=torch.bool).tril()[None, None].repeat(3, 1, 1, 1)
    if masked:
        seen[1, ..., :4] = False
        seen[1, 0, range(4), range(4)] = True  # a row that sees nothing has no meaning
    ours, theirs = ([t.detach().to(kind).requires_grad_() for t in (query, keys, values)]
                    for kind in (torch.bfloat16, torch.float32))  # fmt: skip
    wanted = whole(theirs[0], [(theirs[1], theirs[2])], seen).transpose(1, 2)
    toward = torch.randn(wanted.shape, generator=random)
    monkeypatch.setattr(attention, "sdpa_attention_forward", None)
    found, _ = attention.attention(torch.nn.Module(), *ours, seen if masked else None)
    assert found.dtype == torch.bfloat16 and torch.allclose(found.float(), wanted, atol=0.03)
    gradients = (torch.autograd.grad(out, parts, toward.to(out.dtype))
                 for out, parts in ((found, ours), (wanted, theirs)))  # fmt: skip
    for gradient, exact in zip(*gradients, strict=True):
        assert torch.allclose(gradient.float(), exact, atol=0.06)


def test_attention_in_both_directions_is_left_to_transformers(monkeypatch):
    """Without a mask it has to be asked whether later tokens are seen: Gemma 3 can be told so."""
    monkeypatch.setattr(attention, "bfloat16_is_slow", lambda: False)
    random = torch.Generator().manual_seed(0)
    query, keys, values = (torch.randn(1, HEADS, 5, WIDTH, generator=random).bfloat16() for _ in range(3))
    module = torch.nn.Module()
    module.is_causal = False
    found, _ = attention.attention(module, query.requires_grad_(), keys, values, None)
    wanted = F.scaled_dot_product_attention(query, keys, values).transpose(1, 2)
    assert torch.allclose(found, wanted, atol=0.03)


def test_when_scores_are_written_out(monkeypatch):
    monkeypatch.setattr(attention, "bfloat16_is_slow", lambda: False)

    def slow(tokens: int, learned: bool, kind: torch.dtype = torch.bfloat16, dropout: float = 0.0) -> bool:
        return attention.is_slow(torch.zeros(2, 1, tokens, 4, dtype=kind, requires_grad=learned), dropout)

    assert slow(1, False) and not slow(2, False)
    assert slow(2, True) and slow(attention.WRITTEN_OUT, True) and not slow(attention.WRITTEN_OUT + 1, True)
    assert not slow(2, True, torch.float32) and not slow(2, True, dropout=0.1)
    monkeypatch.setattr(attention, "bfloat16_is_slow", lambda: True)
    assert not slow(2, True)


@pytest.mark.parametrize("family", sorted(attention.SHARED_BY_CLASS))
def test_families_with_a_class_of_their_own_write_short_texts_out_too(monkeypatch, family):
    monkeypatch.setattr(attention, "bfloat16_is_slow", lambda: False)
    monkeypatch.setattr(F, "scaled_dot_product_attention", None)
    model = families.make(family).language_model.bfloat16().train().requires_grad_(True)
    model(input_ids=torch.tensor([[3, 4, 5, 6]]), labels=torch.tensor([[3, 4, 5, 6]])).loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("clip", [None, 0.5])
def test_mpt_by_fused_attention_is_transformers(clip):
    torch.manual_seed(0)
    config = AutoConfig.for_model("mpt", **families.FAMILIES["mpt"], attn_config={"clip_qkv": clip})
    plain = AutoModelForCausalLM.from_config(config).eval()
    fused = copy.deepcopy(plain)
    mpt.fuse_mpt_attention(fused)
    ids, mask = torch.randint(0, 90, (2, 11)), torch.ones(2, 11, dtype=torch.long)
    mask[0, :4] = 0
    caches, real = [DynamicCache(), DynamicCache()], mask.bool()
    with torch.no_grad():
        for columns in (slice(0, 8), slice(8, 11)):
            given = {"input_ids": ids[:, columns], "attention_mask": mask[:, : columns.stop]}
            wanted, found = (m(**given, past_key_values=c).logits for m, c in zip((plain, fused), caches, strict=True))
            assert torch.allclose(found[real[:, columns]], wanted[real[:, columns]], atol=1e-5)
            assert found.isfinite().all()


def test_mpt_learns_through_fused_attention_as_through_transformers():
    torch.manual_seed(0)
    plain = AutoModelForCausalLM.from_config(AutoConfig.for_model("mpt", **families.FAMILIES["mpt"]))
    fused = copy.deepcopy(plain)
    mpt.fuse_mpt_attention(fused)
    ids = torch.randint(0, 90, (2, 11))
    for model in (plain, fused):
        model(input_ids=ids, labels=ids).loss.backward()
    for name, p in plain.named_parameters():
        assert torch.allclose(fused.get_parameter(name).grad, p.grad, atol=1e-6), name


def test_mpt_in_bfloat16_tells_near_tokens_apart():
    """ALiBi is counted from the query: from the last token, a thousand places on, neighbours would be one number."""
    length = 1000
    bias = torch.arange(1 - length, 1)[None, None] * 0.84
    query = torch.zeros(1, 1, length, 8, dtype=torch.bfloat16)
    hidden = torch.ones(length, length, dtype=torch.bool).triu(1)[None, None]
    alibi = mpt.Alibi(bias)
    mask = alibi.mask(query, length, hidden)
    for place in (0, 200, 999):
        wanted = (torch.arange(place + 1) - place) * 0.84
        near = slice(max(place - 8, 0), place + 1)
        assert torch.allclose(mask[0, 0, place, near].float(), wanted[near], atol=0.02)
    assert alibi.mask(query, length, hidden) is mask  # once for all layers


def test_mpt_behind_hooks_of_several_devices():
    """accelerate calls a forward that it has kept."""
    model = families.make("mpt").language_model
    for module in model.modules():
        if type(module) is mpt.FusedMptAttention:
            module.__class__ = MptAttention
            module._old_forward = module.forward
    mpt.fuse_mpt_attention(model)
    kept = [m._old_forward.__func__ for m in model.modules() if "_old_forward" in vars(m)]
    assert kept and set(kept) == {mpt.FusedMptAttention.forward}
