"""Nothing in the package reads a pickle, or runs what it has read."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import flamboyance

ROOT = Path(flamboyance.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "torch.distributed.checkpoint"}
EXCEPTION = {"checkpoints/torch_file.py": {"pickle"}}  # for the name of an exception that torch raises


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def unsafe(call: ast.Call) -> bool:
    name, given = ast.unparse(call.func), {word.arg: ast.unparse(word.value) for word in call.keywords}
    if name in ("torch.load", "torch.hub.load"):
        return given.get("weights_only") != "True"
    runs = name in ("eval", "exec", "compile", "pickle.load", "pickle.loads", "pickle.Unpickler")
    trusts = given.get("allow_pickle", "False") != "False" or given.get("trust_remote_code", "False") != "False"
    return runs or trusts


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_no_file_reads_pickles_or_runs_what_it_reads(file: Path) -> None:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    allowed = EXCEPTION.get(file.relative_to(ROOT).as_posix(), set())
    assert not (set(imported(tree)) & MODULES) - allowed
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert [ast.unparse(call) for call in calls if unsafe(call)] == []
