"""Tokens in texts from outside are taken out, whatever they are made of."""

import time

import numpy as np
import pytest

from flamboyance.data.formats.interleaved import clean
from flamboyance.templates import END_OF_CHUNK_TOKEN, IMAGE_TOKEN


def replaced(text: str) -> str:
    """The same by replacing until nothing is left to replace."""
    while IMAGE_TOKEN in text or END_OF_CHUNK_TOKEN in text:
        text = text.replace(IMAGE_TOKEN, "").replace(END_OF_CHUNK_TOKEN, "")
    return text


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("a <image>cat", "a cat"),
        ("a <im<image>age>cat<|endof<im<image>age>chunk|>", "a cat"),
        ("1 > 0 and <imag", "1 > 0 and <imag"),
        ("<image><image", "<image"),
        ("", ""),
    ],
)
def test_tokens_are_taken_out(text: str, cleaned: str) -> None:
    assert clean(text) == cleaned


def test_it_is_what_replacing_until_the_end_gives() -> None:
    rng = np.random.default_rng(0)
    pieces = ["<image>", "<|endofchunk|>", "<im", "age>", "<|endof", "chunk|>", ">", "<", "a ", "é"]
    for _ in range(500):
        text = "".join(rng.choice(pieces, size=rng.integers(1, 20)))
        assert clean(text) == replaced(text)


def test_nested_tokens_take_time_in_proportion_to_their_number() -> None:
    text = "<im" * 80_000 + "<image>" + "age>" * 80_000  # 560 kB; replacing takes minutes
    started = time.perf_counter()
    assert clean(text) == ""
    assert time.perf_counter() - started < 20
