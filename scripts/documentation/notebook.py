"""A notebook as a page: its texts, its code, and what the code printed and drew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flamboyance.files import read_json


def page(path: Path) -> str:
    """The Markdown of a notebook."""
    cells = read_json(path)["cells"]
    return "\n\n".join(part for cell in cells for part in _cell(cell))


def _cell(cell: dict[str, Any]) -> list[str]:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return [source]
    parts = [f"```python\n{source}\n```"]
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        if output["output_type"] == "stream":
            parts.append(f"```text\n{''.join(output['text']).rstrip()}\n```")
        elif "image/png" in data:
            parts.append(f'<img alt="what the cell above shows" src="data:image/png;base64,{_joined(data)}">')
    return parts


def _joined(data: dict[str, Any]) -> str:
    picture = data["image/png"]
    return "".join(picture if isinstance(picture, list) else [picture]).replace("\n", "")
