"""The rules by which Stanford's PTBTokenizer (CoreNLP 3.4.1) finds tokens, in the order that decides ties.

They were written from the tokenizer's behaviour on strings, and are tested on it (tests/evaluation/metrics/
test_ptb_fuzz.py). If a rule looks odd, so is the tokenizer's behaviour; a comment explains it.
"""

from __future__ import annotations

import re

from flamboyance.evaluation.metrics.ptb.characters import DIGITS, LETTERS, MARKS, SYMBOLS
from flamboyance.evaluation.metrics.ptb.lexer import Rule


def _ranges(points: str) -> str:
    """The inside of a character class: "41-5a aa" -> \\u0041-\\u005a\\u00aa."""
    return "".join("-".join(f"\\u{int(end, 16):04x}" for end in one.split("-")) for one in points.split())


# Further letters whose other case is "i", "k" or "s" in Unicode.
_MORE_CASES = {"i": "\u0130\u0131", "k": "\u212a", "s": "\u017f"}


def any_case(pattern: str) -> str:
    """The pattern with letters of any case; `{NAMES}` and escapes are kept."""

    def cases(letter: str) -> str:
        return letter.upper() + letter.lower() + _MORE_CASES.get(letter.lower(), "")

    def expand(part: re.Match[str]) -> str:
        text = part[0]
        if text[0] in "{\\":
            return text
        inside = "".join(cases(one) if one.isalpha() else one for one in text.strip("[]"))
        return f"[{inside}]"

    return re.sub(r"\{\w+\}|\\.|\[[^]]*\]|[A-Za-z]", expand, pattern)


def _one_of(words: str) -> str:
    return "(" + "|".join(any_case(word) for word in words.split()) + ")"


def _capitalized(words: str) -> str:
    """Words that begin with a capital, with the rest in any case."""
    return "(" + "|".join(word[0] + any_case(word[1:]) for word in words.split()) + ")"


# Abbreviations that always keep their period.
TITLES = """
    adj adm adv alex asst assoc atty attys ave brig capt cf cie cmdr col comdr cont'd cpl dept det dr drs elec ens ft
    gen gov govs hon insp invt jos lieut lt maj messrs mlle mme mr mrs ms msgr mt natl pfc ph pres prof profs pvt rep
    reps rev sen sens sfc sgt spc st ste supt supts treas vs wm
"""
# Abbreviations that keep their period also at the end of a sentence.
LAST_WORDS = """
    al ala apr ariz assn aug bancorp bhd bldg blvd bros calif co colo conn corp cos ct dak dec esq est etc ext feb fla
    fri ga inc ind intl jan jr jul jun kan kans ky ltd mar md mich minn mo mon mont neb nev nov oct okla penn plc rd rt
    sep sept seq sq sr sys tel tenn thu thurs tue tues univ va vt wed wis wisc wyo
"""
# These only with a capital: small, they are words.
CAPITALIZED_LAST_WORDS = "Ark Az Del Ill La Mass Miss Ore Pa Tex Wash"
# These only before a number.
BEFORE_NUMBERS = "art ca fig figs no nos op pp prop"
# Words that begin a sentence: after "J. " they tell that the period ended one.
FIRST_WORDS = """
    A About According Additionally After An As At But Earlier He Her Here However If In It Last Many More Now Once One
    Other Our She Since So Some Such That The Their Then There These They This We What When While Yet You
"""
FILE_EXTENSIONS = """
    bat bmp c cgi class cpp dll doc docx exe gif gz h htm html jar java jpeg jpg mov mp3 pdf php pl png ppt ps py sql
    tar txt wav x xml zip
"""
# Words with an apostrophe of their own. {APOSTROPHE} may be curly; ' may not.
WITH_APOSTROPHE = """
    {APOSTROPHE}n{APOSTROPHE}? {APOSTROPHE}em {APOSTROPHE}till? {APOSTROPHE}cause [ldj]{APOSTROPHE} ol{APOSTROPHE}
    dunkin{APOSTROPHE} somethin{APOSTROPHE} cap{APOSTROPHE}n c{APOSTROPHE}est o{QUOTE}o c'mon li'l e'er ev'ry s'mores
"""

_ANY = r"[\s\S]"
_NAME = r"[A-Za-z][A-Za-z0-9_:.\-]*"
_VALUE = "('[^']*'|\"[^\"]*\")"
_FACE = r"[\-\^x=~<>']"
_EYES = r"[\^x=~<>']"

