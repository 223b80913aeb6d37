"""`completion`: print the script that completes commands, options and file names in a shell."""

import argparse
from typing import Any

SHELLS = ("bash", "zsh", "fish")
EPILOG = """\
to use it:
  bash  flamboyance completion bash > ~/.local/share/bash-completion/completions/flamboyance
  zsh   flamboyance completion zsh > ~/.zfunc/_flamboyance    (with `fpath+=~/.zfunc` before compinit in ~/.zshrc)
  fish  flamboyance completion fish > ~/.config/fish/completions/flamboyance.fish

The script completes the commands of the version that wrote it. Write it again after an upgrade.
"""
PATHS = ("DIR", "FILE", "FOLDER", "IMAGE", "PATH", "RUN", "TASK", "ZIP")
"""Words in the metavar, or in the name, of an argument that takes a path."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = f"{parser.epilog or ''}{EPILOG}"
    parser.add_argument("shell", choices=SHELLS, help="the shell of the script")


def completion(arguments: argparse.Namespace) -> int:
    """Print the script."""
    import shtab

    from flamboyance.recipes import SUMMARIES

    parser = arguments.build_parser(one_word=True)
    for action in _actions(parser):
        if action.dest == "recipe":
            action.choices = list(SUMMARIES)
        elif any(word in (action.metavar or action.dest.upper()) for word in PATHS):
            action.complete = shtab.FILE
    print(shtab.complete(parser, shell=arguments.shell))
    return 0


def _actions(parser: argparse.ArgumentParser) -> list[Any]:
    """The actions of a parser and of its commands."""
    found = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found += [one for inner in action.choices.values() for one in _actions(inner)]
        else:
            found.append(action)
    return found
