"""The commands of docs/command_line.md run, one after the other, in a folder with the files that they name."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from flamboyance import examples
from flamboyance.cli import COMMANDS, main

PAGE = (Path(__file__).parents[2] / "docs" / "command_line.md").read_text(encoding="utf-8")


def test_the_commands_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    shutil.copytree(examples.folder / "new", tmp_path / "photos")
    shutil.copytree(examples.folder / "captioned", tmp_path / "captioned")
    rows = [f"captioned/{image.name},{text.split()[-1]}" for image, text in examples.demonstrations]
    (tmp_path / "shapes.csv").write_text("\n".join(["image,label", *rows]), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    lines = [line for block in re.findall(r"^```\n(.*?)^```$", PAGE, re.S | re.M) for line in block.splitlines()]
    assert len(lines) > 5
    for line in lines:
        assert main(shlex.split(line)[1:]) == 0, (line, capsys.readouterr().err)
    printed = capsys.readouterr().out
    assert "a large green ring" in printed
    assert '"label": "cross"' in printed


def test_every_command_is_in_the_table() -> None:
    named = re.findall(r"^\| (`.*?) \|", PAGE.partition("## Images in")[0], re.M)
    assert sorted(re.findall(r"`([^`]+)`", " ".join(named))) == sorted(one.name for one in COMMANDS)
