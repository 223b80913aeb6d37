"""Finding the decoder layers of language models that nobody has named."""

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from flamboyance.model.language import AddedTokens, find_decoder_layers
from tests.model.families import FAMILIES, make

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
    with pytest.raises(ValueError, match=r"no list of layers called 'model\.h'; it has model\.layers"):
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
