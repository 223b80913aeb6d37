"""The shape of the package: who imports whom, and what `import flamboyance` costs."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "flamboyance"

# From the bottom to the top: a part (a module or a folder of the package) imports only parts that come before it.
ORDER = (
    *("checks", "hub", "names", "configuration_mosaic_gpt", "configuration_original", "configuration", "templates"),
    *("files", "images", "videos"),
    *("figure_style", "processes", "examples", "auto", "chat", "task_files", "processor_arguments"),
    *(
        "model",
        "checkpoints",
        "processing",
        "flamingo",
        "prompting",
        "few_shot",
        "conversation",
        "compat",
        "convert_checkpoint",
        "catalog",
    ),
    *("data", "evaluation", "training", "planning"),
    *("mini", "small", "reports", "serving", "web", "recipes"),
    *("__init__", "commands", "cli", "__main__"),
)


def module_name(file: Path, root: Path) -> str:
    """`flamboyance.model.media` for its file; a folder's `__init__.py` has the folder's name."""
    parts = file.relative_to(root.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(file: Path, root: Path, modules: set[str]) -> Iterator[str]:
    """The modules of the package that a file imports: at its top, inside functions, or for type checkers alone."""
    package = module_name(file, root).split(".")
    package = package if file.name == "__init__.py" else package[:-1]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            names = [".".join([*base, *filter(None, [node.module]), alias.name]) for alias in node.names]
        for name in names:
            while name and name not in modules:
                name = name.rpartition(".")[0]
            if name:
                yield name


def import_graph(root: Path) -> dict[str, set[str]]:
    """Every module of a package, and the modules of it that it imports."""
    files = {module_name(file, root): file for file in root.rglob("*.py")}
    return {name: set(imports(file, root, set(files))) - {name} for name, file in files.items()}


def part(module: str) -> str:
    """`model` for `flamboyance.model.media`; `__init__` for the package itself."""
    return (module.split(".") + ["__init__"])[1]


GRAPH = import_graph(PACKAGE)


def test_there_are_no_import_cycles() -> None:
    try:
        TopologicalSorter(GRAPH).prepare()
    except CycleError as error:
        pytest.fail(f"these modules import each other: {' <- '.join(error.args[1])}")


def test_every_part_has_its_place() -> None:
    assert {part(module) for module in GRAPH} == set(ORDER)


@pytest.mark.parametrize("module", sorted(GRAPH))
def test_imports_run_one_way(module: str) -> None:
    own = ORDER.index(part(module))
    above = sorted(other for other in GRAPH[module] if ORDER.index(part(other)) > own)
    assert not above, f"{module} imports {above}, which come after it in ORDER"


def test_the_network_knows_nothing_about_files() -> None:
    below = {"checks", "configuration", "configuration_mosaic_gpt", "templates", "model"}
    for module in GRAPH:
        if part(module) == "model":
            assert {part(other) for other in GRAPH[module]} <= below, module


def test_the_graph_sees_every_form_of_import(tmp_path: Path) -> None:
    root = tmp_path / "flamboyance"
    (root / "a").mkdir(parents=True)
    for name in ("__init__", "b", "c", "d", "e", "a/__init__", "a/x"):
        (root / f"{name}.py").write_text("")
    (root / "a" / "y.py").write_text(
        "import os\nimport flamboyance.b\nfrom ..c import C\nfrom . import x\n"
        "if TYPE_CHECKING:\n    from flamboyance import d\ndef f():\n    from flamboyance.e import E\n"
    )
    found = {module.removeprefix("flamboyance.") for module in import_graph(root)["flamboyance.a.y"]}
    assert found == {"a.x", "b", "c", "d", "e"}


def test_import_needs_no_extras() -> None:
    # Transformers takes some of these by itself where they are installed; asked is what our own files import.
    code = """
import builtins
true_import = builtins.__import__
asked = set()
def watched(name, globals=None, locals=None, fromlist=(), level=0):
    if level == 0 and str((globals or {}).get("__name__", "")).startswith("flamboyance"):
        asked.add(name.partition(".")[0])
    return true_import(name, globals, locals, fromlist, level)
builtins.__import__ = watched
import flamboyance
dir(flamboyance)
print(*sorted(asked & {"open_clip", "timm", "torchvision", "sklearn", "matplotlib", "rich", "accelerate", "av"}))
print("torch" in asked or "transformers" in asked)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[0] == ""
