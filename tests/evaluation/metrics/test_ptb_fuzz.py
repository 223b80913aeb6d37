"""The tokenizer against the one that it stands for: pycocoevalcap's, in Java.

Needs `java` and `pip install pycocoevalcap`, whose wheel holds the jar. More seeds: FLAMBOYANCE_FUZZ_SEEDS=100-140.
"""

import importlib.util
import os
import random
import shutil

import pytest

from flamboyance.evaluation.metrics import cider
from flamboyance.evaluation.metrics.ptb.tokenizer import ptb_tokenize, ptb_tokenize_all

from . import strings

SEEDS = os.environ.get("FLAMBOYANCE_FUZZ_SEEDS", "0-2")
LACKS = [
    name
    for name, there in (
        ("java (Debian: default-jre-headless)", shutil.which("java")),
        ("pycocoevalcap (pip install pycocoevalcap)", importlib.util.find_spec("pycocoevalcap")),
    )
    if not there
]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(LACKS), reason=f"the official tokenizer needs {' and '.join(LACKS)}"),
]


def official(captions: list[str]) -> list[str]:
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    tokens = PTBTokenizer().tokenize({number: [{"caption": caption}] for number, caption in enumerate(captions)})
    return [tokens[number][0] for number in range(len(captions))]


def differences(captions: list[str], expected: list[str], found: list[str]) -> list[tuple[str, str, str]]:
    return [row for row in zip(captions, expected, found, strict=True) if row[1] != row[2]]


def seeds() -> range:
    first, _, last = SEEDS.partition("-")
    return range(int(first), int(last or first) + 1)


@pytest.mark.parametrize("seed", seeds())
def test_any_strings(seed: int) -> None:
    chance = random.Random(seed)
    captions = [strings.caption(chance) for _ in range(20_000)]
    assert differences(captions, official(captions), ptb_tokenize_all(captions)) == []


def test_a_caption_before_one_that_changes_nothing() -> None:
    chance = random.Random(1_000)
    captions = [strings.caption(chance) for _ in range(20_000)]
    apart = official([line for caption in captions for line in (caption, "x")])[::2]
    assert differences(captions, apart, [ptb_tokenize(caption) for caption in captions]) == []


def test_every_character_of_the_first_plane() -> None:
    # Without line breaks, and without the halves of characters beyond.
    characters = [chr(code) for code in range(0x10000) if not 0xD800 <= code < 0xE000]
    characters = [one for one in characters if one not in "\n\r\v\f\x85\u2028\u2029"]
    captions = [f"{one} a{one}b 1{one}2 '{one} {one}{one}" for one in characters]
    assert differences(captions, official(captions), ptb_tokenize_all(captions)) == []


def test_cider_of_any_strings() -> None:
    """Few words, so that captions share n-grams; odd strings among them, and empty ones."""
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    chance = random.Random(7)
    words = [*strings.ODD[:20], "a", "dog", "on", "the", "red"]

    def caption() -> str:
        odd = strings.caption(chance) if chance.random() < 0.05 else ""
        return " ".join(chance.choices(words, k=chance.randint(0, 15))) + chance.choice(["", ".", " A.", odd])

    references = {image: [caption() for _ in range(chance.randint(1, 6))] for image in range(2_000)}
    predictions = {image: chance.choice([caption(), *said]) for image, said in references.items()}
    read = [
        PTBTokenizer().tokenize({image: [{"caption": one} for one in captions] for image, captions in batch.items()})
        for batch in (references, {image: [said] for image, said in predictions.items()})
    ]
    expected, expected_each = Cider().compute_score(*read)
    corpus, each = cider(references, predictions)
    assert corpus == pytest.approx(expected, abs=1e-9)
    assert list(each.values()) == pytest.approx(expected_each.tolist(), abs=1e-9)
