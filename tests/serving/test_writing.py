"""Pieces of a text never change, and together are the text."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flamboyance.serving.writing import Writing
from flamboyance.templates import Template

TEMPLATES = [
    None,
    Template("<image>Output:{text}", stops=("Output",), drop='"'),
    Template("<image>A photo of {text}.", stops=("A photo", "\n\n")),
    Template("<image>({text}).", drop="'"),
]
WORDS = ["a", " b", "Out", "put", "Output", "A ", "photo", "\n", ".", ")", '"', "'", "é", " ", "STOP", "ST", "OP"]


def decode(ids):
    return "".join(map(chr, ids))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.sampled_from(WORDS), max_size=12).map("".join),
    st.sampled_from(TEMPLATES),
    st.sampled_from([(), ("STOP",), ("b", "\n\n")]),
)
def test_the_pieces_are_the_text(text, template, stops):
    cut = re.split("|".join(map(re.escape, stops)), text, maxsplit=1)[0] if stops else text
    expected = cut.strip() if template is None else template.parse(cut)
    writing, pieces = Writing(decode, stops, template), []
    ids = list(map(ord, text))
    for count in range(1, len(ids) + 1):
        pieces.append(writing.read(ids[:count], finished=False))
        assert expected.startswith("".join(pieces)), "a later token would have changed what was shown"
        if writing.stopped:
            break
    else:
        pieces.append(writing.read(ids, finished=True))
    assert "".join(pieces) == writing.text == expected


def test_half_a_character_waits():
    parts = {(1,): "a\ufffd", (1, 2): "a\u00e9"}
    writing = Writing(lambda ids: parts[tuple(ids)])
    assert [writing.read([1], False), writing.read([1, 2], False)] == ["a", "é"]


@pytest.mark.parametrize(("text", "kept"), [("abSTOPcd", 2), ("STOP", 0), ("ab  STOP", 2)])
def test_tokens_behind_a_stop_are_not_needed(text, kept):
    writing = Writing(decode, ("STOP",))
    writing.read(list(map(ord, text)), finished=True)
    assert writing.stopped and writing.kept == kept
