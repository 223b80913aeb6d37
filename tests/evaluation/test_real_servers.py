"""The same task with 0, 4 and 8 shots, computed here and asked of a real server: equal answers, also if it is killed.

`transformers serve` serves LLaVA, Qwen2.5-VL and Idefics3 (as SmolVLM), `flamboyance serve` a Flamingo.
"""

import json
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from flamboyance.cli import main
from tests.evaluation.answers import tiny_vlms
from tests.evaluation.small_tasks import WORDS, draw
from tests.processes import Child, until
from tests.tiny import save_tiny_flamingo

SERVING = ("fastapi", "uvicorn", "openai")  # what `transformers serve` needs
KINDS = ("llava", "qwen2.5-vl", "idefics3")
PICTURES = 12
QUERIES = 3 * PICTURES  # with 0, 4 and 8 shots


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
    draw(folder / "pictures", PICTURES, 0)
    lines = [f"pictures/{i}.png,{WORDS[i % 6]}" for i in range(PICTURES)]
    (folder / "pictures.csv").write_text("\n".join(["image,text", *lines]) + "\n", encoding="utf-8")
    return folder / "pictures.csv"


def predictions(output: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """All but the space that an answer may begin with, and whether it is cut off: `transformers serve` calls an answer
    cut off whose end is its last possible token."""
    found = {}
    for file in output.glob("pictures/*/predictions.jsonl"):
        for row in map(json.loads, file.read_text(encoding="utf-8").splitlines()):
            del row["cut_off"]
            found[file.parent.name, row["id"]] = row | {"generated": row["generated"].strip()}
    return found


def replies(output: Path) -> list[Path]:
    """What is kept of the server's answers."""
    return list(output.glob(".replies/*/*.json"))


def sent(printed: str) -> int:
    """The requests that a run has sent."""
    (found,) = re.findall(r"([\d,]+) requests, ", printed)
    return int(found.replace(",", ""))


def compared(model: str, port: int, folder: Path, capsys, *named: str) -> None:
    """Evaluates a model here and on a server; then on the server again, killed and resumed."""
    words = ["evaluate", str(pictures(folder)), "--shots", "0,4,8", "--seeds", "0", "--output"]
    here = [str(folder / "here"), "--model", model, "--beams", "1", "--dtype", "float32"]
    served = ["--model", f"http://127.0.0.1:{port}/v1", *named]
    assert main([*words, *here]) == 0
    capsys.readouterr()
    assert main([*words, str(folder / "served"), *served]) == 0
    found, expected = predictions(folder / "served"), predictions(folder / "here")
    assert len(found) == QUERIES and found == expected
    assert len({row["generated"] for row in found.values()}) > 1
    more = sent(capsys.readouterr().err) - QUERIES
    assert 0 <= more <= 2  # they find out whether the server sees images

    killed = folder / "killed"
    child = Child(main, [*words, str(killed), *served, "--concurrency", "1"], log=folder / "killed.log")
    until(lambda: len(replies(killed)) >= 3)
    assert child.kill() == -signal.SIGKILL, child.printed
    kept = len(replies(killed))
    assert kept < QUERIES
    assert main([*words, str(killed), *served]) == 0
    assert sent(capsys.readouterr().err) == QUERIES - kept + more
    assert predictions(killed) == found


@pytest.mark.slow
@pytest.mark.skipif(any(find_spec(one) is None for one in SERVING), reason="transformers[serving] is not installed")
@pytest.mark.parametrize("kind", KINDS)
def test_transformers_serve(kind, tmp_path, capsys):
    model, port = str(tiny_vlms.KINDS[kind](tmp_path / "model")), free_port()
    command = ("-m", "transformers.cli.transformers", "serve", model, "--port", str(port), "--host", "127.0.0.1")
    with started(*command, "--device", "cpu", port=port, log=tmp_path / "log"):
        compared(model, port, tmp_path, capsys, "--name", model)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("fastapi") is None, reason="flamboyance[serve] is not installed")
def test_flamboyance_serve(tmp_path, capsys):
    model, port = str(save_tiny_flamingo(tmp_path / "model")), free_port()
    command = ("-m", "flamboyance.cli", "serve", "--model", model, "--port", str(port), "--dtype", "float32")
    with started(*command, port=port, log=tmp_path / "log"):
        compared(model, port, tmp_path, capsys)
