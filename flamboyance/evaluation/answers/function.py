"""Answers an evaluation's prompts with a function of the user's: any model that can be called from Python."""

from __future__ import annotations

import dis
import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

from PIL import Image

from flamboyance.evaluation.answers.flamingo import timed
from flamboyance.evaluation.answers.label_choice import matched
from flamboyance.evaluation.answers.turns import Turn, turns
from flamboyance.evaluation.prompts import Prompt
from flamboyance.evaluation.task import Choice
from flamboyance.images import load_image

KEPT = 256  # decoded images


@dataclass(frozen=True)
class Demonstration:
    """An example with its answer.

    Attributes:
        images: upright RGB; none in the demonstrations of 0 shots.
        request: what is asked beside the image, such as "Question:what is this? Short answer:".
        answer: the right one.
    """

    images: tuple[Image.Image, ...]
    request: str
    answer: str


@dataclass(frozen=True)
class Query:
    """What is to be answered.

    Attributes:
        id: of the example in its task.
        images, request: as of a demonstration.
        labels: the answers to choose from; None if any text may be given.
        max_new_tokens: how long an answer may be.
    """

    id: str
    images: tuple[Image.Image, ...]
    request: str
    labels: tuple[str, ...] | None
    max_new_tokens: int


Answer = Callable[[list[Demonstration], Query], str | Mapping[str, float]]
"""(demonstrations, query) -> the answer; or, if the query has labels, a log-probability for each of them."""


def _digest(function: Any) -> str:
    """What tells a function from another of the same name: its code, its defaults, and the texts, functions and real
    numbers that it closes over; and of the globals that it names, also the integers. Not integers that it closes over
    or writes, and lists, by which functions count their calls. Of an object its class and its name."""
    return hashlib.sha256(repr(_described(function, 0)).encode("utf-8", "backslashreplace")).hexdigest()[:16]


def _described(value: Any, depth: int, named: bool = True) -> Any:
    """A value in what `repr` writes alike in every process.

    Args:
        named: of a function, also the globals that its code names.
    """
    if isinstance(value, str | bytes | bool | float | None):
        return value
    if depth > 8:  # a function that closes over itself
        return type(value).__qualname__
    if isinstance(value, tuple):
        return [_described(one, depth + 1, named) for one in value]
    if isinstance(value, frozenset):  # as of `answer in {"yes", "no"}`
        return sorted(map(repr, value))
    if isinstance(value, CodeType):
        consts = [_fixed(one, depth + 1, named) for one in value.co_consts]
        return [value.co_code, value.co_names, consts]
    if isinstance(value, partial):
        parts = [value.func, *value.args, *sorted(value.keywords.items())]
        return [_fixed(one, depth + 1, named) for one in parts]
    function = getattr(value, "__func__", value)  # of a method
    if not isinstance(function, FunctionType):
        call = vars(type(value)).get("__call__")
        code = [_described(call, depth + 1, named)] if isinstance(call, FunctionType) else []
        return [type(value).__module__, type(value).__qualname__, *_names(value), *code]
    closed = []
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # not filled yet
            closed.append(_described(cell.cell_contents, depth + 1, named))
    defaults = _fixed((*(function.__defaults__ or ()), *sorted((function.__kwdefaults__ or {}).items())), depth, named)
    owner = _described(value.__self__, depth + 1, False) if function is not value else None
    found = _globals(function, depth) if named else []
    return [_described(function.__code__, depth + 1, named), defaults, closed, owner, found]


def _fixed(value: Any, depth: int, named: bool) -> Any:
    """As `_described`, of a value that stays what it is: with its integers."""
    if isinstance(value, tuple):
        return [_fixed(one, depth + 1, named) for one in value]
    return value if isinstance(value, int) else _described(value, depth, named)


def _globals(function: FunctionType, depth: int) -> list[Any]:
    """The globals that a function reads and does not write, each with its name; functions without theirs in turn."""
    read, written = set[str](), set[str]()
    codes = [function.__code__]
    for code in codes:  # grows by the functions within
        codes += [one for one in code.co_consts if isinstance(one, CodeType)]
        for step in dis.get_instructions(code):
            if step.opname in ("LOAD_GLOBAL", "LOAD_NAME", "STORE_GLOBAL"):
                (written if step.opname == "STORE_GLOBAL" else read).add(step.argval)
    there = sorted((read - written) & function.__globals__.keys())
    return [(name, _fixed(function.__globals__[name], depth + 1, False)) for name in there]


def _names(value: Any) -> list[str]:
    """What an object calls itself: a model of transformers its directory or repository, a module or class its name."""
    found = []
    for attribute in ("name_or_path", "name", "__qualname__", "__name__"):
        with suppress(Exception):  # a property may do anything
            name = getattr(value, attribute, None)
            found += [name] if isinstance(name, str) else []
    return found


class FunctionAnswers:
    """Answers prompts with a function."""

    context: int | None = None
    continues = False
    place = "Python"

    def __init__(self, function: Answer):
        self.function = function
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._image = lru_cache(KEPT)(load_image)

    def describe(self) -> dict[str, Any]:
        """The entries by which run.json names the model."""
        return {"kind": "function", "code": _digest(self.function)}

    def lengths(self, prompts: Sequence[Prompt]) -> list[int]:
        """A measure of the length of each prompt."""
        return [len(prompt.text) for prompt in prompts]

    def ahead(self, prompts: Sequence[Prompt]) -> None:
        """Does nothing: the function is called for one prompt at a time."""

    def generate(self, prompts: Sequence[Prompt]) -> list[str]:
        """The answer to each prompt.

        Raises:
            TypeError: the function gives no text.
        """
        answers = []
        for prompt in prompts:
            answer = self._call(prompt)
            if not isinstance(answer, str):
                raise TypeError(
                    f"{prompt.task.name}, query {prompt.query.id!r}: the function gave a {type(answer).__name__}; "
                    "expected a text"
                )
            answers.append(answer)
        return answers

    def choose(self, prompts: Sequence[Prompt]) -> list[Choice]:
        """The label that answers each prompt.

        Raises:
            TypeError: the function gives neither a text nor a number for each label.
        """
        return [_choice(self._call(prompt), prompt) for prompt in prompts]

    def _call(self, prompt: Prompt) -> object:
        *shown, last = turns(prompt)
        demonstrations = [Demonstration(self._images(one), one.request, one.answer or "") for one in shown]
        task = prompt.task
        query = Query(prompt.query.id, self._images(last), last.request, task.labels, task.max_new_tokens)
        with timed(self.seconds, "answer"):
            return self.function(demonstrations, query)

    def _images(self, turn: Turn) -> tuple[Image.Image, ...]:
        return tuple(self._image(Path(image)) for image in turn.images)


def _choice(answer: object, prompt: Prompt) -> Choice:
    labels = prompt.task.labels or ()
    if isinstance(answer, str):
        return Choice(matched(answer, labels) or answer.strip(), answer, None, "text")
    if isinstance(answer, Mapping) and set(answer) == set(labels):
        scores = tuple(float(answer[label]) for label in labels)
        if not any(map(math.isnan, scores)):
            return Choice(labels[scores.index(max(scores))], None, scores, "scores")
    raise TypeError(
        f"{prompt.task.name}, query {prompt.query.id!r}: the function gave {answer!r:.200}; expected a text, or a "
        f"log-probability for each of the labels {', '.join(labels[:10])}"
    )
