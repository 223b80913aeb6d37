"""The reference of the library: signatures and docstrings, read from the source without importing it."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).parents[2] / "flamboyance"
SECTIONS = ("Args", "Attributes", "Returns", "Yields", "Raises")
WIDTH = 88  # of a signature on one line


class Listed(NamedTuple):
    """A page: its title, what it is about, and the names on it, as `file.py:Name` below flamboyance/."""

    title: str
    about: str
    names: tuple[str, ...]


PAGES = {
    "models": Listed(
        "Models",
        "A model is a `FlamingoForConditionalGeneration`. Its methods are in three classes, each built on the "
        "next: opening and saving; generating and scoring; the network.",
        (
            "flamingo.py:FlamingoForConditionalGeneration",
            "model/generation.py:GenerativeFlamingo",
            "model/network.py:FlamingoModel",
            "model/media.py:Media",
            "configuration.py:FlamingoConfig",
            "mini/__init__.py:load_mini",
            "small/__init__.py:load_small",
            "compat.py:create_model_and_transforms",
        ),
    ),
    "processing": Listed(
        "Processor and images",
        "From texts and images to tensors, and back.",
        (
            "processing.py:FlamingoProcessor",
            "images/processor.py:ImageProcessor",
            "images/loading.py:load_image",
        ),
    ),
    "few-shot": Listed(
        "Few-shot tasks",
        "Demonstrations that are computed once, the templates that write them, and pictures of where the model looked.",
        (
            "few_shot.py:FewShotTask",
            "templates.py:Template",
            "reports/attention.py:attention_maps",
            "reports/attention.py:AttentionMaps",
            "reports/attention.py:draw",
            "reports/attention.py:draw_words",
        ),
    ),
    "training": Listed(
        "Training",
        "A training run, its settings, and the recipes that can be changed from the command line.",
        (
            "training/config.py:TrainingConfig",
            "training/run.py:TrainingRun",
            "training/loop.py:train",
            "recipes/finetune.py:finetune",
            "recipes/new.py:new",
            "recipes/new.py:Backbones",
            "recipes/new.py:Data",
            "recipes/new.py:Validation",
            "recipes/new.py:Sizes",
            "recipes/mini.py:mini",
        ),
    ),
    "data": Listed(
        "Training data",
        "Sources of documents to train on, and what a new one is made of.",
        (
            "data/documents.py:Source",
            "data/documents.py:Record",
            "data/documents.py:Document",
            "data/documents.py:Rejected",
            "data/formats/user_data.py:UserData",
            "data/formats/pairs.py:Pairs",
            "data/formats/interleaved.py:Interleaved",
            "data/formats/mmc4.py:MMC4",
            "data/formats/obelics.py:OBELICS",
            "data/formats/chatgpt.py:ChatGPT",
        ),
    ),
    "evaluation": Listed(
        "Evaluation",
        "Evaluating from Python, what a benchmark is made of, and the metrics.",
        (
            "evaluation/from_python.py:evaluate",
            "evaluation/task.py:Task",
            "evaluation/task.py:TaskFile",
            "evaluation/task.py:Example",
            "evaluation/task.py:Metric",
            "evaluation/task.py:Score",
            "evaluation/metrics/cider.py:cider",
            "evaluation/metrics/vqa.py:vqa_accuracy",
            "evaluation/metrics/ptb/tokenizer.py:ptb_tokenize",
        ),
    ),
}
FILES = {"training/config.py": "reference/training.md"}
"""Files that pages link to, with the page that describes them."""


def page(name: str) -> str:
    """The Markdown of a page of PAGES."""
    listed = PAGES[name]
    return "\n".join([f"# {listed.title}", listed.about, *(part for one in listed.names for part in _object(one))])


def _object(listed: str) -> Iterator[str]:
    file, name = listed.split(":")
    for node in ast.parse((PACKAGE / file).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            yield from _described(node, name, file)
            return
    raise ValueError(f"flamboyance/{file} has no class or function {name}: correct PAGES in {__file__}")


def _described(node: ast.ClassDef | ast.FunctionDef, name: str, file: str) -> Iterator[str]:
    module = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    yield f"\n## {name} {{ #{name} }}\n\n`flamboyance.{module}`"
    if isinstance(node, ast.FunctionDef):
        yield _signature(name, node.args, node.returns)
    elif constructor := _constructor(node):
        yield _signature(name, constructor, None)
    yield markdown(ast.get_docstring(node) or "")
    for method in node.body if isinstance(node, ast.ClassDef) else ():
        public = isinstance(method, ast.FunctionDef) and (method.name == "__call__" or not method.name.startswith("_"))
        if public and (docstring := ast.get_docstring(method)):
            plain = any(ast.unparse(one) == "property" for one in method.decorator_list)
            yield f"\n### {method.name.replace('_', chr(92) + '_')} {{ #{name}.{method.name} }}"
            yield f"\n`{ast.unparse(method.returns)}`\n" if plain and method.returns else ""
            yield "" if plain else _signature(method.name, method.args, method.returns)
            yield markdown(docstring)


def _constructor(node: ast.ClassDef) -> ast.arguments | None:
    """The arguments of a class: of its `__init__`, or a dataclass's fields; None if they are those of its base."""
    for child in node.body:
        if isinstance(child, ast.FunctionDef) and child.name == "__init__":
            return child.args
    if not any(ast.unparse(one).startswith("dataclass") for one in node.decorator_list):
        return None
    fields = [one for one in node.body if isinstance(one, ast.AnnAssign) and not _is_made(one)]
    names = [ast.arg(ast.unparse(one.target), one.annotation) for one in fields]
    defaults = [_default(one.value) for one in fields if one.value is not None]
    if any(before.value and not after.value for before, after in pairwise(fields)):
        return ast.arguments([], [], None, names, [one.value and _default(one.value) for one in fields], None, [])
    return ast.arguments([], names, None, [], [], None, defaults)


