"""The shape of the package: who imports whom, how long files are, what `import flamboyance` costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "flamboyance"
FILES = sorted(PACKAGE.rglob("*.py"))
LONGEST = 500

# What each part may import; parts are the top-level modules and folders of the package. A part that is not
# named here fails the test: whoever adds one says where it stands.
BELOW: dict[str, set[str]] = {
    "auto": set(),
    "checks": set(),
    "configuration": set(),
    "examples": set(),
    "files": set(),
    "names": set(),
    "hub": {"names"},
    "images": {"files"},
    "templates": set(),
    "model": {"checks", "configuration", "files", "images", "names", "hub"},
    "processing": {"chat", "call_arguments", "configuration", "files", "images", "templates", "model", "names", "hub"},
    "checkpoints": {"configuration", "files", "images", "processing", "model", "names", "hub"},
    "few_shot": {"checks", "configuration", "files", "images", "templates", "model", "processing", "checkpoints"},
    "mini": {"configuration", "files", "images", "templates", "model", "processing", "checkpoints", "names"},
    "compat": {"configuration", "files", "images", "templates", "model", "processing", "checkpoints", "hub"},
    "chat": {"files", "images", "templates"},
    "call_arguments": {"templates"},
    "catalog": {"configuration", "images", "model", "processing", "checkpoints", "names", "hub"},
    "data": {"configuration", "files", "images", "templates", "processing"},
    "training": {"configuration", "files", "images", "templates", "model", "processing", "checkpoints", "data"},
}
# The top: each of these sees everything below, and the others of the top where it is said.
LIBRARY = set(BELOW) - {"data", "training"}
TRAINING = {"data", "training", "recipes"}
BELOW |= {
    "evaluation": LIBRARY,
    "serving": LIBRARY,
    "demo": LIBRARY | {"evaluation"},
    "recipes": LIBRARY | TRAINING | {"demo"},  # the embedded model's data are drawn from the demonstration's world
    "commands": LIBRARY | TRAINING | {"evaluation", "serving", "demo"},
    "cli": LIBRARY | TRAINING | {"evaluation", "serving", "demo", "commands"},
    "__init__": LIBRARY | {"evaluation"},  # for its metrics; nothing is imported before it is used
    "__main__": {"cli"},
}

# What is imported when it is called, against the order: names of released models open through the ordinary
# doors, a configuration of a language model that is defined here has to make it known first, and a model's directory
# holds its processor too.
WHEN_CALLED = {
    "configuration.py": {"model"},
    "model/loading.py": {"checkpoints", "processing"},
    "model/saving.py": {"processing"},
    "processing.py": {"checkpoints"},
}


def part(file: Path) -> str:
    """The part of the package that a file belongs to: `model` for `flamboyance/model/media.py`."""
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_parts(file: Path, source: str, everywhere: bool = True) -> set[str]:
    """The parts that a file imports, other than its own; `everywhere` in it, or at its top level."""
    here = ("flamboyance", *file.relative_to(PACKAGE).parts[:-1])
    found: set[str] = set()
    tree = ast.parse(source)
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(here[: len(here) - node.level + 1]) + "." if node.level else ""
            module = (base + (node.module or "")).rstrip(".")
            names = [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            first, _, rest = name.partition(".")
            if first == "recipes":
                found.add("recipes")
            elif first == "flamboyance":
                target = rest.split(".")[0]
                # `from flamboyance import FewShotTask` names no module: it is the package's front door.
                is_module = (PACKAGE / target).is_dir() or (PACKAGE / f"{target}.py").is_file()
                found.add(target if target and is_module else "__init__")
    return found - {part(file)}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_run_one_way(file: Path) -> None:
    assert part(file) in BELOW, f"{part(file)} has no place in the order of imports yet: give it one in BELOW"
    source, when_called = file.read_text(encoding="utf-8"), WHEN_CALLED.get(str(file.relative_to(PACKAGE)), set())
    above = imported_parts(file, source) - when_called | imported_parts(file, source, everywhere=False)
    above -= BELOW[part(file)]
    if part(file) in {"cli", "commands", "demo", "serving", "evaluation"}:
        above -= {"__init__"}  # the front door is what users see, and so may these
    assert not above, f"{file.relative_to(PACKAGE)} imports {sorted(above)}, which stand above or beside it"


def test_the_reader_of_imports_sees_every_form() -> None:
    file = PACKAGE / "model" / "language.py"
    source = (
        "import torch\nimport flamboyance.processing\nfrom ..configuration import X\n"
        "from .media import Media\nfrom .. import templates\nfrom flamboyance import FewShotTask\n"
        "def f():\n    from recipes.mini import run\n"
    )
    # `templates` and the rest count as modules only where they exist.
    expected = {"recipes", "__init__"}
    for name in ("processing", "configuration", "templates"):
        expected |= {name} if (PACKAGE / f"{name}.py").is_file() else {"__init__"}
    assert imported_parts(file, source) == expected


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_files_stay_short(file: Path) -> None:
    lines = len(file.read_text(encoding="utf-8").splitlines())
    assert lines <= LONGEST, f"{file.relative_to(PACKAGE)} has {lines} lines; split it by concept at {LONGEST}"


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
print(*sorted(asked & {"open_clip", "timm", "torchvision", "sklearn", "matplotlib", "rich", "accelerate"}))
print("torch" in asked or "transformers" in asked)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[0] == ""
