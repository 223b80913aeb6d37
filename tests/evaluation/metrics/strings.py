"""Strings to try a tokenizer with: captions with odd tokens, rules' words misspelt, any ASCII, much of Unicode."""

from __future__ import annotations

import random

# What some rule of the tokenizer is about.
ODD = """
    a an the man woman dog two 3 street standing 'tis 'twas gonna cannot wanna gotta gimme lemme don't can't it's I'm
    they're won't isn't she'd've o'clock O'Brien O'Neil-Smith dogs' child’s women's rock'n'roll 'n' ma'am y'all li'l
    e'er c'mon s'mores more'n cont'd d'ye c'est l'amour th’ '90s '98 5'10" 4x4 1/2 1\\/2 3.14 1,000.50 10:30
    12/25/2014 2014-12-25 $5.99 US$5 £5 €6 5¢ 50% 20°C #1 #tag @home me@example.org <me@example.org> http://a.b/c?d=e
    www.example.com www.a.co.uk foo.com/~x file.txt a.b.html :) :-( ;) :D =) ^_^ (^_^) <3 ... .... . . . … -- --- – —
    “very” 'very' "very" ``x'' «x» ‹x› (sic) [sic] {ok} & &amp; &AMP; &quot; &#39; &eacute;t&eacute; AT&T R&D A&B&C
    S&P-500 C++ C# F# A+B black-and-white so-called 7-Eleven U.S.-based non-U.S. EU-U.S. U.S.-U.K. T-shirt pro-choice
    anti- café naïve jalapeño ÉCOLE 日本 「日本」 Канада Ünter ﬁx ΑΣ Σ ½ ¼ x² H₂O x⁻¹ ± × ° ™ a/b and/or
    a/b-c/d his/her w/o
    *star* ** \\* under_score back\\slash ~10 > < << >> = + | ^ ` _ 555-1234 555-123-4567 (212) 555-1234 +1 555 555
    1234 No. 5 Nos. Figs. 2-3 Art. 5 St. Mr. Mrs. Dr. Messrs. Inc. Co. Ltd. Ph.D. Ed. et al. etc. e.g. i.e. a.k.a.
    a.m. p.m. U.S. U.K. N.Y. U.S U.S.A. J. R. A. The M. Mr. B. <p> Jan. Sat. Sun. Calif. -LRB- -RRB- C.D.s
    soft\xadhyphen 😀 𐐀 <b> </b> <br/> <p class="x"> <a b='c d'> <!-- x -->
""".split()
ASCII = [chr(code) for code in range(0x20, 0x7F)]
BLOCKS = [
    *((0x01, 0x09), (0x0E, 0x1F), (0x7F, 0x84), (0x86, 0x9F), (0xA1, 0x17F), (0x180, 0x24F), (0x250, 0x36F)),
    *(
        (0x370, 0x3FF),
        (0x400, 0x4FF),
        (0x590, 0x6FF),
        (0x900, 0x97F),
        (0xE00, 0xE7F),
        (0x2000, 0x2027),
        (0x202A, 0x206F),
    ),
    *((0x2070, 0x209F), (0x20A0, 0x20CF), (0x2100, 0x218F), (0x2190, 0x22FF), (0x2460, 0x24FF), (0x2500, 0x27BF)),
    *((0x3000, 0x30FF), (0x4E00, 0x4EFF), (0xAC00, 0xACFF), (0xFB00, 0xFDFF), (0xFF00, 0xFFEF)),
    *((0x10400, 0x1044F), (0x1D400, 0x1D7FF), (0x1F300, 0x1F6FF)),
]
JOINTS = "' - / . _ @ & ’ 's n't + , : ; \" \xad \xa0".split(" ")


def caption(chance: random.Random) -> str:
    """A string without line breaks, of 0 to some 300 characters."""
    kind = chance.random()
    if kind < 0.55:
        text = chance.choice(["  ", " ", " ", " "]).join(_word(chance) for _ in range(chance.randint(1, 12)))
        text += chance.choice(["", ".", "!", "?", '."', " .", ";", ",", ")"])
    elif kind < 0.65:
        text = "".join(_word(chance) for _ in range(chance.randint(1, 5)))
    elif kind < 0.8:
        text = "".join(chance.choices(ASCII, k=chance.choice([3, 10, 30, 30, 300])))
    elif kind < 0.95:
        text = "".join(_anything(chance) if chance.random() < 0.3 else chance.choice(ASCII) for _ in range(25))
    else:
        text = "".join(chance.choices("aA1.'- ", k=chance.randint(0, 20)))
    return "".join(" " if character in "\n\r\v\f\x85\u2028\u2029" else character for character in text)


def _word(chance: random.Random) -> str:
    kind = chance.random()
    odd = _case(chance, chance.choice(ODD))
    if kind < 0.5:
        return odd
    if kind < 0.6:
        return chance.choice([odd + chance.choice(ASCII), chance.choice(ASCII) + odd])
    if kind < 0.7:
        return odd + chance.choice(JOINTS) + _case(chance, chance.choice(ODD))
    if kind < 0.8:
        return _misspelt(chance, odd)
    if kind < 0.85:
        return "".join(chance.choices("0123456789.,-/:() +'", k=chance.randint(1, 14)))
    if kind < 0.9:
        return "".join(chance.choices("aAbBnNsStTdDoO.'’-&1", k=chance.randint(2, 9)))
    if kind < 0.94:
        return "".join(chance.choices("<>ab =\"'/!-x", k=chance.randint(3, 12)))
    if kind < 0.97:
        return "".join(_anything(chance) for _ in range(chance.randint(1, 4)))
    return "".join(chance.choices(ASCII[1:], k=chance.randint(1, 6)))


def _case(chance: random.Random, word: str) -> str:
    mixed = "".join(chance.choice([letter.upper(), letter.lower()]) for letter in word)
    return chance.choice([word, word, word, word.upper(), word.title(), word.lower(), mixed])


def _misspelt(chance: random.Random, word: str) -> str:
    letters = list(word)
    for _ in range(chance.randint(1, 3)):
        place = chance.randrange(len(letters) + 1)
        if letters and chance.random() < 0.3:
            letters.pop(min(place, len(letters) - 1))
        else:
            letters.insert(place, chance.choice([chance.choice(ASCII), chance.choice(JOINTS), _anything(chance)]))
    return "".join(letters)


def _anything(chance: random.Random) -> str:
    return chr(chance.randint(*chance.choice(BLOCKS)))
