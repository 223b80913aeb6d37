"""Checks of arguments. Errors state what was given and what was expected. Torch is not imported."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable
from typing import Any

SCHEMES = {"int8": 8, "int4": 4}  # bits of a weight


def brief(value: Any) -> str:
    """A value for a message, in at most 80 characters; of an array its shape, of other large objects the type."""
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple):
        return f"{_a(type(value).__name__.replace('ndarray', 'array'))} of shape {tuple(shape)}"
    if not isinstance(value, str | bytes | int | float | tuple | list | dict | set | frozenset | type(None)):
        text = repr(value)
        return text if len(text) < 80 and "\n" not in text else _a(type(value).__name__)
    text = repr(value)
    return text if len(text) < 80 else f"{text[:77]}…"


def whole_number(name: str, value: Any, least: int) -> int:
    """The value as an int.

    Raises:
        ValueError: it is not a whole number, or less than `least`.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least:
        raise ValueError(f"{name}={brief(value)}: expected a whole number, {least} or more")
    return number


def scheme(quantize: object) -> str | None:
    """The value of `quantize=`, which names how the weights of frozen parts are kept.

    Raises:
        ValueError: an unknown scheme.
    """
    if quantize is not None and quantize not in SCHEMES:
        raise ValueError(f"quantize={brief(quantize)}: expected {' or '.join(map(repr, SCHEMES))}, or None")
    return None if quantize is None else str(quantize)


def listed(name: str, value: Any, of: str, example: str) -> list[Any]:
    """The entries of a list, a tuple or another iterable.

    Args:
        of: the kind of entries, e.g. "images".
        example: a correct value.

    Raises:
        ValueError: it is a single object, such as a text, a path, a picture or an array.
    """
    single = isinstance(value, str | bytes | bytearray | dict) or hasattr(value, "shape")
    if single or not isinstance(value, Iterable):
        raise ValueError(f"{name} is {brief(value)}; expected a list of {of}, even for one: {example}")
    return list(value)


def text(name: str, value: object) -> None:
    """
    Raises:
        ValueError: the value is not a text.
    """
    if not isinstance(value, str):
        raise ValueError(f"{name} is {brief(value)}; expected a text")


def texts(name: str, value: Any, example: str) -> list[str]:
    """A list of texts, none of them empty.

    Raises:
        ValueError: it is a single text, is empty, or holds an empty text or another object.
    """
    found = listed(name, value, "texts", example)
    if not found:
        raise ValueError(f"{name} is empty; expected a list of texts: {example}")
    for place, one in enumerate(found):
        if not isinstance(one, str) or not one.strip():
            raise ValueError(f"{name}[{place}] is {brief(one)}; expected a text that is not empty")
    return found


def printable(text: str) -> str:
    """The text with control characters escaped as in JSON (`\\n`, `\\u001b`), for a terminal."""
    short = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
    return re.sub(
        r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", lambda found: short.get(found[0], f"\\u{ord(found[0]):04x}"), text
    )


def _a(noun: str) -> str:
    return f"an {noun}" if noun[:1].lower() in "aeiou" else f"a {noun}"
