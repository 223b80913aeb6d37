"""Pieces of a text never change, and together are the text."""

import re
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flamboyance.serving.batching import Counts, Engine, Piece, Request, Row, Ticket
from flamboyance.serving.sampling import Chosen, Dice, Sampling
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


@settings(max_examples=150)
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


@pytest.mark.parametrize(
    ("stop", "text", "kept"),
    [("abz", ["x", "a", "ab", "z"], 2), ("ab", ["x", "ab"], 1), ("z", ["x", " ", "\n", "z"], 1), ("z", ["x", " "], 2)],
)
def test_streamed_tokens_are_those_of_the_whole_answer(stop, text, kept):
    """Tokens whose text is withheld are not reported before it is shown."""
    reports = []
    for stream in (False, True):
        pieces: list[Piece] = []
        request = Request((0,), max_new_tokens=len(text), sampling=Sampling(logprobs=0), stops=(stop,), stream=stream)
        writing = Writing(lambda ids: "".join(text[i] for i in ids), (stop,))
        row = Row(Ticket(request, pieces.append), 0, 1, None, Dice(0), writing)
        engine = SimpleNamespace(_ends=frozenset(), counts=Counts())
        while not row.ended:
            row.chosen.append(Chosen(len(row.chosen), -1.0))
            Engine._tell(engine, row)
        reports.append([chosen.token for piece in pieces for chosen in piece.tokens])
        for number, piece in enumerate(pieces):
            shown = "".join(text[chosen.token] for one in pieces[: number + 1] for chosen in one.tokens)
            assert shown.startswith("".join(one.text for one in pieces[: number + 1])), piece
    assert reports == [list(range(kept))] * 2


@pytest.mark.parametrize(("text", "kept"), [("abSTOPcd", 2), ("STOP", 0), ("ab  STOP", 2)])
def test_tokens_behind_a_stop_are_not_needed(text, kept):
    writing = Writing(decode, ("STOP",))
    writing.read(list(map(ord, text)), finished=True)
    assert writing.stopped and writing.kept == kept
