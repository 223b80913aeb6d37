"""Shell completion: the script of each shell, and what bash makes of it."""

import shutil
import subprocess
from pathlib import Path

import pytest

from flamboyance.cli import main
from flamboyance.recipes import RECIPES, SUMMARIES


def script(shell: str, capsys: pytest.CaptureFixture) -> str:
    capsys.readouterr()
    assert main(["completion", shell]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_knows_the_commands(shell: str, capsys) -> None:
    text = script(shell, capsys)
    assert all(word in text for word in ("caption", "classify", "completion", "demonstrations", "openflamingo-3b"))
    assert "zips and images" not in text  # of `convert mmc4`: a command of two words is no word to complete


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes(tmp_path: Path, capsys) -> None:
    (tmp_path / "script").write_text(script("bash", capsys), encoding="utf-8")
    (tmp_path / "photos").mkdir()

    def complete(*words: str) -> set[str]:
        quoted = " ".join(map(repr, ["flamboyance", *words]))
        code = (
            f"source ./script; COMP_WORDS=({quoted}); COMP_CWORD={len(words)}; "
            "function=$(complete -p flamboyance | sed 's/.* -F *//; s/ .*//'); $function; "
            "printf '%s\\n' \"${COMPREPLY[@]}\""
        )
        run = subprocess.run(["bash", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
        return {line.strip() for line in run.stdout.splitlines() if line.strip()}

    assert {"caption", "convert", "completion"} <= complete("c")
    assert "evaluate" not in complete("c")
    assert {"--beams", "--batch-size"} <= complete("caption", "--b")
    assert complete("caption", "--device", "cu") == {"cuda"}
    assert any("photos" in one for one in complete("caption", "pho"))
    assert "finetune" in complete("train", "fine")


def test_summaries_are_those_of_the_recipes() -> None:
    assert {name: (recipe.__doc__ or "").split("\n")[0] for name, recipe in RECIPES.items()} == SUMMARIES