MACROS = {
    "DIGIT": f"[{_ranges(DIGITS)}]",
    "LETTER": f"[{_ranges(LETTERS)}]",
    "ALPHANUMERIC": f"[{_ranges(LETTERS)}{_ranges(DIGITS)}]",
    # \u00AD is the soft hyphen, which is part of a word and left out of the token.
    "LETTERLIKE": rf"([{_ranges(LETTERS)}{_ranges(MARKS)}\u00AD]|{any_case('&[aeiou](acute|grave|uml);')})",
    "SPACE": r"[ \t\u00A0\u2000-\u200A\u3000]",
    "GAP": r"[ \t\n\r\v\f\u00A0\u2000-\u200A\u3000\u0085\u2028\u2029]",
    "AMPERSAND": "(&|" + any_case("&amp;") + ")",
    "APOSTROPHE": r"(['\u0092\u2019]|" + any_case("&apos;") + ")",
    "QUOTE": r"({APOSTROPHE}|[`\u0091\u2018\u201B])",
    "CLITIC": "{APOSTROPHE}([msdMSD]|[rR][eE]|[vV][eE]|[lL][lL])",
    "NOT": "[nN]{QUOTE}[tT]",
    "TAG": rf"<([!?][A-Za-z\-][^>\r\n]*|{_NAME}( +{_NAME}( *= *{_VALUE})?)* */?|/{_NAME}) *>",
    "NUMBER": r"({DIGIT}+|{DIGIT}*([.:,\u00AD\u066B\u066C]{DIGIT}+)+)",
    "WORD": "{LETTERLIKE}({LETTERLIKE}|{DIGIT})*([.!?]{LETTERLIKE}({LETTERLIKE}|{DIGIT})*)*",
    "PART": "([dDoOlL]{QUOTE}{ALPHANUMERIC})?{ALPHANUMERIC}+",
    "COMPOUND": r"{PART}([-_\u058A\u2010\u2011]{PART})*",
    "ACRONYM": r"([A-Za-z](\.[A-Za-z])+|"
    + any_case(r"(Canada|Sino|Korean|EU|Japan|non)-U\.S|U\.S\.-(U\.K|U\.S\.S\.R)")
    + ")",
    "HYPHENATED": r"[A-Za-z0-9][A-Za-z0-9.,\u00AD]*(-([A-Za-z0-9\u00AD]+|{ACRONYM}\.))+",
    "CAPITALS": "[A-Z]+((\\+|{AMPERSAND})[A-Z]+)+",
    "FIRST_WORD": "(" + _capitalized(FIRST_WORDS) + "|{TAG}|M" + any_case("[rs]") + r"\.)",
    "LAST_WORD": rf"({_one_of(LAST_WORDS)}|{_capitalized(CAPITALIZED_LAST_WORDS)}|"
    rf"{any_case('(ph|ed)')}\.{any_case('d')}|[Pp]?[Pp][Tt][ey]{any_case('s?')})\.",
}

# A URL's characters, and those that may end it; the same for a path after a host.
_IN_URL, _ENDS_URL = r"[^ \t\n\f\r\"<>|(){}]", r"[^ \t\n\f\r\"<>|.!?(){},\-]"
_IN_MAIL = r"[^ \t\n\f\r\u00A0\"<>|(){}.]"
_DOMAIN = any_case("(com|net|org|edu)")