def _is_made(field: ast.AnnAssign) -> bool:
    """Whether a dataclass computes this field itself."""
    return "init=False" in (ast.unparse(field.value) if field.value else "")


def _default(value: ast.expr) -> ast.expr:
    """The value of `field(default=value)`; other values as they are."""
    for keyword in value.keywords if isinstance(value, ast.Call) and ast.unparse(value.func) == "field" else ():
        if keyword.arg == "default":
            return keyword.value
    return value


def _signature(name: str, given: ast.arguments, returns: ast.expr | None) -> str:
    first = [*given.posonlyargs, *given.args][:1]
    if first and first[0].arg in ("self", "cls"):
        given.args = given.args[1:]
    parts = _arguments(given)
    result = f" -> {ast.unparse(returns)}" if returns is not None else ""
    line = f"{name}({', '.join(parts)}){result}"
    if len(line) > WIDTH:
        line = "\n".join([f"{name}(", *(f"    {part}," for part in parts), f"){result}"])
    return f"\n```python\n{line}\n```\n"


def _arguments(given: ast.arguments) -> list[str]:
    positional = [*given.posonlyargs, *given.args]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(given.defaults)) + list(given.defaults)
    parts = [_argument(one, default) for one, default in zip(positional, defaults, strict=True)]
    if given.vararg or given.kwonlyargs:
        parts.append(f"*{given.vararg.arg if given.vararg else ''}")
    parts += [_argument(one, default) for one, default in zip(given.kwonlyargs, given.kw_defaults, strict=True)]
    return [*parts, *([f"**{given.kwarg.arg}"] if given.kwarg else [])]


def _argument(one: ast.arg, default: ast.expr | None) -> str:
    typed = f"{one.arg}: {ast.unparse(one.annotation)}" if one.annotation else one.arg
    if default is None:
        return typed
    return f"{typed} = {ast.unparse(default)}" if one.annotation else f"{typed}={ast.unparse(default)}"


# Docstrings ---------------------------------------------------------------------------------------------------------


def markdown(docstring: str) -> str:
    """A docstring as Markdown: its sections become lists."""
    parts = re.split(rf"^({'|'.join(SECTIONS)}):\n", inspect.cleandoc(docstring) + "\n", flags=re.M)
    written = [_text(parts[0])]
    for section, body in zip(parts[1::2], parts[2::2], strict=True):
        # A section ends where a line begins at the margin.
        end = re.search(r"^\S|\Z", body, re.M)
        assert end is not None
        title = "Arguments" if section == "Args" else section
        written.append(f"\n**{title}**\n")
        written.extend(_entries(textwrap.dedent(body[: end.start()]).strip(), section))
        written.append(_text(body[end.start() :]))
    return "\n".join(written)


def _entries(text: str, section: str) -> Iterator[str]:
    for entry in re.split(r"\n(?=\S)", text):
        name, colon, meaning = entry.partition(":")
        if section in ("Returns", "Yields") or not colon or "`" in name:
            yield f"{_escaped(' '.join(entry.split()))}\n"
        else:
            names = ", ".join(f"`{one.strip()}`" for one in name.split(","))
            yield f"{names}\n:   {_escaped(' '.join(meaning.split()))}\n"


def _text(text: str) -> str:
    """Paragraphs; those that are indented are code."""
    parts = [part for part in re.split(r"\n\s*\n(?=\S)", text.strip("\n")) if part.strip()]
    written: list[str] = []
    for part in parts:
        for block in re.split(r"\n\s*\n", part):
            code = all(line.startswith("    ") or not line for line in block.split("\n"))
            written.append(f"```python\n{textwrap.dedent(block)}\n```" if code else _escaped(block))
    return "\n\n".join(written)


def _escaped(text: str) -> str:
    """Angle brackets outside of code, which would be read as HTML."""
    pieces = re.split(r"(`[^`]*`)", text)
    return "".join(piece if piece.startswith("`") else piece.replace("<", "&lt;") for piece in pieces)
