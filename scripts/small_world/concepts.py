"""The concepts: their names in four languages, kinds, glosses, and which of them are held out."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Literal

from flamboyance.files import json_line, read_json_lines, read_table, write_text
from scripts.small_world.words import LANGUAGES, Annotations, WordNet

TABLE = Path(__file__).with_name("concepts.tsv")
HELD_OUT = 100  # concepts of which no picture and no caption is trained on
LEAST_ARTISTS = 3  # that draw a held-out concept

Form = Literal["", "plural", "mass", "the", "bare"]

_IRREGULAR = {
    "mouse": "mice",
    "goose": "geese",
    "ox": "oxen",
    "die": "dice",
    "sheep": "sheep",
    "fish": "fish",
    "deer": "deer",
    "bison": "bison",
    "moose": "moose",
    "blowfish": "blowfish",
    "jellyfish": "jellyfish",
    "squid": "squid",
    "shrimp": "shrimp",
    "octopus": "octopuses",
    "wolf": "wolves",
    "leaf": "leaves",
    "knife": "knives",
    "cactus": "cacti",
    "lotus": "lotuses",
    "hippopotamus": "hippopotamuses",
    "rhinoceros": "rhinoceroses",
    "abacus": "abacuses",
    "bus": "buses",
    "compass": "compasses",
    "potato": "potatoes",
    "tomato": "tomatoes",
    "mango": "mangoes",
    "volcano": "volcanoes",
    "mosquito": "mosquitoes",
    "buffalo": "buffalo",
    "rex": "rexes",
    "tooth": "teeth",
    "T. rex": "T. rexes",
}


@dataclass(frozen=True)
class Concept:
    """A thing that can be drawn.

    Attributes:
        name: in English; its identity.
        kind: one of about 25 wide classes, as in "animal".
        codes: of the emoji that show it, as in "1f436"; none for concepts that only photographs show.
        form: "" for "a dog", "plural" for "scissors", "mass" for "bread", "the" for "the Kaaba", "bare" for a name
            that takes no article.
        names: by language.
        keywords: by language.
        term: the noun that the gloss defines: the name, or its head word.
        gloss: WordNet's definition of the term; empty if there is none.
        hypernym: the next wider noun of WordNet.
        facts: see `words.FACTS`.
        split: "train" or "held-out".
    """

    name: str
    kind: str
    codes: tuple[str, ...] = ()
    form: Form = ""
    names: Mapping[str, str] = field(default_factory=dict)
    keywords: Mapping[str, Sequence[str]] = field(default_factory=dict)
    term: str = ""
    gloss: str = ""
    hypernym: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    split: str = "train"

    @property
    def slug(self) -> str:
        return "".join(c if c.isalnum() else "-" for c in self.name.lower()).strip("-")

    @property
    def phrase(self) -> str:
        """The name with its article, as in "an ant"."""
        if self.form in ("plural", "mass", "bare"):
            return self.name
        return f"the {self.name}" if self.form == "the" else f"{article(self.name)} {self.name}"

    @property
    def plural(self) -> str:
        """The name for several; empty where counting makes no sense."""
        return "" if self.form else pluralize(self.name)


def article(name: str) -> str:
    """ "a" or "an" for a name of the table."""
    if name.startswith(("hour", "X-")):
        return "an"
    return "an" if name[0] in "aeiouAEIOU" and not name.startswith(("uni", "eu", "one")) else "a"


def pluralize(name: str) -> str:
    """The English plural of a singular name; of "mug of beer", "mugs of beer"."""
    for link in (" of ", " with ", " behind "):
        head, found, rest = name.partition(link)
        if found:
            return pluralize(head) + link + rest
    before, space, last = name.rpartition(" ")
    if last in _IRREGULAR:
        return before + space + _IRREGULAR[last]
    if last.endswith(("s", "x", "z", "ch", "sh")):
        return f"{name}es"
    if last.endswith("y") and last[-2] not in "aeiou":
        return f"{name[:-1]}ies"
    return f"{name}s"


def read_concepts(wordnet: WordNet, annotations: Annotations, table: Path = TABLE) -> list[Concept]:
    """The concepts of the committed table, with the words of both packages. None is held out yet.

    Raises:
        ValueError: a sense or name is missing, or two concepts share a name in a language.
    """
    concepts = []
    for place, row in read_table(table):
        codes = tuple(str(row["codes"] or "").split())
        first = codes[0] if codes else ""
        names = {"en": row["name"]}
        for language in ("de", "fr", "es"):
            names[language] = row[language] or (annotations.name(first, language) if first else "")
            if not names[language]:
                raise ValueError(f"{place}: neither CLDR nor the table has a name of {row['name']!r} in {language}")
        keywords = {code: annotations.keywords(first, code) if first else [] for code in LANGUAGES}
        sense = wordnet.sense(row["sense"]) if row["sense"] else None
        concept = Concept(row["name"], row["kind"], codes, row["form"] or "", names, keywords)
        if sense is not None and sense.gloss:
            concept = replace(concept, term=sense.term, gloss=sense.gloss, hypernym=sense.hypernym, facts=sense.facts)
        concepts.append(concept)
    for language in LANGUAGES:
        twice = [name for name, n in Counter(c.names[language].lower() for c in concepts).items() if n > 1]
        if twice:
            raise ValueError(f"{table}: two concepts have the same name in {language}: {', '.join(sorted(twice))}")
    return concepts


def hold_out(
    concepts: Sequence[Concept], artists: Mapping[str, int], photographed: Set[str], count: int = HELD_OUT
) -> list[Concept]:
    """Marks `count` concepts as held out, of each kind as many as its share, chosen by a hash of the name.

    Args:
        artists: how many artists of the training set draw each concept; those with fewer than three are not chosen.
        photographed: concepts of which there are photographs; up to half of a kind's share are such.
    """
    kinds = defaultdict(list)
    for concept in concepts:
        if artists.get(concept.name, 0) >= LEAST_ARTISTS:
            kinds[concept.kind].append(concept.name)
    total = sum(map(len, kinds.values()))
    count = min(count, total)
    exact = {kind: count * len(names) / max(total, 1) for kind, names in kinds.items()}
    shares = {kind: int(share) for kind, share in exact.items()}
    by_remainder = sorted(kinds, key=lambda kind: (shares[kind] - exact[kind], kind))
    for kind in by_remainder[: count - sum(shares.values())]:
        shares[kind] += 1
    chosen = set()
    for kind, names in kinds.items():
        order = sorted(names, key=rank)
        first = [name for name in order if name in photographed][: -(-shares[kind] // 2)]
        chosen |= set([*first, *(name for name in order if name not in first)][: shares[kind]])
    held = [replace(c, split="held-out" if c.name in chosen else "train") for c in concepts]
    names = {name.lower() for c in held if c.split == "held-out" for name in c.names.values()}
    return [_without(c, names) if c.split == "train" else c for c in held]


def _without(concept: Concept, names: set[str]) -> Concept:
    """The concept without the keywords that name a held-out one."""
    kept = {code: [word for word in words if word.lower() not in names] for code, words in concept.keywords.items()}
    return replace(concept, keywords=kept)


def rank(text: str) -> str:
    """A place in an order that looks random and never changes."""
    return blake2b(text.encode(), digest_size=8).hexdigest()


def write_concepts(file: Path, concepts: Iterable[Concept]) -> None:
    """JSONL: one concept a line."""
    write_text(file, "".join(json_line(asdict(concept) | {"phrase": concept.phrase}) for concept in concepts))


def load_concepts(file: Path) -> list[Concept]:
    """What `write_concepts` wrote."""
    concepts = []
    for _, row in read_json_lines(file):
        row.pop("phrase")
        concepts.append(Concept(**{**row, "codes": tuple(row["codes"])}))
    return concepts


def kinds_of(concepts: Iterable[Concept]) -> dict[str, list[Concept]]:
    """Concepts by kind, in order."""
    kinds = defaultdict(list)
    for concept in concepts:
        kinds[concept.kind].append(concept)
    return dict(kinds)
