"""A language model that PEFT wrapped computes what it computed before, as long as its adapter is zero."""

import pytest
import torch
from peft import LoraConfig, TrainableTokensConfig, get_peft_model

from flamboyance.model.language import find_decoder_layers
from tests.model.families import images, make, pad_left, prompt

TARGETS = {
    "gpt2": "c_attn", "gpt_neo": "q_proj", "gptj": "q_proj", "opt": "q_proj", "mpt": "Wqkv", "mosaic_gpt": "Wqkv",
    "gpt_neox": "query_key_value", "llama": "q_proj", "gemma3_text": "q_proj",
}  # fmt: skip


@pytest.mark.parametrize(
    "family, task", [*((family, None) for family in TARGETS), ("gpt2", "CAUSAL_LM"), ("mpt", "CAUSAL_LM")]
)
def test_an_adapter_at_zero_changes_nothing(family, task):
    model = make(family)
    inputs = pad_left([prompt(3, 4), prompt(5, 2, seed=1, lead=2)]) | {"pixel_values": images(2, 2)}
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "num_beams": 2}
    with torch.no_grad():
        logits, told = model(**inputs).logits, model.generate(**inputs, **options)
        scores = model.score(**inputs, candidates=[[5, 6], [7]])
        config = LoraConfig(target_modules=[TARGETS[family]], r=2, task_type=task, fan_in_fan_out=family == "gpt2")
        model.language_model = get_peft_model(model.language_model, config)
        torch.testing.assert_close(model(**inputs).logits, logits, atol=1e-5, rtol=1e-4)
        assert torch.equal(model.generate(**inputs, **options), told)
        torch.testing.assert_close(model.score(**inputs, candidates=[[5, 6], [7]]), scores, atol=1e-5, rtol=1e-4)


# Around the output head: a tied one too, with or without calling the head inside, or a copy in its place.
HEADS = {
    "tokens": TrainableTokensConfig(token_indices=[3, 4], target_modules=["wte"]),
    "tokens of an adapter": LoraConfig(target_modules=["c_attn"], r=2, trainable_token_indices=[3, 4]),
    "adapter": LoraConfig(target_modules=["lm_head"], r=2),
    "copy": LoraConfig(target_modules=["c_attn"], r=2, modules_to_save=["lm_head"]),
}


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.filterwarnings("ignore")  # PEFT's on tied weights
def test_an_adapter_on_the_output_head_leaves_the_added_tokens(kind):
    model = make("gpt2")
    inputs = pad_left([prompt(3, 4), prompt(5, 2, seed=1, lead=2)]) | {"pixel_values": images(2, 2)}
    with torch.no_grad():
        logits = model(**inputs).logits
        plain = model.language_model
        model.language_model = wrapped = get_peft_model(plain, HEADS[kind])
        torch.testing.assert_close(model(**inputs).logits, logits, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(model(**inputs, logits_to_keep=1).logits, logits[:, -1:], atol=1e-5, rtol=1e-4)
        for name, p in wrapped.named_parameters():
            if p.requires_grad and kind == "adapter":
                p.normal_(generator=torch.Generator().manual_seed(len(name)))
        rows = slice(model.config.base_vocab_size, None)  # an adapter of the head is for the head's own rows
        torch.testing.assert_close(model(**inputs).logits[..., rows], logits[..., rows], atol=1e-5, rtol=1e-4)
        model.language_model = wrapped.unload()
        torch.testing.assert_close(model(**inputs).logits, logits, atol=1e-5, rtol=1e-4)


def test_layers_that_are_named_are_found_in_a_wrapped_model():
    model = make("gpt2")
    layers = model.language_model.transformer.h
    model.language_model = get_peft_model(model.language_model, LoraConfig(target_modules=["c_attn"], r=2))
    assert find_decoder_layers(model.language_model, "transformer.h") == ("transformer.h", layers)
    assert find_decoder_layers(model.language_model) == ("transformer.h", layers)
