"""Every command that takes --quantize passes it on to the door that opens models."""

import argparse
from pathlib import Path

import pytest

from flamboyance import catalog, cli, examples

IMAGE = str(examples.queries[0])
MODEL = ["--model", "mini", "--quantize", "int8"]
ARGUMENTS = {
    "caption": [IMAGE, *MODEL],
    "ask": [IMAGE, "--question", "what is it?", *MODEL],
    "classify": [IMAGE, "--labels", "a,b", *MODEL],
    "chat": MODEL,
    "serve": ["--port", "0", *MODEL],
    "web": ["--port", "0", *MODEL],
    "evaluate": [str(Path(examples.demonstrations[0][0]).parent), "--shots", "0", *MODEL],
    "demo": MODEL[2:],
    "info": ["mini", *MODEL[2:]],
}


def takers() -> set[str]:
    parser = cli.build_parser()
    (commands,) = (a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return {name for name, one in commands.items() if "--quantize" in one._option_string_actions}


def test_every_command_that_takes_it_is_here() -> None:
    assert takers() == set(ARGUMENTS)


class Opened(Exception):
    pass


@pytest.mark.parametrize("command", sorted(ARGUMENTS))
def test_it_reaches_the_model(command, monkeypatch, tmp_path) -> None:
    def opened(self, quantize=None, **options):
        raise Opened(quantize)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(catalog.Entry, "open", opened)
    monkeypatch.setattr(catalog.Entry, "outline", opened)
    with pytest.raises(Opened, match="int8"):
        cli.main([command, *ARGUMENTS[command]])
