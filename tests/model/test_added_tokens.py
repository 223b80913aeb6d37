"""Tokens that users add: rows of their own beside the language model's frozen tables."""

import copy

import pytest
import torch
from torch import nn

from flamboyance import FlamingoForConditionalGeneration, FlamingoProcessor, load_mini
from flamboyance.checkpoints import openflamingo
from flamboyance.images import ImageProcessor
from tests.model.families import PAD, VOCABULARY, images, make, prompt
from tests.processes import python
from tests.tiny import IMAGE_SIZE, save_tiny_flamingo, tiny_tokenizer

BEFORE = VOCABULARY + 3
HEADS = ["opt", "gpt_neox", "gptj"]  # tied, its own, its own with a bias


def inputs(*new):
    ids = torch.tensor([[*prompt(3, 4), *new]])
    return {"input_ids": ids, "pixel_values": images(2)}


@pytest.mark.parametrize("family", HEADS)
def test_the_old_tokens_are_what_they_were(family):
    model, spare = make(family), 96 - BEFORE
    wanted = model(**inputs()).logits
    frozen = {name: p.clone() for name, p in model.language_model.named_parameters()}
    names = list(model.state_dict())
    table = model.resize_token_embeddings(BEFORE + spare + 5)  # beyond the spare rows of the tables
    assert table is model.get_input_embeddings() and model.config.vocab_size == BEFORE + spare + 5
    found = model(**inputs()).logits
    assert found.shape[-1] == model.config.vocab_size
    torch.testing.assert_close(found[..., :BEFORE], wanted)
    assert list(model.state_dict()) == names
    assert all(torch.equal(p, frozen[name]) for name, p in model.language_model.named_parameters())


@pytest.mark.parametrize("family", HEADS)
def test_new_rows_train_and_the_tables_do_not(family):
    model, new = make(family).train(), BEFORE
    model.resize_token_embeddings(BEFORE + 2)
    given = inputs(new, new + 1, new)
    model(**given, labels=given["input_ids"]).loss.backward()
    added = model.added_tokens
    for rows in (added.embedding, added.head, added.head_bias):
        assert rows is None or (rows.grad is not None and rows.grad[3:].abs().sum() > 0)
    assert all(p.grad is None for p in model.language_model.parameters())
    assert "added_tokens.embedding" in model.trained_parameters()
    with torch.no_grad():
        logits = model(**given).logits
        added.embedding[3] += 1
        assert not torch.allclose(model(**given).logits, logits)


def test_frozen_rows_stay_frozen_and_packed_heads_give_values():
    model = make("gpt_neox")
    model.added_tokens.requires_grad_(False)
    model.resize_token_embeddings(BEFORE + 1)
    assert not any(p.requires_grad for p in model.added_tokens.parameters())


def test_new_rows_start_at_the_mean_of_those_in_use():
    model = make("opt")
    table = model.get_input_embeddings().weight
    with torch.no_grad():
        table[VOCABULARY:] = 100.0  # spare rows that nobody trained
    model.resize_token_embeddings(BEFORE + 2)
    torch.testing.assert_close(model.added_tokens.embedding[3:].mean(0), table[:VOCABULARY].mean(0), atol=0.05, rtol=0)


def test_what_cannot_be_is_refused():
    model = make("opt")
    for count in (0, VOCABULARY, BEFORE - 1):
        with pytest.raises(ValueError, match="resize_token_embeddings"):
            model.resize_token_embeddings(count)
    with pytest.raises(ValueError, match="resize_token_embeddings"):
        model(**inputs(BEFORE))
    assert model.config.vocab_size == BEFORE and PAD == BEFORE - 1
    rows = model.added_tokens.embedding.clone()
    model.resize_token_embeddings(BEFORE + 7)
    model.resize_token_embeddings(BEFORE + 2, pad_to_multiple_of=64)
    assert len(model.added_tokens.embedding) == len(model.config.added_tokens) == 5
    model.resize_token_embeddings(BEFORE)
    assert torch.equal(model.added_tokens.embedding, rows) and model.resize_token_embeddings() is not None


@pytest.mark.parametrize("family", HEADS)
def test_the_published_layout_with_more_rows(family):
    model, other = make(family), make(family, seed=1)
    for each in (model, other):
        each.resize_token_embeddings(BEFORE + 2)
    state = openflamingo.export(model)
    assert {len(t) for key, t in state.items() if "embed" in key or "lm_head" in key or "embed_out" in key} == {95}
    other.language_model.load_state_dict(model.language_model.state_dict())
    openflamingo.load(other, openflamingo.parse(state))
    for name, p in model.added_tokens.named_parameters():
        assert torch.equal(p, dict(other.added_tokens.named_parameters())[name])


CODE = """
import sys, torch
from flamboyance import FlamingoForConditionalGeneration, FlamingoProcessor
model, processor = (kind.from_pretrained(sys.argv[1]) for kind in (FlamingoForConditionalGeneration, FlamingoProcessor))
inputs = processor(text=["a <left> cat <right>"])
with torch.no_grad():
    torch.save([inputs["input_ids"], model(**inputs).logits, model.config.added_tokens], sys.argv[2])
"""


def test_saved_and_opened_in_another_process(tmp_path):
    directory = save_tiny_flamingo(tmp_path)
    processor = FlamingoProcessor.from_pretrained(directory)
    model = FlamingoForConditionalGeneration.from_pretrained(directory)
    processor.tokenizer.add_tokens(["<left>", "<right>"])
    with pytest.raises(ValueError, match="another copy"):  # the model has read the tokenizer, too
        model.resize_token_embeddings(len(processor.tokenizer))
    model.tokenizer = processor.tokenizer
    model.resize_token_embeddings(len(processor.tokenizer))
    with torch.no_grad():
        nn.init.normal_(model.added_tokens.embedding)
    model.save_pretrained(tmp_path / "saved", include_backbones=True)
    given = processor(text=["a <left> cat <right>"])
    with torch.no_grad():
        wanted = model(**given).logits
    python(CODE, tmp_path / "saved", tmp_path / "found.pt", log=tmp_path / "log")
    ids, logits, names = torch.load(tmp_path / "found.pt")
    assert torch.equal(ids, given["input_ids"]) and ids.max() == model.config.vocab_size - 1
    assert torch.equal(logits, wanted)
    assert names == ["<|endofchunk|>", "<image>", "<PAD>", "<left>", "<right>"]


def test_an_opened_model_has_the_tokenizer_of_its_processor():
    model, processor = load_mini()
    processor.tokenizer.add_tokens(["<left>"])
    model.resize_token_embeddings(len(processor.tokenizer))
    given = processor(text=["a <left>"])
    by_number = model.score(given["input_ids"], [[model.config.vocab_size - 1]])
    assert torch.equal(model.score(given["input_ids"], ["<left>"]), by_number)


def test_a_processor_with_tokens_of_a_users_own_builds_a_model():
    tokenizer = tiny_tokenizer()
    own = len(tokenizer)
    FlamingoProcessor(ImageProcessor.clip(IMAGE_SIZE), tokenizer)
    tokenizer.add_tokens(["<left>", "<right>"])
    again = FlamingoProcessor(ImageProcessor.clip(IMAGE_SIZE), copy.deepcopy(tokenizer))
    assert again.base_vocab_size == own
    assert again.added_tokens == ["<|endofchunk|>", "<image>", "<PAD>", "<left>", "<right>"]
