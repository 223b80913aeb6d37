"""The table of bad input: what is given, and the message that it gets."""

import re

import pytest

TABLE = []


def case(error, message):
    """One line of the table: the function gives the bad input, `message` is the error's whole text, `…` for any.

    Its argument has the tiny model of tests/tiny.py and its parts: `directory`, `model`, `processor`, an `image`,
    `inputs` for it, and an empty directory `tmp`.
    """

    def add(give):
        pattern = ".*".join(map(re.escape, message.split("…")))
        TABLE.append(pytest.param(give, error, f"(?s)^{pattern}$", id=give.__name__))
        return give

    return add
