"""The messages of docs/troubleshooting.md are those of the source."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
MESSAGES = [row for row in re.findall(r"^\| `([^`]+)` \|", PAGE, re.M) if row != "Message"]
GAP = "\0"  # in the place of a value


@cache
def source() -> tuple[str, ...]:
    """Every text of the package's source."""
    found = []
    for file in (ROOT / "flamboyance").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append(
                    "".join(str(part.value) if isinstance(part, ast.Constant) else GAP for part in node.values)
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return tuple(found)


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_is_in_the_source(message: str) -> None:
    parts = [part.strip(" ") for part in message.split("…") if part.strip(" ')(")]
    pattern = re.compile(".*".join(map(re.escape, parts)), re.S)
    assert any(pattern.search(text) for text in source()), parts


def test_the_page_has_messages() -> None:
    assert len(MESSAGES) > 40
