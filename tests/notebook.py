"""Runs a notebook's code cells in one process, in order, as a kernel does: the outputs of a cell are what it prints,
and the value of its last expression.

    python -m tests.notebook examples/few_shot_captioning.ipynb     # replaces the outputs in the file
"""

import ast
import base64
import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

Output = dict[str, Any]


def read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


def code_cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def execute(notebook: dict[str, Any]) -> list[list[Output]]:
    """The outputs of each code cell, in nbformat's form."""
    variables: dict[str, Any] = {"__name__": "__main__"}
    return [_outputs("".join(cell["source"]), variables, i + 1) for i, cell in enumerate(code_cells(notebook))]


def _outputs(source: str, variables: dict[str, Any], number: int) -> list[Output]:
    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed, value = io.StringIO(), None
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, f"cell {number}", "exec"), variables)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), variables)
    outputs: list[Output] = []
    if printed.getvalue():
        outputs.append({"name": "stdout", "output_type": "stream", "text": printed.getvalue().splitlines(True)})
    if value is not None:
        data: dict[str, Any] = {"text/plain": repr(value).splitlines(True)}
        if hasattr(value, "_repr_png_"):  # a picture; its repr has an address in memory
            data = {"image/png": base64.b64encode(value._repr_png_()).decode(), "text/plain": ["<picture>"]}
        outputs.append({"data": data, "execution_count": number, "metadata": {}, "output_type": "execute_result"})
    return outputs


def main(file: Path) -> None:
    notebook = read(file)
    found = execute(notebook)
    for number, (cell, outputs) in enumerate(zip(code_cells(notebook), found, strict=True), 1):
        cell["outputs"], cell["execution_count"] = outputs, number
    file.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
