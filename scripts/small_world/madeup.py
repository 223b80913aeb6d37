"""Made-up words: pronounceable, of four or five letters, and in no dictionary at hand."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import Literal

import numpy as np

from scripts.small_world.concepts import Concept

ONSETS = "b bl br d dr f fl g gl gr h j k kl kr l m n p pl pr r s sk sl sn sp st t tr v w y z".split()
VOWELS = "a e i o u".split()
CODAS = ["", "", "", *"b d f g k l m n p r s t x z ck ft mp nd nk rk rn sk".split()]
MEDIALS = "b d f g k l m n p r s t v w x z".split()
TESTED = 8  # every eighth word is kept for the evaluation
# WordNet has no function words, and these can be drawn.
FUNCTION_WORDS = set(
    "from into onto over than that them then they this thus till upon were with your when whom what here there these "
    "those must used once ever even else also just like want went been have does done pend pled sped".split()
)

Use = Literal["train", "test"]


class Words:
    """Draws made-up words; those for training and for testing have no word in common.

    Args:
        dictionary: words that are not made up, such as WordNet's lemmas.
        concepts: their names and keywords, in all languages, are not made up either.
    """

    def __init__(self, dictionary: Iterable[str], concepts: Iterable[Concept] = ()):
        self._real = {word.lower() for word in dictionary} | FUNCTION_WORDS
        for concept in concepts:
            for texts in (concept.names.values(), *concept.keywords.values()):
                self._real |= {word.lower() for text in texts for word in text.split()}

    def draw(self, count: int, use: Use, rng: np.random.Generator) -> list[str]:
        """Different words, no two with the same first three letters."""
        words: list[str] = []
        while len(words) < count:
            word = _spell(rng)
            if self.is_free(word, use) and all(word[:3] != other[:3] for other in words):
                words.append(word)
        return words

    def is_free(self, word: str, use: Use) -> bool:
        """Whether a word may be used: of four or five letters, for this use, and not an inflected real one."""
        tested = blake2b(word.encode(), digest_size=2).digest()[0] % TESTED == 0
        if not 4 <= len(word) <= 5 or tested != (use == "test"):
            return False
        stems = [word, *(word.removesuffix(end) + add for end in ("s", "es", "ed", "ing", "er") for add in ("", "e"))]
        return not any(stem in self._real for stem in stems)


def _spell(rng: np.random.Generator) -> str:
    """One or two syllables: "blick", "dafi", "tunor"."""

    def one(of: list[str]) -> str:
        return of[int(rng.integers(len(of)))]

    word = one(ONSETS) + one(VOWELS)
    if rng.random() < 0.75:
        word += one(MEDIALS) + one(VOWELS)
    return word + one(CODAS)
