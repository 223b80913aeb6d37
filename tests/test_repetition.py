"""No stretch of ten lines is in the product twice: imports, comments and blank lines aside."""

from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
LENGTH = 10
ALLOWED: dict[frozenset[str], str] = {}  # two files, and why they repeat


def code_lines(file: Path) -> list[tuple[int, str]]:
    lines = ((number, " ".join(line.split())) for number, line in enumerate(file.read_text("utf-8").splitlines(), 1))
    return [(number, line) for number, line in lines if line and not line.startswith(("#", "import ", "from "))]


def repetitions(root: Path) -> dict[frozenset[str], str]:
    """The files that share a stretch of lines, and where each has it."""
    places = defaultdict(list)
    for folder in ("flamboyance", "benchmarks", "scripts"):
        for file in sorted((root / folder).rglob("*.py")):
            lines = code_lines(file)
            for start in range(len(lines) - LENGTH + 1):
                stretch = tuple(line for _, line in lines[start : start + LENGTH])
                places[stretch].append((file.relative_to(root).as_posix(), lines[start][0]))
    return {
        frozenset(file for file, _ in where): " = ".join(f"{file}:{line}" for file, line in where)
        for where in places.values()
        if len(where) > 1
    }


def test_no_ten_lines_are_there_twice() -> None:
    assert {files: where for files, where in repetitions(ROOT).items() if files not in ALLOWED} == {}


def test_a_repetition_is_found(tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    for name in ("a", "b"):
        text = "\n\n".join(f"x{i} = {i}" for i in range(LENGTH))
        (tmp_path / "scripts" / f"{name}.py").write_text(f"import {name}\n{text}\n", encoding="utf-8")
    assert repetitions(tmp_path) == {frozenset({"scripts/a.py", "scripts/b.py"}): "scripts/a.py:2 = scripts/b.py:2"}
