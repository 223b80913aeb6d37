"""Lower case as in Java: as in Python, except for the capital sigma at the end of a word."""

from __future__ import annotations

import re
import unicodedata

# Words as Java's BreakIterator finds them, by kind of character: letters (L) and numbers (N) with single joiners
# between them, followed by marks (M) and formats (F); a character beyond the first 65,536 (S) ends a word.
_WORD = re.compile("(?:[LF][MF]*(?:[-.']?[LF][MF]*)*|N[MF]*(?:[.,']?N[MF]*)*)+(?:S|(?<=[LMF])[-.']S)?")
_KINDS = {"Pd": "-", "Pc": "-", "Nd": "N", "No": "N", "Nl": "N", "Mn": "M", "Me": "M", "Mc": "L", "Cf": "F"}
_IDEOGRAPHS = re.compile("[\u3005\u3041-\u3094\u309d\u309e\u30a1-\u30fa\u30fc-\u30fe\u4e00-\u9fa5\uf900-\ufa2d]")
_MORE_CASED = re.compile("[\u02b0-\u02b8\u02c0\u02c1\u02e0-\u02e4\u0345\u037a\u1d2c-\u1d61\u2160-\u217f\u24b6-\u24e9]")


def java_lower(text: str) -> str:
    """Java's `text.toLowerCase()`.

    A capital sigma becomes the final form if a cased letter comes before it in its word and none after it. Words are
    those of Java's BreakIterator, which differ from Python's: "A_\u03a3" ends in the final form.
    """
    if "Σ" not in text:
        return text.lower()
    letters = list(text)
    for word in _WORD.finditer("".join(map(_kind, text))):
        cased = [place for place in range(*word.span()) if _is_cased(text[place])]
        for place in cased:
            if text[place] == "Σ" and cased[0] < place == cased[-1]:
                letters[place] = "ς"
    return "".join(letter if letter == "ς" else letter.lower() for letter in letters)


def _kind(character: str) -> str:
    if character in ".,'":
        return character
    if character in "\u2027\xad":
        return "-"
    if _IDEOGRAPHS.match(character):
        return " "
    category = unicodedata.category(character)
    kind = _KINDS.get(category, "L" if category[0] == "L" else " ")
    return "S" if kind in "LNMF" and character > "\uffff" else kind


def _is_cased(character: str) -> bool:
    return unicodedata.category(character) in {"Lu", "Ll", "Lt"} or _MORE_CASED.match(character) is not None
