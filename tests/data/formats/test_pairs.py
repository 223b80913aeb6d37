"""LAION-style pairs, as img2dataset writes them."""

import json

import pytest

from flamboyance.data.documents import Record
from flamboyance.data.formats.pairs import Pairs
from tests.data.records import RED, read, reason

PAIRS = Pairs(shards="", batch_size=1)


def record(**files: bytes) -> Record:
    return Record("000000001", files)


@pytest.mark.parametrize("extension", ["jpg", "jpeg", "png", "webp"])
def test_a_pair_is_written_as_the_reference_does(extension: str) -> None:
    # Facts 4.1: `<image>{caption.strip()}<|endofchunk|>`; the end of the text is the tokenizer's and comes later.
    document = read(PAIRS, record(**{extension: RED}, txt=b"  A red square.\n", json=b"{}"))
    assert document.text == "<image>A red square.<|endofchunk|>"
    assert document.images == (RED,)
    assert document.learned == "all"


def test_the_defaults_are_the_published_ones() -> None:
    assert (PAIRS.max_tokens, PAIRS.flip, PAIRS.leading_space) == (32, 0.5, 0.0)


def test_the_caption_may_be_in_the_json() -> None:
    about = {"caption": "Grün", "url": "https://example.org", "status": "success"}
    assert read(PAIRS, record(jpg=RED, json=json.dumps(about).encode())).text == "<image>Grün<|endofchunk|>"


def test_a_byte_order_mark_is_no_text() -> None:
    assert read(PAIRS, record(jpg=RED, txt=b"\xef\xbb\xbfA cat")).text == "<image>A cat<|endofchunk|>"


def test_half_of_the_captions_stand_behind_a_space() -> None:
    source, given = Pairs(shards="", batch_size=1, leading_space=0.5), record(jpg=RED, txt=b"A cat")
    texts = [read(source, given, seed).text for seed in range(200)]
    assert set(texts) == {"<image>A cat<|endofchunk|>", "<image> A cat<|endofchunk|>"}
    assert 70 < texts.count("<image> A cat<|endofchunk|>") < 130


def test_our_tokens_in_a_caption_are_taken_out() -> None:
    given = record(jpg=RED, txt=b"A <image>cat<|endofchunk|> sat")
    assert read(PAIRS, given).text == "<image>A cat sat<|endofchunk|>"


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({"txt": b"A cat"}, "no image"),
        ({"jpg": RED}, "no caption"),
        ({"jpg": RED, "txt": b" \n"}, "no caption"),
        ({"jpg": RED, "txt": b"<image>"}, "no caption"),
        ({"jpg": RED, "json": b'{"caption": null}'}, "no caption"),
        ({"jpg": RED, "json": b'{"url": 1}'}, "no caption"),
        ({"jpg": RED, "txt": b"\xff\xfe\x00"}, "text is not UTF-8"),
        ({"jpg": RED, "json": b'{"caption": "a'}, "broken JSON"),
        ({"jpg": RED, "json": b'{"caption": "\xff"}'}, "broken JSON"),
        ({"jpg": RED, "json": b"[" * 100_000}, "broken JSON"),
        ({"jpg": RED, "json": b'{"n": ' + b"9" * 5000 + b"}"}, "broken JSON"),
        ({"jpg": RED, "json": b"[1]"}, "JSON is no object"),
    ],
)
def test_what_cannot_be_used_is_rejected(files: dict[str, bytes], why: str) -> None:
    assert reason(PAIRS, record(**files)) == why
