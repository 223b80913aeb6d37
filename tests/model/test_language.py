"""Finding the decoder layers of language models that nobody has named."""

import copy

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from flamboyance import FlamingoForConditionalGeneration
from flamboyance.model.cache import branch
from flamboyance.model.language import AddedTokens, accepted, find_decoder_layers
from tests.model.families import FAMILIES, images, make, pad_left, prompt

NAMES = {
    "opt": "model.decoder.layers",
    "mpt": "transformer.blocks",
    "mosaic_gpt": "transformer.blocks",
    "gpt_neox": "gpt_neox.layers",
    "gpt_neo": "transformer.h",
    "gptj": "transformer.h",
    "gpt2": "transformer.h",
}


def build(family: str, **options):
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **FAMILIES[family] | options))


def test_flamingos_may_share_a_language_model():
    """Each has its own blocks, whichever came first and whatever happens to the others'."""
    first = make("llama")
    config = copy.deepcopy(first.config)
    torch.manual_seed(1)
    second = FlamingoForConditionalGeneration(config, vision=first.vision, language_model=first.language_model)
    torch.manual_seed(1)
    alone = FlamingoForConditionalGeneration(config, first.vision, make("llama").language_model)
    text = pad_left([prompt(3, 2)]) | {"pixel_values": images(2)}
    expected = first(**text).logits
    assert torch.equal(second(**text).logits, alone(**text).logits)
    with torch.no_grad():
        for block in second.blocks:
            block.attention_gate.fill_(1)
    assert torch.equal(first(**text).logits, expected)
    assert torch.equal(copy.deepcopy(first)(**text).logits, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_decoder_layers_are_found(family):
    name, layers = find_decoder_layers(build(family))
    assert name == NAMES.get(family, "model.layers")
    depth = {"num_hidden_layers", "num_layers", "n_layers", "n_layer"} & FAMILIES[family].keys()
    assert len(layers) == FAMILIES[family][depth.pop()]


def test_experts_as_many_as_layers_are_not_mistaken_for_them():
    config = AutoConfig.for_model(
        "mixtral", **{k: v for k, v in FAMILIES["llama"].items() if k != "tie_word_embeddings"}, num_local_experts=3
    )
    assert find_decoder_layers(AutoModelForCausalLM.from_config(config))[0] == "model.layers"


def test_an_ambiguous_model_says_what_to_pass():
    model = build("llama")
    model.model.shadows = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))
    with pytest.raises(ValueError, match=r"model\.layers \(3\), model\.shadows \(3\).*decoder_layers"):
        find_decoder_layers(model)
    assert find_decoder_layers(model, "model.layers")[1] is model.model.layers
    with pytest.raises(ValueError, match=r"'model\.h'.*model\.layers"):
        find_decoder_layers(model, "model.h")


def test_added_rows_of_a_scaled_embedding_are_scaled_too():
    """Gemma multiplies its input rows by sqrt(width), not its tied head: an added row must do the same."""
    model = build("gemma3_text")
    added = AddedTokens(90, 3, model)
    assert added.tied and added.scale == pytest.approx(32**0.5)
    with torch.no_grad():
        added.embedding[0] = model.get_input_embeddings().weight[7]
        assert torch.allclose(added.embed(torch.tensor([[90]]), model.get_input_embeddings()),
                              model.get_input_embeddings()(torch.tensor([[7]])))  # fmt: skip


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("rows", [96, 93, 91])
def test_rows_beyond_the_tokenizer_are_not_predicted(gradients, rows):
    model = build("llama")
    added = AddedTokens(90, 3, model)
    hidden, logits = torch.randn(1, 2, 32), torch.randn(1, 2, rows)
    before = logits.clone()
    with torch.set_grad_enabled(gradients):
        out = added.extend_logits(hidden, logits)
    assert out.shape == (1, 2, 93 if gradients else max(93, rows))
    assert torch.equal(out[..., :90], before[..., :90])
    assert torch.allclose(out[..., 90:93], hidden @ added.head.T, atol=1e-6)


@torch.no_grad()
def test_logits_of_a_whole_text_lie_in_one_piece():
    model = make("opt")
    logits = model(torch.tensor([[5, 6, 7]])).logits
    assert logits.shape == (1, 3, 93) and logits.is_contiguous()


class Wrapped(nn.Module):
    """As PEFT's and torch.compile's wrappers: its forward names nothing of what it passes on."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neo", "opt", "mpt"])
def test_a_wrapped_language_model_gets_what_the_inner_one_takes(family):
    """Without its positions, left-padded text would change the logits."""
    model = make(family)
    inputs = pad_left([prompt(3, 4), prompt(2, 1, seed=1)])
    media = model.encode_media(images(2, 2))
    with torch.no_grad():
        expected = model(**inputs, media=media).logits
        options = {"position_ids": inputs["input_ids"], "nonsense": 1}
        inner = accepted(model.language_model, options)
        model.language_model = Wrapped(model.language_model)
        model.language_model.get_input_embeddings = model.language_model.inner.get_input_embeddings
        assert accepted(model.language_model, options) == inner
        torch.testing.assert_close(model(**inputs, media=media).logits, expected, atol=0, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "mpt", "mosaic_gpt"])
def test_the_cache_may_be_called_by_either_name(family):
    """transformers 5.24 renamed past_key_values to cache."""
    model = make(family)
    ids, media = torch.tensor([prompt(3, 4)]), model.encode_media(images(2))
    start = model(ids[:, :-1], media=media, use_cache=True)
    for name in ("past_key_values", "cache"):
        cache = branch(start.past_key_values, 1)
        out = model(ids[:, -1:], media=media, **{name: cache})
        torch.testing.assert_close(out.logits, model(ids, media=media).logits[:, -1:], atol=2e-5, rtol=1e-4)
        known = branch(start.past_key_values, 1)
        new = model.generate(ids, media=media, max_new_tokens=3, do_sample=False, **{name: known})
        assert torch.equal(new, model.generate(ids, media=media, max_new_tokens=3, do_sample=False))
    with pytest.raises(ValueError, match=r"past_key_values and cache"):
        model(ids[:, -1:], media=media, past_key_values=cache, cache=known)
