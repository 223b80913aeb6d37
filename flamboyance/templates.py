"""Prompt templates: they write demonstrations and the query after them, and parse the answer."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from string import Formatter
from typing import Any

from flamboyance import checks

IMAGE_TOKEN = "<image>"
END_OF_CHUNK_TOKEN = "<|endofchunk|>"


def well_formed(text: str) -> str:
    """The text with "?" for each half of a surrogate pair, which encodings and tokenizers reject."""
    return text.encode("utf-8", "replace").decode() if not text.isascii() else text


@dataclass(frozen=True, repr=False)
class Template:
    """A pattern with named fields, the last of which is the answer.

    `Template("<image>A photo of {text}.")` writes the demonstration `<image>A photo of a cat.<|endofchunk|>`, and the
    query `<image>A photo of`, which ends before the answer. Values are given in the pattern's order or by name.

    Args:
        pattern: a text with `<image>` for the image and `{name}` for a field; `{{` and `}}` are braces.
        stops: an answer ends where one of these begins, since models continue with the next question or caption.
        drop: characters that are removed from an answer.
        strip: remove white space around the values.
    """

    pattern: str
    stops: tuple[str, ...] = ()
    drop: str = ""
    strip: bool = True
    fields: tuple[str, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        checks.text("pattern", self.pattern)
        checks.text("drop", self.drop)
        stops = tuple(checks.listed("stops", self.stops, "texts", "stops=('Question',)"))
        if not all(isinstance(stop, str) and stop for stop in stops):
            raise ValueError(
                f"stops={checks.brief(self.stops)}: expected texts that are not empty; an answer ends at one"
            )
        object.__setattr__(self, "stops", stops)
        try:
            parts = list(Formatter().parse(self.pattern))
        except ValueError as error:
            raise ValueError(f"template {self.pattern!r}: {error}") from error
        fields = tuple(name for _, name, _, _ in parts if name is not None)
        plain = all(not spec and not conversion for _, _, spec, conversion in parts)
        if not fields or not plain or not all(map(str.isidentifier, fields)) or len(set(fields)) < len(fields):
            raise ValueError(
                f"template {self.pattern!r}: expected plain named fields, each once, with the answer last, as in "
                "'<image>Question:{question} Short answer:{answer}'"
            )
        if IMAGE_TOKEN not in self.pattern:
            raise ValueError(f"template {self.pattern!r} has no {IMAGE_TOKEN}; put it in the place of the image")
        if END_OF_CHUNK_TOKEN in self.pattern:
            raise ValueError(f"template {self.pattern!r}: leave out {END_OF_CHUNK_TOKEN}; it is added automatically")
        object.__setattr__(self, "fields", fields)

    def __repr__(self) -> str:
        defaults = {"stops": (), "drop": "", "strip": True}
        changed = [
            f"{name}={getattr(self, name)!r}" for name, value in defaults.items() if getattr(self, name) != value
        ]
        return f"Template({', '.join([repr(self.pattern), *changed])})"

    def demonstration(self, *values: str, **named: str) -> str:
        """An example with its answer, ended by `<|endofchunk|>`."""
        text = self.pattern.format(**self._values(self.fields, values, named))
        return self._checked(text, self.pattern) + END_OF_CHUNK_TOKEN

    def query(self, *values: str, **named: str) -> str:
        """An example up to its answer, without the white space before it.

        Tokenizers join a space to the word after it, so the space is the beginning of the model's answer.
        """
        opening = self._around_answer()[0].rstrip()
        text = opening.format(**self._values(self.fields[:-1], values, named))
        return self._checked(text, opening)

    def completion(self, answer: str) -> str:
        """The text after the query in a demonstration with this answer: the text that a model is scored on."""
        opening, ending = self._around_answer()
        space = opening[len(opening.rstrip()) :]
        pattern = space + "{" + self.fields[-1] + "}" + ending
        return self._checked(pattern.format(**self._values(self.fields[-1:], (answer,), {})), pattern)

    def parse(self, generated: str) -> str:
        """The answer in the text that a model generated after a query: up to the first stop, without `drop`."""
        stops = "|".join(map(re.escape, (END_OF_CHUNK_TOKEN, *self.stops)))
        answer = re.split(stops, generated, maxsplit=1)[0].strip()
        answer = answer.removesuffix(self.ending)
        return answer.translate(dict.fromkeys(map(ord, self.drop))).strip()

    def keeping(self, answers: Iterable[str]) -> Template:
        """The template that reads these answers whole: without the stops and the dropped characters that are in one."""
        known = "\0".join(answers)
        stops = tuple(stop for stop in self.stops if stop not in known)
        return replace(self, stops=stops, drop="".join(char for char in self.drop if char not in known))

    @property
    def ending(self) -> str:
        """The text after the answer in a demonstration, without white space around it."""
        return self._around_answer()[1].format().strip()

    def _around_answer(self) -> tuple[str, str]:
        """The pattern before and after its answer."""
        written = ""
        for literal, name, _, _ in Formatter().parse(self.pattern):
            written += literal.replace("{", "{{").replace("}", "}}")
            if name == self.fields[-1]:
                return written, self.pattern[len(written) + len(name) + 2 :]
            written += f"{{{name}}}" if name is not None else ""
        raise AssertionError("a template has an answer")

    def _values(self, fields: tuple[str, ...], values: tuple[Any, ...], named: dict[str, Any]) -> dict[str, str]:
        given = dict(zip(fields, values, strict=False)) | named
        if len(values) + len(named) != len(fields) or given.keys() != set(fields):
            shown = ", ".join([*map(repr, values), *(f"{name}={value!r}" for name, value in named.items())])
            raise TypeError(f"template {self.pattern!r}: expected ({', '.join(fields)}); given ({shown})")
        for name, value in given.items():
            if not isinstance(value, str):
                raise TypeError(f"{name}={value!r} is a {type(value).__name__}; expected a text")
            for token in (IMAGE_TOKEN, END_OF_CHUNK_TOKEN):
                if token in value:
                    raise ValueError(f"{name}={value!r} contains {token!r}, which would alter the prompt; remove it")
        return {name: value.strip() for name, value in given.items()} if self.strip else given

    def _checked(self, text: str, pattern: str) -> str:
        # Two texts without a token can form one where they meet.
        if text.count(IMAGE_TOKEN) != pattern.count(IMAGE_TOKEN) or END_OF_CHUNK_TOKEN in text:
            raise ValueError(
                f"the filled template {text!r} contains an {IMAGE_TOKEN} or {END_OF_CHUNK_TOKEN} that the pattern lacks"
            )
        return text


# OpenFlamingo's strings: no space after a colon, no newline between demonstrations.
caption = Template("<image>Output:{text}", stops=("Output",), drop='"')
vqa = Template("<image>Question:{question} Short answer:{answer}", stops=("Question", "Answer", "Short"), strip=False)
classification = Template("<image>Output:{text}", stops=("Output",), strip=False)


def settled(template: Template, answers: Iterable[str]) -> Template:
    """The template for demonstrations with these answers. The papers' templates do not cut what the answers contain; a
    user's own template stays as it is."""
    return template.keeping(answers) if template in (caption, vqa, classification) else template