RULES = [
    # Spaces in a row are passed at once: behind a plain one, a no-break space cannot begin a host's name.
    Rule("nothing", "{SPACE}+|" + any_case("&nbsp;")),
    # Two words written as one: the action gives the second back to the text.
    Rule("as is", any_case("cannot"), gives_back=3),
    Rule("as is", _one_of("gonna gotta lemme gimme wanna 'tis"), gives_back=2),
    Rule("as is", any_case("'twas"), gives_back=3),
    Rule("spaced", "{TAG}"),
    Rule("dash", any_case("&(md|mdash|ndash);") + r"|[\u0096\u0097\u2013\u2014\u2015]"),
    Rule("entity", any_case("&(amp|lt|gt|quot);")),
    Rule("as is", any_case("&(ht|tl|ur|lr|qc|ql|qr|odq|cdq|#[0-9]+);")),
    Rule("word", "{WORD}", "{CLITIC}"),
    # "wo" of "won't", but "cann't" is not of this kind.
    Rule("word", r"[A-Za-z\u00AD]*[A-MO-Za-mo-z]\u00AD*", "{NOT}"),
    Rule("word", "{WORD}"),
    Rule("as is", _one_of(WITH_APOSTROPHE)),
    # O'Brien is a compound; these are D'Angelo's cousins, then Hawai'i and Ba'ath.
    Rule("as is", "[A-HJ-XZn]{QUOTE}{LETTER}{2,}|{LETTER}+[aeiouyAEIOUY]{QUOTE}[aeiouA-Z]{LETTER}*"),
    Rule("as is", "{APOSTROPHE}[2-9]0" + any_case("s")),
    Rule("as is", "{APOSTROPHE}[0-9][0-9]", "{GAP}"),
    Rule("as is", any_case("y") + "{APOSTROPHE}", "{LETTER}"),
    Rule("as is", any_case("https?://") + f"{_IN_URL}+{_ENDS_URL}"),
    # In the host, `,-_` is a range: it takes out digits, capitals and most of ASCII's punctuation.
    Rule(
        "as is",
        rf"({any_case('www')}\.([^ \t\n\f\r\"<>|.!?(){{}},]+\.)+[a-zA-Z]{{2,4}}"
        rf"|([^ \t\n\f\r\"`'<>|.!?(){{}},-_$]+\.)+{_DOMAIN})(/[^ \t\n\f\r\"<>|()]+{_ENDS_URL})?",
    ),
    Rule("as is", rf"(&lt;|<)?[A-Za-z0-9][^ \t\n\f\r\u00A0\"<>|(){{}}]*@({_IN_MAIL}+\.)*{_IN_MAIL}+(&gt;|>)?"),
    Rule("as is", "@[a-zA-Z_][a-zA-Z0-9_]*"),
    Rule("as is", "#{LETTERLIKE}+"),
    Rule("quotes", "{CLITIC}|{NOT}", "[^A-Za-z]"),
    # Telephone numbers; spaces inside stay, as no-break spaces.
    Rule(
        "telephone",
        r"(\([0-9]{2,3}\)[ \u00A0]?|(\+\+?)?([0-9]{2,4}[\- \u00A0])?[0-9]{2,4}[\- \u00A0])"
        r"[0-9]{3,4}[\- \u00A0]?[0-9]{3,5}"
        r"|((\+\+?)?[0-9]{2,4}\.)?[0-9]{2,4}\.[0-9]{3,4}\.[0-9]{3,5}",
    ),
    Rule("as is", r"{DIGIT}{1,2}[\-/]{DIGIT}{1,2}[\-/]{DIGIT}{2,4}"),
    Rule("number", r"[\-+]?{NUMBER}"),
    Rule("as is", r"[\u207A\u207B\u208A\u208B]?([\u2070\u00B9\u00B2\u00B3\u2074-\u2079]+|[\u2080-\u2089]+)"),
    Rule("spaced", r"({DIGIT}{1,4}[\- \u00A0])?{DIGIT}{1,4}(\\?/|\u2044){DIGIT}{1,4}"),
    Rule("as is", any_case(r"-([lr][rcs]b)-|c\.d\.s|pro-|anti-|s{AMPERSAND}p-500|s{AMPERSAND}ls")),
    Rule("ampersands", "{CAPITALS}"),
    Rule("as is", r"[A-Z]*\$|#"),
    Rule("sign", r"[\u00A2\u00A3\u0080\u00A4\u20A0\u20AC\u00BC\u00BD\u00BE\u2153\u2154]"),
    # Two more characters must follow, so that "al. s" is two tokens and "al.sa" is one.
    Rule("as is", "{LAST_WORD}", _ANY + _ANY),
    Rule("as is", "(" + _one_of(TITLES) + "|" + any_case(r"a\.k\.a") + r"|[Mm][ft][Gg])\."),
    Rule("as is", "{LAST_WORD}"),
    Rule("as is", _one_of(BEFORE_NUMBERS) + r"\.", "{GAP}?{DIGIT}"),
    # "plan B. The": the period ended a sentence.
    Rule("as is", r"[A-Za-z]\.", "{GAP}+{FIRST_WORD}{GAP}", gives_back=1),
    Rule("as is", r"[A-Za-z]\.|{ACRONYM}\."),
    Rule("as is", "{ACRONYM}", "{GAP}"),
    Rule(
        "as is",
        r"({LETTERLIKE}|{DIGIT})+(\.({LETTERLIKE}|{DIGIT})+)*\." + _one_of(FILE_EXTENSIONS),
        "{GAP}|[.?!,]",
    ),
    Rule("as is", r"[cC]\+\+|[cCfF]#"),
    Rule("word", r"({WORD}|{COMPOUND}|{HYPHENATED}|{CAPITALS})\.", r"[,;:\u3001]"),
    # :-) and its like, then ^_^ and its like. The third line means "x.x", but `~` and brackets in it went astray.
    Rule("parentheses", r"[<>]?[:;=][\-o*']?[()DPdpO\\{@|\[\]]", "[^A-Za-z0-9]"),
    Rule("parentheses", rf"{_FACE}_{_FACE}|\({_FACE}[_.]?{_FACE}\)|\({_EYES}-[\^x=~<>'`]\)"),
    Rule("parentheses", r"[\^x=~<>]\.\[\^[xX]=[^<]*<>\]"),
    Rule("bracket", r"[()\[\]{}]"),
    Rule("hyphens", "-+"),
    Rule("dots", r"\.{3,5}|(\.[ \u00A0]){2,4}\.|\u2026"),
    Rule("as is", r"\*+|(\\\*){1,3}|#+|@+|_+"),
    Rule("as is", r"[,;:\u3001.]|[?!]+"),
    Rule("word", "{COMPOUND}|{HYPHENATED}"),
    Rule("as is", r"[A-Za-z0-9]+(-[A-Za-z]+){0,2}(\\?/[A-Za-z0-9]+(-[A-Za-z]+){0,2}){1,2}"),
    Rule("entity", any_case("&apos;")),
    # An opening quote: it wins over "'d" of "'dark" and leaves "'d" of "she 'd" alone.
    Rule("quote", "'", r"[A-Za-z][^ \t\n\r\u00A0\u2028\u2029]"),
    Rule("quotes", "{CLITIC}|{NOT}"),
    Rule("quote", "''?|\""),
    Rule("quotes", r"[`\u0091-\u0094\u2018-\u201F\u2039\u203A\u00AB\u00BB]{1,2}"),
    Rule("as is", rf"<<|>>|[{_ranges(SYMBOLS)}]"),
]
