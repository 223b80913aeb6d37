"""The same task with 0, 4 and 8 shots, computed here and asked of `transformers serve`: equal answers."""

import json
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

from flamboyance.cli import main
from tests.evaluation.answers import tiny_vlms
from tests.evaluation.small_tasks import WORDS, draw

SERVING = ("fastapi", "uvicorn", "openai")  # what `transformers serve` needs
KINDS = ("llava",)


@contextmanager
def started(*command: str, port: int, log: Path):
    """A server's process until the end of the block."""
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen([sys.executable, *command], stdout=file, stderr=subprocess.STDOUT)
    try:
        end = time.monotonic() + 600
        while True:
            assert process.poll() is None and time.monotonic() < end, log.read_text(encoding="utf-8")
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                time.sleep(0.2)
        yield
    finally:
        process.kill()
        process.wait()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def pictures(folder: Path) -> Path:
    draw(folder / "pictures", 12, 0)
    lines = [f"pictures/{i}.png,{WORDS[i % 6]}" for i in range(12)]
    (folder / "pictures.csv").write_text("\n".join(["image,text", *lines]) + "\n", encoding="utf-8")
    return folder / "pictures.csv"


def answers(output: Path) -> dict[tuple[str, str], str]:
    found = {}
    for file in output.glob("pictures/*/predictions.jsonl"):
        for row in map(json.loads, file.read_text(encoding="utf-8").splitlines()):
            found[file.parent.name, row["id"]] = row["generated"].strip()
    return found


def compared(data: Path, model: str, url: str, name: str, folder: Path) -> None:
    words = ["evaluate", str(data), "--shots", "0,4,8", "--seeds", "0"]
    assert main([*words, "--model", model, "--beams", "1", "--dtype", "float32", "--output", str(folder / "here")]) == 0
    assert main([*words, "--model", url, "--name", name, "--output", str(folder / "served")]) == 0
    found, expected = answers(folder / "served"), answers(folder / "here")
    assert len(found) == 36 and found == expected and len(set(found.values())) > 1


@pytest.mark.slow
@pytest.mark.skipif(any(find_spec(one) is None for one in SERVING), reason="transformers[serving] is not installed")
@pytest.mark.parametrize("kind", KINDS)
def test_transformers_serve(kind, tmp_path):
    model, port = str(tiny_vlms.KINDS[kind](tmp_path / "model")), free_port()
    command = ("-m", "transformers.cli.transformers", "serve", model, "--port", str(port), "--host", "127.0.0.1")
    with started(*command, "--device", "cpu", port=port, log=tmp_path / "log"):
        compared(pictures(tmp_path), model, f"http://127.0.0.1:{port}/v1", model, tmp_path)
