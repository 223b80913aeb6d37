"""Prompt templates: the strings, what they refuse, and how answers are read."""

import re

import pytest

from flamboyance.templates import Template, caption, classification, vqa


def test_the_strings_are_open_flamingos() -> None:
    assert caption.demonstration(" Two cats.\n") == "<image>Output:Two cats.<|endofchunk|>"
    assert caption.query() == "<image>Output:"
    assert vqa.query("How many cats? ") == "<image>Question:How many cats?  Short answer:"
    solved = "<image>Question:How many cats? Short answer:2<|endofchunk|>"
    assert vqa.demonstration("How many cats?", "2") == solved
    assert vqa.demonstration(answer="2", question="How many cats?") == solved
    assert vqa.demonstration("How many cats?", answer="2") == solved
    assert classification.demonstration(text="goldfish") == "<image>Output:goldfish<|endofchunk|>"
    assert classification.query() == "<image>Output:"
    assert classification.completion("goldfish") == "goldfish"
    assert vqa.completion("2") == "2"


def test_a_template_of_ones_own() -> None:
    photo = Template("<image>A photo of {text}.")
    assert photo.fields == ("text",)
    assert photo.demonstration("a cat ") == "<image>A photo of a cat.<|endofchunk|>"
    assert photo.query() == "<image>A photo of"  # the space belongs to the answer's first token
    assert photo.query() + photo.completion(" a cat") + "<|endofchunk|>" == photo.demonstration("a cat")
    assert photo.parse(" a cat.") == photo.parse(" a cat") == photo.parse(" a cat. <|endofchunk|>.") == "a cat"
    braces = Template("<image>{{{question}}} gives {answer} {{answer}}")
    assert braces.demonstration("{1}", "{2}") == "<image>{{1}} gives {2} {answer}<|endofchunk|>"
    assert braces.query("{1}") == "<image>{{1}} gives"
    assert braces.completion("{2}") == " {2} {answer}"
    assert braces.parse(" {2} {answer}") == "{2}"
    two = Template("<image><image>The second is {text}")
    assert two.query() == "<image><image>The second is"
    assert photo == Template("<image>A photo of {text}.")
    assert len({photo, two, braces}) == 3


def test_answers_are_cut_where_the_next_example_begins() -> None:
    assert caption.parse(' Two "cats".\nOutput: A dog. Output:') == "Two cats."
    assert vqa.parse(" 2 Question:Where? Short answer:there") == "2"
    assert vqa.parse("2 Short") == vqa.parse("2<|endofchunk|><image>5") == "2"
    assert classification.parse("goldfish<|endofchunk|>") == "goldfish"
    assert Template("<image>{text}").parse(" Output as it is ") == "Output as it is"


def test_a_template_can_keep_answers_whole() -> None:
    own = caption.keeping(['a "stop" sign', "Shorts"])
    assert own.parse('a "stop" sign') == 'a "stop" sign' and own.pattern == caption.pattern
    assert own.parse("a dog Output: a cat") == "a dog"
    assert vqa.keeping(["Short hair"]).parse("Short hair Question: 2") == "Short hair"
    assert vqa.keeping(["long hair"]) == vqa


BAD_PATTERNS = {
    "no field": ("<image>Output:", "Output:"),
    "no image": ("Output:{text}", "no <image>"),
    "ended twice": ("<image>{text}<|endofchunk|>", "<|endofchunk|>"),
    "a field twice": ("<image>{text} {text}", "{text} {text}"),
    "by position": ("<image>{} {0}", "named fields"),
    "an attribute": ("<image>{text.__class__}", "named fields"),
    "a format": ("<image>{text:>10}", "named fields"),
    "a conversion": ("<image>{text!r}", "named fields"),
    "an open brace": ("<image>{text", "'<image>{text'.*'}'"),
}


@pytest.mark.parametrize("case", BAD_PATTERNS)
def test_bad_patterns(case: str) -> None:
    pattern, message = BAD_PATTERNS[case]
    with pytest.raises(ValueError, match=message.replace("|", r"\|").replace("{", r"\{")):
        Template(pattern)


BAD_SETTINGS = {
    "one stop as a text": {"stops": "Output"},  # would be six stops
    "an empty stop": {"stops": ("Output", "")},  # would end every answer at its beginning
    "a number as a stop": {"stops": [1]},
    "no stops": {"stops": None},
    "drop as a list": {"drop": ["."]},
    "no pattern": {"pattern": None},
}


@pytest.mark.parametrize("case", BAD_SETTINGS)
def test_bad_settings(case: str) -> None:
    [(name, value)] = BAD_SETTINGS[case].items()
    with pytest.raises(ValueError, match=f"{name}.*{re.escape(repr(value))}.*expected"):
        Template(**{"pattern": "<image>{text}", name: value})


BAD_VALUES = {
    "an image": (("a <image> b",), {}, ValueError, "text='a <image> b'.*'<image>'"),
    "an end": (("a<|endofchunk|>",), {}, ValueError, r"text='a<\|endofchunk\|>'.*'<\|endofchunk\|>'"),
    "nothing": ((), {}, TypeError, r"\(text\).*\(\)"),
    "too much": (("a", "b"), {}, TypeError, r"\(text\).*\('a', 'b'\)"),
    "another name": ((), {"caption": "a"}, TypeError, r"\(text\).*\(caption='a'\)"),
    "twice": (("a",), {"text": "b"}, TypeError, r"\('a', text='b'\)"),
    "a number": ((7,), {}, TypeError, "text.*7.*int"),
    "None": ((None,), {}, TypeError, "None"),
}


@pytest.mark.parametrize("case", BAD_VALUES)
def test_bad_values(case: str) -> None:
    values, named, error, message = BAD_VALUES[case]
    with pytest.raises(error, match=message):
        caption.demonstration(*values, **named)


def test_tokens_cannot_be_put_together_from_pieces() -> None:
    split = Template("<image>{question}{answer}")
    assert split.demonstration("a <im", "pressive> b") == "<image>a <impressive> b<|endofchunk|>"
    with pytest.raises(ValueError, match="<image>"):
        split.demonstration("a <ima", "ge> b")
    with pytest.raises(ValueError, match="<image>"):
        Template("<image><|end{question}|>{answer}").query("ofchunk")
    with pytest.raises(ValueError, match="question='<image>'"):
        vqa.query("<image>")


def test_repr_is_what_would_be_written() -> None:
    assert repr(caption) == "Template('<image>Output:{text}', stops=('Output',), drop='\"')"
    assert repr(Template("<image>A {thing}.")) == "Template('<image>A {thing}.')"
    assert eval(repr(vqa), {"Template": Template}) == vqa
