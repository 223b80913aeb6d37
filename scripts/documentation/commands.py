"""The reference of the command: every command's arguments, from the parsers themselves."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from flamboyance.cli import COMMANDS, build_parser

INTRODUCTION = """# The command's arguments
What `flamboyance COMMAND --help` prints, for all commands. [The command line](../command_line.md) says what they do
with images, files and errors. Every command also takes `--debug`, which shows the traceback of an error.
"""


def page() -> str:
    """The Markdown of the page."""
    parsers = _parsers(build_parser())
    return "\n".join([INTRODUCTION, *(part for one in COMMANDS for part in _command(one, parsers[one.name]))])


def _parsers(parser: argparse.ArgumentParser) -> dict[str, Any]:
    [commands] = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(commands.choices)


def _command(command: Any, parser: argparse.ArgumentParser) -> Iterator[str]:
    yield f"\n## {command.name}"
    yield f"{command.summary[0].upper()}{command.summary[1:]}."
    if parser.description and parser.description != command.summary:
        yield f"\n{_escaped(parser.description)}"
    yield f"\n```\n{command.example}\n```\n"
    rows = [(group, action) for group in parser._action_groups for action in group._group_actions]
    rows = [(group, action) for group, action in rows if action.dest not in ("help", "debug")]
    if rows:
        yield "| Argument | Meaning |\n| --- | --- |"
        yield from (_row(parser, action) for _, action in rows if action.help != argparse.SUPPRESS)


def _row(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    formatter = parser._get_formatter()
    if action.option_strings:
        value = "" if action.nargs == 0 else f" {formatter._format_args(action, action.dest.upper())}"
        written = ", ".join(action.option_strings) + value
    else:
        written = formatter._format_args(action, action.dest)
    meaning = _escaped(formatter._expand_help(action)) if action.help else ""
    return f"| `{written}` | {meaning} |"


def _escaped(text: str) -> str:
    for character in "\\`*_<>|[]":
        text = text.replace(character, f"&#{ord(character)};")
    return " ".join(text.split())
