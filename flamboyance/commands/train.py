"""`train`: run a recipe, with the given settings in place of its own."""

import argparse
import os
from typing import Any

USAGE = "usage: flamboyance train RECIPE output=DIR [key=value …]"
FILE = "path/to/file.py:function"
EXAMPLES = """\
examples:
  flamboyance train mini output=runs/mini steps=200
  flamboyance train finetune data=photos/ output=runs/mine
  torchrun --nproc-per-node 8 -m flamboyance.cli train openflamingo-3b output=runs/3b laion=… mmc4=…

`flamboyance train RECIPE --help` lists a recipe's settings. The same command resumes a run that was stopped.
See docs/training.md."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", nargs="?")
    parser.add_argument("settings", nargs="*")
    # The help of a recipe depends on the recipe.
    parser.add_argument("-h", "--help", action="store_true")


def train(arguments: argparse.Namespace) -> int:
    """Train or resume; without settings, list the settings."""
    from flamboyance import recipes  # names and their mistakes need no torch

    if arguments.recipe is None:
        return _print(_overview(recipes.SUMMARIES))
    if arguments.recipe not in recipes.SUMMARIES and ".py:" not in arguments.recipe:
        raise recipes.unknown(arguments.recipe)
    if wrong := next((setting for setting in arguments.settings if "=" not in setting), None):
        raise ValueError(f"invalid setting {wrong!r}: expected key=value, as in steps=200")
    from flamboyance.recipes.arguments import find, resolve
    from flamboyance.training.config import check

    recipe = find(arguments.recipe, recipes.RECIPES)
    if arguments.help or not arguments.settings:
        return _print(_about(arguments.recipe, recipe))
    try:
        run = resolve(recipe, arguments.settings)
        check(run.training)
    except ValueError:
        if _is_first_rank():
            raise
        return 2  # the first rank reports the mistake
    from flamboyance.training import loop, run_directory

    directory = loop.train(run, command=["flamboyance", "train", arguments.recipe, *arguments.settings])
    return _print((run.usage or run_directory.usage)(directory))


def _is_first_rank() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _print(text: str) -> int:
    if _is_first_rank():
        print(text)
    return 0


def _overview(summaries: dict[str, str]) -> str:
    width = max(map(len, [*summaries, FILE]))
    lines = [USAGE, "", "recipes:"]
    lines += [f"  {name:<{width}}  {summary}" for name, summary in summaries.items()]
    lines += [f"  {FILE:<{width}}  your own: a function that returns flamboyance.training.run.TrainingRun", ""]
    return "\n".join([*lines, EXAMPLES])


def _about(name: str, recipe: Any) -> str:
    from flamboyance.recipes.arguments import describe, documentation, fields, parameters, settings

    taken = parameters(recipe)
    needed = " ".join(f"{key}=…" for key, one in taken.items() if one.required)
    training = _example(recipe, taken)
    sections = {"the recipe's parameters": (taken, {})}
    general = {key: one for key, one in settings().items() if key not in taken}
    sections["settings of every run"] = (general, vars(training) if training else {})
    for source, made in training.sources.items() if training else ():
        known = {f"{source}.{key}": one for key, one in fields(made).items()}
        sections[f"its source {source}"] = (known, {f"{source}.{key}": value for key, value in vars(made).items()})
    width = max(len(key) for known, _ in sections.values() for key in known)
    lines = [f"usage: flamboyance train {name} {needed} [key=value …]", "", documentation(recipe)]
    for title, (known, values) in sections.items():
        lines += ["", f"{title}:"]
        for key, one in known.items():
            value = "(needed)" if one.required and key not in values else _written(values.get(key, one.default))
            lines.append(f"  {key:<{width}}  {value:<12}  {describe(one.kind)}")
    return "\n".join(lines)


def _example(recipe: Any, taken: dict[str, Any]) -> Any:
    """The run's settings as the recipe makes them; None if it needs real arguments."""
    from flamboyance.recipes.arguments import call, convert

    try:
        required = {key: convert(key.upper(), one.kind, key) for key, one in taken.items() if one.required}
        return call(recipe, required).training
    except (ValueError, TypeError, OSError):
        return None


def _written(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "()"
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
