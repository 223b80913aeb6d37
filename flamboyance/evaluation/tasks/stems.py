"""The stems of OK-VQA. Its files say "surf" if annotators said "surfing", so a model's answer is stemmed too.

The authors published stemmed answers but no stemmer. These are the rules that users of the data set agreed on: a table
of exceptions, the verb of a word in -ing by WordNet, and the singular of a plural.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

# The authors of Flamingo found these by comparing `raw_answer` with `answer` in OK-VQA's files.
_TABLE = """
    adhesives:adhesive alertness:alert alpes:alp apartments:apart are:are awning:awn backpackers:backpack badness:bad
    baldness:bald bases:base batter's:batter belongings:belong blindness:blind boy's:boy braves:brave brightness:bright
    browsing:brows buildings:build casings:case caves:cave charioteering:chariot childrens:children christmas:christmas
    circuses:circus clothes:cloth clothing:cloth coding:code conducter:conduct conferences:confer coniferous:conifer
    containers:contain controllers:control corgie:corgi couponing:coupon creame:cream crepte:crept cumulis:cumuli
    curiousity:curious dangerous:danger daughter's:daughter decorations:decor designers:design dining:dine
    directions:direct domino's:domino doves:dove drives:drive drunkenness:drunken earing:ear earnings:earn eatting:eat
    electicity:elect electronics:electron elevators:elev emirates:emir expressions:express farmer's:farmer
    firefighters:firefight firefighting:firefight glaced:glace gloves:glove gondoliere:gondolier graves:grave
    haircutting:haircut hamburgers:hamburg hawke:hawk hearding:heard hell's:hell hornes:horn illness:ill jeans:jean
    kid's:kid kindergartener:kindergarten kiting:kite las:las leaves:leaf lenses:lens lowes:low markings:mark
    married:married mating:mate meetings:meet men's:men microwaves:microwave minerals:miner mopeds:mope morning:morn
    mountainous:mountain mustange:mustang nationals:nation overseas:oversea oxygenize:oxygen paintings:paint paned:pane
    paring:pare pease:peas personals:person pies:pie piping:pipe plating:plate playfulness:play polarizing:polar
    police:police pooping:poop porche:porch potatoe:potato professionals:profession projections:project
    propellers:propel protesters:protest pudding:pud purring:pure quantas:quanta rabbies:rabbi raines:rain
    reflections:reflect regent's:regent reminders:remind reporters:report revelations:revel riding:ride ringe:ring
    ripeness:ripe rodeoing:rodeo routes:rout sadness:sad sautee:saute scrapbooking:scrapbook settings:set
    shelves:shelve sickness:sick skateboarders:skateboard smugness:smug socializing:social sometimes:sometime
    staring:stare stockings:stock striping:stripe sunbathing:sunbath sunblocker:sunblock suspenders:suspend
    swining:swine teasing:teas teething:teeth tennis:tennis tenning:ten texting:text ties:tie toileting:toilet
    tomatoe:tomato toppings:top transitions:transit travelers:travel travellers:travel urinating:urine
    vacationing:vacate vandalizers:vandal vastness:vast vegas:vegas veteran's:veteran wading:wade walle:wall waves:wave
    weddings:wed wetness:wet wilderness:wilder womens:women yes:yes
"""
TABLE: dict[str, str] = {word: stem for word, _, stem in (pair.partition(":") for pair in _TABLE.split())}

_WORD = re.compile(r"[^\W\d_]+(?:['-][^\W\d_]+)*")

# The first pattern that matches gives the singular; the last one removes an "s".
_SINGULARS = [
    (re.compile(pattern), singular)
    for pattern, singular in (
        (r"(m)oves$", r"\1ove"),
        (r"(quiz)zes$", r"\1"),
        (r"(matr)ices$", r"\1ix"),
        (r"(vert|ind)ices$", r"\1ex"),
        (r"(alias|status|bus)es$", r"\1"),
        (r"(octop|vir)i$", r"\1us"),
        (r"(cri|the|naly|gno)ses$", r"\1sis"),
        (r"(shoe)s$", r"\1"),
        (r"(o|x|ch|ss|sh)es$", r"\1"),
        (r"(m|l)ice$", r"\1ouse"),
        (r"men$", "man"),
        (r"children$", "child"),
        (r"(m)ovies$", r"\1ovie"),
        (r"(z)ombies$", r"\1ombie"),
        (r"([^aeiouy]|qu)ies$", r"\1y"),
        (r"([lr])ves$", r"\1f"),
        (r"(tive|hive)s$", r"\1"),
        (r"([^f])ves$", r"\1fe"),
        (r"s$", ""),
    )
]
_PLURAL = re.compile(r"[^sui']s$")
# Words that end like a plural and are singular.
_NO_PLURALS = frozenset(
    """
    abdomen acumen adidas always angeles arkansas as athens atlas bahamas besides bias biceps canvas chaos charles corps
    cosmos dallas does gas has his its james kansas laos lens los mars massachusetts means mercedes news omen
    perhaps philippines ramen regimen semen series species specimen stamen texas this towards was yemen
    """.split()
)


def stem(answer: str) -> str:
    """The answer with each word in lower case and stemmed as in OK-VQA's files; the text between words is kept."""
    return _WORD.sub(lambda found: _stem(found[0].lower()), answer).strip()


def _stem(word: str) -> str:
    if word in TABLE:
        return TABLE[word]
    if word.endswith("ing"):
        return _verb(word)
    if word == "people":
        return "person"
    return _singular(word) if _is_plural(word) else word


def _verb(word: str) -> str:
    """The shortest verb that the word may be a form of, as in WordNet's lemmatizer; the word if there is none."""
    bare = word.removesuffix("ing")
    doubled = bare[:-1] if bare[-2:-1] == bare[-1:] or bare.endswith("ck") else bare  # swim-m-ing, picnic-k-ing
    forms = [word, bare + "e", bare, doubled, *([bare[:-1] + "ie"] if bare.endswith("y") else [])]
    found = [form for form in forms if len(form) > 1 and form in _verbs()]
    return min(found, key=len, default=word)


@cache
def _verbs() -> frozenset[str]:
    lines = Path(__file__).with_name("verbs.txt").read_text(encoding="utf-8").splitlines()
    return frozenset(" ".join(line for line in lines if not line.startswith("#")).split())


def _is_plural(word: str) -> bool:
    """Decides by the ending: for an answer of one or two words, a tagger knows no more."""
    if word in _NO_PLURALS or len(word) < 3:
        return False
    return word.endswith(("men", "children")) or word in ("mice", "lice") or bool(_PLURAL.search(word))


def _singular(word: str) -> str:
    return next((pattern.sub(singular, word) for pattern, singular in _SINGULARS if pattern.search(word)), word)
