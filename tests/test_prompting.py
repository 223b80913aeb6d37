"""Demonstrations are tokenized once: their tokens, then the query's, are those of the whole text."""

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from flamboyance import FlamingoProcessor, templates
from flamboyance.images import ImageProcessor
from flamboyance.prompting import Prefix, prompt_inputs
from tests.model.families import PIXELS, VOCABULARY, make

DEMONSTRATIONS = templates.vqa.demonstration("what is this ?", "a red cat") + "\n" + templates.vqa.demonstration("", "")
QUERIES = [templates.vqa.query("what is this ?"), "\n" + templates.vqa.query("is it red ?"), "<image>", "cat <image>"]


def unigram(prepend_scheme: str | None) -> Tokenizer:
    pieces = ["<unk>", "</s>", "▁", *(chr(code) for code in range(33, 127)), "▁cat", "cat", "▁a", "Question", "\n"]
    pieces += [f"w{i}" for i in range(VOCABULARY - len(pieces) - 8)]
    tokenizer = Tokenizer(models.Unigram([(piece, -float(i)) for i, piece in enumerate(pieces)], unk_id=0))
    if prepend_scheme is None:  # as Llama's first tokenizers
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend_scheme)
    return tokenizer


def bytes_and_bos() -> Tokenizer:
    alphabet = ["<unk>", "</s>", *pre_tokenizers.ByteLevel.alphabet()]
    vocabulary = {piece: i for i, piece in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    template = processors.TemplateProcessing(single="</s> $A </s>", special_tokens=[("</s>", 1)])
    tokenizer.post_processor = template
    return tokenizer


TOKENIZERS = {
    "metaspace, always": lambda: unigram("always"),
    "metaspace, first": lambda: unigram("first"),
    "prepended": lambda: unigram(None),
    "bytes, beginning and end of text": bytes_and_bos,
}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_tokens_behind_a_prefix_are_those_of_the_whole_text(kind: str) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=TOKENIZERS[kind](), unk_token="<unk>")
    processor = FlamingoProcessor(ImageProcessor.clip(PIXELS), tokenizer)
    model = make("llama")
    [ids] = processor.tokenize([DEMONSTRATIONS])
    assert ids[-1] == processor.eoc_token_id
    prefix = Prefix(torch.tensor(ids), None, ())
    media = model.encode_media(torch.zeros(1, 1, 1, 3, PIXELS, PIXELS)).repeat(len(QUERIES))
    inputs = prompt_inputs(model, processor, QUERIES, media, prefix)
    expected = processor.pad(processor.tokenize([DEMONSTRATIONS + query for query in QUERIES]))
    assert torch.equal(inputs["input_ids"], expected["input_ids"])
    assert torch.equal(inputs["attention_mask"], expected["attention_mask"])
