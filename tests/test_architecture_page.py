"""docs/architecture.md names files, functions and classes that exist, and no step twice in a walk-through."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def rows() -> Iterator[tuple[str, str, list[str]]]:
    """Walk-through, file and names of each row of the tables."""
    for title, section in re.findall(r"^## (.+)\n((?:(?!^## ).*\n)*)", PAGE, re.M):
        for file, names in re.findall(r"^\| `([^`]+)` \| ([^|]+) \|", section, re.M):
            yield title, file, re.findall(r"`([^`]+)`", names)


def defined(file: Path) -> set[str]:
    """Names at the top of a file, and the members of its classes."""
    names = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{child.name}" for child in node.body if isinstance(child, ast.FunctionDef)}
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


@pytest.mark.parametrize("file, names", sorted({(file, tuple(names)) for _, file, names in rows()}))
def test_a_step_names_what_is_in_its_file(file: str, names: tuple[str, ...]) -> None:
    assert names
    assert set(names) <= defined(ROOT / "flamboyance" / file)


def test_every_file_of_the_page_exists() -> None:
    for path in re.findall(r"`([\w./]+\.py)`", PAGE):
        assert (ROOT / path).exists() or (ROOT / "flamboyance" / path).exists(), path


def test_each_step_is_there_once() -> None:
    steps = [(title, file, name) for title, file, names in rows() for name in names]
    assert len(steps) > 40
    assert len(steps) == len(set(steps))
