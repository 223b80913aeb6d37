"""The tokenizer's edges, and the scanner below it."""

import pytest

from flamboyance.evaluation.metrics.ptb.java_lower import java_lower
from flamboyance.evaluation.metrics.ptb.lexer import Automaton, Lexer, Rule
from flamboyance.evaluation.metrics.ptb.rules import RULES, any_case
from flamboyance.evaluation.metrics.ptb.tokenizer import ACTIONS, ptb_tokenize, ptb_tokenize_all


@pytest.mark.parametrize(
    "text, tokens",
    [
        ("", ""),
        ("   ", ""),
        (".", ""),
        ("It's a dog-house.", "it 's a dog-house"),
        ("A man\non a horse", "a man on a horse"),  # pycocoevalcap makes the line break a space
        ("A man\r\non a horse", "a man on a horse"),
        ("(a) [b]", "-lrb- a -rrb- -lsb- b -rsb-"),  # brackets are not on the list of what goes
        ("😀 a\x00b", "a b"),
        ("half \ud83d", "half"),
        ("1 1/2 cups", "1\xa01/2 cups"),
    ],
)
def test_tokens(text: str, tokens: str) -> None:
    assert ptb_tokenize(text) == tokens


def test_a_caption_can_change_the_one_before() -> None:
    assert ptb_tokenize_all(["Plan B.", "The end"]) == ["plan b", "the end"]
    assert ptb_tokenize_all(["Plan B.", "No end"]) == ["plan b.", "no end"]
    assert ptb_tokenize_all(["No.", "5 cats"]) == ["no.", "5 cats"]
    # The last one has no line break behind it.
    assert ptb_tokenize_all(["a :)", "a :)"]) == ["a :-rrb-", "a -rrb-"]
    assert ptb_tokenize_all(["a", "", "b"]) == ["a", "", "b"]


def test_every_action_is_there() -> None:
    assert {rule.action for rule in RULES} == set(ACTIONS)


def test_small_letters_are_javas() -> None:
    assert java_lower("ÉCOLE İ") == "École İ".lower()
    assert java_lower("ΑΣ ΑΣΑ Σ") == "ας ασα σ"
    assert java_lower("A_Σ ΣA A1.5Σ A$Σ AΣ-B A𝟽Σ") == "a_ς σa a1.5ς a$σ aσ-b a𝟽σ"


def test_longest_match_wins_then_the_earliest_rule() -> None:
    lexer = Lexer([Rule("ab", "ab"), Rule("word", "{LETTER}+"), Rule("number", "[0-9]{1,2}")], {"LETTER": "[a-z]"})

    def split(text: str) -> list[tuple[str, str]]:
        found, place = [], 0
        while match := lexer.match(text, place):
            found.append((match[0].action, text[place : match[1]]))
            place = match[1]
        return found

    assert split("ab1234abc") == [("ab", "ab"), ("number", "12"), ("number", "34"), ("word", "abc")]
    assert split("ab!") == [("ab", "ab")]


def test_what_follows_counts_for_the_length_and_stays() -> None:
    lexer = Lexer([Rule("a's", "a+", "a?b"), Rule("word", "[a-z]"), Rule("back", "xyz", gives_back=2)], {})
    assert lexer.match("aaab", 0) == (lexer.rules[0], 3)  # the longest token that leaves "b"
    assert lexer.match("aaac", 0) == (lexer.rules[1], 1)
    assert lexer.match("xyz", 0) == (lexer.rules[2], 1)
    assert lexer.match("!", 0) is None


@pytest.mark.parametrize(
    "pattern, whole, part",
    [
        ("a{2,3}", ["aa", "aaa"], ["a", "aaaa"]),
        ("a{2,}b?", ["aa", "aaab"], ["a", "ab"]),
        ("(a|bc)*d", ["d", "abcad"], ["ab", "acd"]),
        (r"[^a\]]\*|\u0041", ["b*", "A"], ["a*", "]*", "a"]),
        (any_case("[sk]i"), ["Si", "\u017fi", "\u212a\u0130"], ["s", "ai"]),
    ],
)
def test_patterns(pattern: str, whole: list[str], part: list[str]) -> None:
    automaton = Automaton([pattern], {})
    assert all(automaton.longest(text, 0) == (0, len(text)) for text in whole)
    assert not any(automaton.longest(text, 0) == (0, len(text)) for text in part)


@pytest.mark.parametrize("pattern", ["(a", "a)", "a|(b"])
def test_a_pattern_that_is_none(pattern: str) -> None:
    with pytest.raises(ValueError, match="at"):
        Automaton([pattern], {})
