"""What can be said of a picture: its name, its kind, its gloss, its keywords, in several languages and forms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from scripts.small_world.artists import PHOTOGRAPH
from scripts.small_world.concepts import Concept, article
from scripts.small_world.scenes import Scene, position
from scripts.small_world.variants import Variant

UNCOUNTED = {
    "food",
    "sport",
    "medicine",
    "clothing",
    "stationery",
    "electronics",
    "sky",
}  # kinds: no article, no plural
NUMBERS = {1: "one", 2: "two", 3: "three"}
# Each way to write a caption, and how often it is chosen.
SHARES = {
    "name": 0.26,
    "picture": 0.12,
    "sentence": 0.08,
    "kind": 0.1,
    "gloss": 0.12,
    "hypernym": 0.05,
    "keywords": 0.05,
    "fact": 0.04,
    "de": 0.06,
    "fr": 0.06,
    "es": 0.06,
}
# A bare name does not say its language by itself, so half of the captions do.
FOREIGN = {
    "de": ("{}", "Auf Deutsch: {}", "Auf diesem Bild: {}", "Wörter: {}"),
    "fr": ("{}", "En français : {}", "Sur cette image : {}", "Mots : {}"),
    "es": ("{}", "En español: {}", "En esta imagen: {}", "Palabras: {}"),
}
FACT_TEXTS = {
    "eats": "Question: What does it eat? Answer: {}",
    "lives": "Question: Where is it found? Answer: {}",
    "use": "Question: What is it used for? Answer: {}",
}


def caption(style: str, concept: Concept, variant: Variant, rng: np.random.Generator) -> str:
    """A caption in one of the ways of `SHARES`; the name alone where the concept lacks the words for it."""
    return _WRITERS[style](concept, variant, rng) or concept.name


def draw_style(rng: np.random.Generator) -> str:
    return str(rng.choice(list(SHARES), p=list(SHARES.values())))


def picture_of(concept: Concept, variant: Variant, rng: np.random.Generator) -> str:
    """ "a drawing of a dog", as its style says, or "a picture of a dog"."""
    made = "photo" if variant.style == PHOTOGRAPH else "drawing"
    return f"a {'picture' if rng.random() < 0.3 else made} of {concept.phrase}"


def sentence_of(concept: Concept) -> str:
    """ "This is a dog."; "These are scissors."."""
    return f"{'These are' if concept.form == 'plural' else 'This is'} {concept.phrase}."


def kind_of(concept: Concept) -> str:
    """ "A lion is an animal."; of several things, "Scissors: a kind of tool."; "Necktie: clothing."."""
    if concept.kind in UNCOUNTED:
        return f"{capital(concept.name)}: {concept.kind}."
    if concept.form in ("", "the"):
        return f"{capital(concept.phrase)} is {article(concept.kind)} {concept.kind}."
    return f"{capital(concept.name)}: a kind of {concept.kind}."


def gloss_of(concept: Concept) -> str:
    """WordNet's definition; empty if there is none."""
    return f"{capital(concept.term)}: {concept.gloss}." if concept.gloss else ""


def hypernym_of(concept: Concept) -> str:
    """ "giraffe, a kind of ruminant"; empty without a hypernym."""
    return f"{concept.name}, a kind of {concept.hypernym}" if concept.hypernym else ""


def keywords_of(concept: Concept, language: str, rng: np.random.Generator) -> str:
    """The name and up to three keywords; empty if there are none."""
    name = concept.names[language]
    words = [word for word in concept.keywords.get(language, ()) if word.lower() != name.lower()]
    chosen = [words[i] for i in rng.permutation(len(words))[:3]]
    return ", ".join([name, *chosen]) if chosen else ""


def fact_of(concept: Concept, rng: np.random.Generator) -> str:
    """A question about what is seen, which the picture alone does not answer; empty if WordNet has no answer."""
    known = sorted(concept.facts)
    if not known:
        return ""
    key = known[int(rng.integers(len(known)))]
    return FACT_TEXTS[key].format(concept.facts[key])


def scene_caption(scene: Scene, concepts: Mapping[str, Concept], rng: np.random.Generator) -> str:
    """ "three dogs"; "a cat left of a tree"; "a cat, a dog and a tree"."""
    names = [name for name, _, _ in scene.things]
    if len(set(names)) == 1:
        concept = concepts[names[0]]
        return f"{NUMBERS[len(names)]} {concept.plural if len(names) > 1 else concept.name}"
    phrases = [concepts[name].phrase for name in names]
    if len(names) == 2 and rng.random() < 0.7:
        first, second = rng.permutation(2)
        where = position(scene.things[first][2], scene.things[second][2])
        return f"{phrases[first]} {where} {phrases[second]}"
    phrases = [phrases[i] for i in rng.permutation(len(phrases))]
    return f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _foreign(language: str) -> Callable[[Concept, Variant, np.random.Generator], str]:
    def write(concept: Concept, variant: Variant, rng: np.random.Generator) -> str:
        patterns: Sequence[str] = FOREIGN[language]
        pattern = patterns[int(rng.choice(len(patterns), p=(0.4, 0.2, 0.2, 0.2)))]
        words = keywords_of(concept, language, rng) if pattern == patterns[-1] else ""
        return pattern.format(words or concept.names[language])

    return write


_WRITERS: Mapping[str, Callable[[Concept, Variant, np.random.Generator], str]] = {
    "name": lambda concept, variant, rng: concept.name,
    "picture": picture_of,
    "sentence": lambda concept, variant, rng: sentence_of(concept),
    "kind": lambda concept, variant, rng: kind_of(concept),
    "gloss": lambda concept, variant, rng: gloss_of(concept),
    "hypernym": lambda concept, variant, rng: hypernym_of(concept),
    "keywords": lambda concept, variant, rng: keywords_of(concept, "en", rng),
    "fact": lambda concept, variant, rng: fact_of(concept, rng),
    **{language: _foreign(language) for language in FOREIGN},
}
