"""The words of the mini world: its vocabulary, its made-up words, and the tokenizer for both.

A made-up word is two syllables, `da` + `ki` -> `daki`, one token each. A fifth of the 1,560 pairs is held out: they are
in no training text, so the language model has never read a test word.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Split = Literal["train", "test"]

COLORS = ("red", "green", "blue", "yellow", "purple", "cyan", "white")
SHAPES = ("circle", "square", "triangle", "cross", "ring")
SIZES = ("small", "large")
COLUMNS = ("left", "middle", "right")
COUNTS = ("zero", "one", "two", "three")
DIGITS = tuple("0123456789")
_OTHER = (
    *("a and the is are there this that it of on in an object objects digit picture shows".split()),
    *("what which where how many color shape size question short answer output yes no nothing".split()),
)
_PUNCTUATION = (".", ",", "?", ":", ";", "-")
SYLLABLES = tuple(
    "ba be bi bo bu da de di du fa fe fi fo fu ga ge gi gu ka ke ki ko ku "
    "la le li lo lu ma mi mo mu pa pe pi po pu va vi vo".split()
)
PAD, BEGIN, UNKNOWN = "<pad>", "<s>", "<unk>"
SEPARATOR = ";"  # ends an entry in the language model's text, as <|endofchunk|> does in the Flamingo's


def _held_out(first: int, second: int) -> bool:
    return (3 * first + 7 * second) % 5 == 0


_WORDS = {
    split: [
        SYLLABLES[i] + SYLLABLES[j]
        for i in range(len(SYLLABLES))
        for j in range(len(SYLLABLES))
        if i != j and _held_out(i, j) == (split == "test")
    ]
    for split in ("train", "test")
}


def made_up_words(split: Split) -> list[str]:
    """Every made-up word of a split; the two splits have none in common."""
    return list(_WORDS[split])


def draw_words(rng: np.random.Generator, count: int, split: Split) -> list[str]:
    """`count` made-up words that share no syllable in the same place, so that either half identifies the word."""
    words: list[str] = []
    while len(words) < count:
        word = _WORDS[split][rng.integers(len(_WORDS[split]))]
        if all(word[:2] != other[:2] and word[2:] != other[2:] for other in words):
            words.append(word)
    return words


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A lower-casing word tokenizer that puts `<s>` before a text and spells captions back as they went in."""
    # For start-up time: the words alone need neither.
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    plain = [*COLORS, *SHAPES, *SIZES, *COLUMNS, *COUNTS, *DIGITS, *_OTHER, *_PUNCTUATION]
    pieces = [PAD, BEGIN, UNKNOWN, *plain, *SYLLABLES, *("##" + syllable for syllable in SYLLABLES)]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=UNKNOWN, max_input_chars_per_word=32))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tidy = [decoders.Replace(" " + mark, mark) for mark in (":", ";")]
    tokenizer.decoder = decoders.Sequence([decoders.WordPiece(prefix="##", cleanup=True), *tidy])
    first = (BEGIN, vocabulary[BEGIN])
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BEGIN} $A", special_tokens=[first])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, bos_token=BEGIN, unk_token=UNKNOWN, padding_side="left"
    )


def made_up_ids(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Token ids that only made-up words use."""
    vocabulary = tokenizer.get_vocab()
    return [vocabulary[piece] for piece in (*SYLLABLES, *("##" + syllable for syllable in SYLLABLES))]