OPENING = (
    "This is a conversation between a human, User, and an intelligent visual AI, Flamingo. User sends images, and "
    "Flamingo describes them."
)
"""The beginning of Flamingo's dialogue prompt (Alayrac et al. 2022, appendix D)."""

USER, MODEL = "User:", "Flamingo:"


def opened(opening: str) -> str:
    """The text of a conversation before its first turn."""
    return f"{opening}\n" if opening else ""


def asked(before: str, media: int, said: str) -> str:
    """The text of a conversation up to the model's answer to what the user says, with so many images and videos."""
    return f"{before}{USER} {IMAGE_TOKEN * media}{said}\n{MODEL}"


def answered(asked: str, answer: str) -> str:
    """The text with the answer."""
    return f"{asked} {answer}\n"


CHAT_TEMPLATE = """\
{%- macro written(content) -%}
{%- if content is string -%}{{ content | trim }}
{%- else -%}
{%- for part in content -%}
{%- if part['type'] == 'image' -%}<image>
{%- elif loop.first or loop.previtem['type'] == 'image' -%}{{ part['text'].lstrip() }}
{%- else -%}{{ part['text'] }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- set turn = namespace(question='') -%}
{%- for message in messages -%}
{%- set text = written(message['content']) | trim -%}
{%- set before = turn.question -%}
{%- set joined = not before or before.endswith('<image>') -%}
{%- if message['role'] == 'assistant' -%}
{{- before -}}
{%- if not joined and not before.endswith(':') -%}{{- ' ' -}}{%- endif -%}
{{- text -}}<|endofchunk|>
{%- set turn.question = '' -%}
{%- else -%}
{%- set turn.question = before ~ ('' if joined or text.startswith('<image>') else ' ') ~ text -%}
{%- endif -%}
{%- endfor -%}
{{- turn.question -}}
"""
"""Jinja: the turns of user and assistant become demonstrations, the last turn of the user the query."""
