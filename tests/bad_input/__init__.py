"""The table of bad input: what is given, and what its message must name."""

import pytest

TABLE = []


def case(error, *values):
    """One line of the table: the function gives the bad input, and each of `values` is in the error's message.

    Its argument has the tiny model of tests/tiny.py and its parts: `directory`, `model`, `processor`, an `image`,
    `inputs` for it, and an empty directory `tmp`.
    """

    def add(give):
        TABLE.append(pytest.param(give, error, values, id=give.__name__))
        return give

    return add
