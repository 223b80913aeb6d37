"""Splits captions into tokens as COCO's evaluation does: pycocoevalcap's PTBTokenizer, without Java.

The tokens are those of Stanford's PTBTokenizer (CoreNLP 3.4.1, `-preserveLines -lowerCase`) without punctuation. The
rules that find a token are in `rules.py`; here a token that was found is rewritten.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache

from flamboyance import checks
from flamboyance.evaluation.metrics.ptb.java_lower import java_lower
from flamboyance.evaluation.metrics.ptb.lexer import Lexer
from flamboyance.evaluation.metrics.ptb.rules import MACROS, RULES

# Tokens that are left out. Brackets are kept: pycocoevalcap lists them in capitals, which no token has.
PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])

_BRACKETS = str.maketrans(
    {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"},
)
_PARENTHESES = str.maketrans({"(": "-lrb-", ")": "-rrb-"})
_QUOTES = str.maketrans(
    dict.fromkeys("‘‹‛\x91", "`")
    | dict.fromkeys("’›\x92", "'")
    | dict.fromkeys("“«\x93", "``")
    | dict.fromkeys("”»\x94", "''")
)
_SIGNS = str.maketrans(
    {"¢": "cents", "£": "#", "\x80": "$", "¤": "$", "€": "$", "\u20a0": "$"}
    | {"¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"}
)
# What the Java process takes for a line break. One inside a caption would move the caption's end to the next line.
_BREAKS = re.compile("[\n\r\v\f\x85\u2028\u2029]")
_AMPERSAND = re.compile("&amp;", re.IGNORECASE)
_ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">"}  # in capitals too
_QUOTE_ENTITIES = {"&quot;": "''", "&apos;": "'"}  # not in capitals


def _entity(token: str) -> str:
    return _QUOTE_ENTITIES.get(token) or _ENTITIES.get(token.lower(), token)


def _hyphens(token: str) -> str:
    return "--" if 2 <= len(token) <= 4 else token


# How a token is rewritten. Spaces inside a token become no-break spaces, at which CIDEr splits it anyway.
ACTIONS: dict[str, Callable[[str], str]] = {
    "as is": lambda token: token,
    "nothing": lambda token: "",
    "word": lambda token: token.replace("\xad", "") or "-",
    "number": lambda token: token.replace("\xad", ""),
    "spaced": lambda token: token.replace(" ", "\xa0"),
    "telephone": lambda token: token.replace(" ", "\xa0").translate(_PARENTHESES),
    "bracket": lambda token: token.translate(_BRACKETS),
    "parentheses": lambda token: token.translate(_PARENTHESES),
    "sign": lambda token: token.translate(_SIGNS),
    "entity": _entity,
    "ampersands": lambda token: _AMPERSAND.sub("&", token),
    "quote": lambda token: "''",
    "quotes": lambda token: token.replace("&apos;", "'").translate(_QUOTES),
    "hyphens": _hyphens,
    "dash": lambda token: "--",
    "dots": lambda token: "...",
}


def ptb_tokenize(text: str) -> str:
    """A caption's tokens in lower case, without punctuation: "It's a dog-house." -> "it 's a dog-house".

    The result is pycocoevalcap's for a caption among others; `ptb_tokenize_all` says how other captions change it.

    Raises:
        ValueError: `text` is not a text.
    """
    checks.text("text", text)
    return ptb_tokenize_all([text, ""])[0]


def ptb_tokenize_all(captions: Sequence[str]) -> list[str]:
    """The tokens of each caption, as pycocoevalcap's tokenizer gives them for all captions in one process.

    There and here, a caption's tokens depend a little on its neighbours: "B." at the end of a caption keeps its period
    unless the next caption begins with a word like "The"; the last caption has no line break behind it, so ":)" at its
    end is two tokens.

    Raises:
        ValueError: `captions` is not a list of texts.
    """
    captions = checks.listed("captions", captions, "texts", "['a cat']")
    for number, caption in enumerate(captions):
        checks.text(f"caption {number}", caption)
    text = "\n".join(_BREAKS.sub(" ", caption) for caption in captions)
    if not text.isascii():
        # Java's characters: those beyond the first 65,536 are two.
        text = re.sub("[\U00010000-\U0010ffff]", _surrogates, text)
    lines = "".join(_tokens(text)).split("\n")
    return [" ".join(token for token in line.rstrip().split(" ") if token not in PUNCTUATION) for line in lines]


def _tokens(text: str) -> Iterator[str]:
    """The tokens, each followed by a space, and the line breaks."""
    lexer, place = _lexer(), 0
    while place < len(text):
        if text[place] == "\n":
            yield "\n"
            place += 1
            continue
        found = lexer.match(text, place)
        if found is None:
            place += 1
            continue
        rule, end = found
        if token := ACTIONS[rule.action](text[place:end]):
            yield (token.lower() if token.isascii() else java_lower(_whole(token))) + " "
        place = end


def _surrogates(match: re.Match[str]) -> str:
    units = match[0].encode("utf-16-le")
    return chr(units[0] | units[1] << 8) + chr(units[2] | units[3] << 8)


def _whole(token: str) -> str:
    """Joins pairs of surrogates into characters; a single surrogate becomes "?", as in Java."""
    whole = token.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
    return re.sub("[\ud800-\udfff]", "?", whole)


@cache
def _lexer() -> Lexer:
    return Lexer(RULES, MACROS)
