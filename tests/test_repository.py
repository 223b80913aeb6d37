"""What outsiders use: workflows, hooks and issue forms. Every file parses, and every command in them exists."""

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from flamboyance.cli import build_parser

ROOT = Path(__file__).parents[1]
FILES = [ROOT / ".pre-commit-config.yaml", *sorted((ROOT / ".github").rglob("*.y*ml"))]
WORKFLOWS = [file for file in FILES if file.parent.name == "workflows"]
FORMS = [file for file in FILES if file.parent.name == "ISSUE_TEMPLATE"]


def read(file: Path) -> Any:
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def commands() -> Iterator[str]:
    """The shell lines of the workflows, a job's matrix written out, and the local hooks of pre-commit."""
    for file in WORKFLOWS:
        for job in read(file)["jobs"].values():
            values = job.get("strategy", {}).get("matrix", {})
            for step in job["steps"]:
                for line in step.get("run", "").splitlines():
                    key = re.search(r"\$\{\{ matrix\.(\w+) \}\}", line)
                    yield from (line.replace(key[0], value) for value in values[key[1]]) if key else [line]
    for repository in read(ROOT / ".pre-commit-config.yaml")["repos"]:
        yield from (hook["entry"] for hook in repository["hooks"] if repository["repo"] == "local")


@pytest.mark.parametrize("command", sorted(set(commands())))
def test_a_command_exists(command: str) -> None:
    targets = re.findall(r"^([a-z][a-z -]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    for program in re.findall(r"\.venv/bin/([\w-]+)", command):
        assert (Path(sys.prefix) / "bin" / program).exists(), program
    words = shlex.split(command)
    if words[0] == "make":
        assert words[1] in " ".join(targets).split()
    else:
        assert ".venv/bin/" in command


def test_the_workflows_run_every_kind_of_test() -> None:
    called = {command.split()[1] for command in commands() if command.startswith("make ")}
    assert called >= {"check", "docs", "test", "test-browser", "test-families", "test-newest", "test-oldest"}


@pytest.mark.parametrize("file", FORMS, ids=lambda file: file.name)
def test_an_issue_form_is_complete(file: Path) -> None:
    form = read(file)
    assert {"name", "description", "body"} <= form.keys()
    assert all("label" in field["attributes"] for field in form["body"])


def test_a_bug_report_asks_for_a_command_that_exists() -> None:
    (asked,) = re.findall(r"`flamboyance (info --json)`", (ROOT / ".github/ISSUE_TEMPLATE/bug.yaml").read_text("utf-8"))
    assert build_parser().parse_args(asked.split()).json
