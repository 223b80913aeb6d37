"""The example notebook runs from top to bottom on a CPU, and gives the outputs that are kept in its file."""

import base64
import io
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.notebook import code_cells, execute, read

SECONDS = 600  # of a cell, on machines that do other work
FILE = Path(__file__).parents[1] / "examples" / "few_shot_captioning.ipynb"


def texts(outputs: list[dict[str, Any]]) -> list[str]:
    """What a cell prints, and the values that are no pictures."""
    plain = [output for output in outputs if "image/png" not in output.get("data", {})]
    return ["".join(output.get("text") or output["data"]["text/plain"]) for output in plain]


def pictures(outputs: list[dict[str, Any]]) -> list[Image.Image]:
    found = [output.get("data", {}).get("image/png") for output in outputs]
    return [Image.open(io.BytesIO(base64.b64decode(picture))) for picture in found if picture]


def test_the_notebook_runs_and_gives_what_it_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)  # the kept outputs are those of a CPU
    notebook = read(FILE)
    for cell, found in zip(code_cells(notebook), execute(notebook), strict=True):
        source = "".join(cell["source"])
        assert texts(found) == texts(cell["outputs"]), source
        drawn, kept = pictures(found), pictures(cell["outputs"])
        assert [picture.size for picture in drawn] == [picture.size for picture in kept], source
        assert all(len(set(picture.convert("L").tobytes())) > 10 for picture in kept), "a kept picture is empty"


@pytest.mark.slow
def test_a_kernel_of_jupyter_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nbclient
    import nbformat

    for name, value in (("CUDA_VISIBLE_DEVICES", ""), ("OMP_NUM_THREADS", "1"), ("IPYTHONDIR", str(tmp_path))):
        monkeypatch.setenv(name, value)
    ran = nbformat.read(FILE, as_version=4)
    place = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(ran, timeout=SECONDS, kernel_name="python3", resources=place).execute()
    for cell, found in zip(code_cells(read(FILE)), code_cells(ran), strict=True):
        outputs = [output for output in found["outputs"] if output.get("name") != "stderr"]
        # Jupyter breaks long values into lines.
        assert words(texts(outputs)) == words(texts(cell["outputs"])), found["source"]
        drawn, kept = pictures(outputs), pictures(cell["outputs"])
        assert [picture.size for picture in drawn] == [picture.size for picture in kept], found["source"]


def words(texts: list[str]) -> list[list[str]]:
    return [text.split() for text in texts]


def test_the_file_is_small_and_holds_nothing_of_the_machine_that_ran_it() -> None:
    text = FILE.read_text(encoding="utf-8")
    assert len(text.encode()) < 400_000
    assert not re.search(r"/home/|/Users/|/tmp/|/work/|site-packages", text)
    notebook = read(FILE)
    assert notebook["nbformat"] == 4
    assert set(notebook["metadata"]) == {"kernelspec", "language_info"}
    cells = code_cells(notebook)
    assert all(not cell["metadata"] for cell in notebook["cells"])
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert sum(bool(pictures(cell["outputs"])) for cell in cells) >= 2
