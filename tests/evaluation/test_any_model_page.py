"""The two commands of docs/evaluate-any-model.md, as a reader runs them: a served model, 60 pictures with labels."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flamboyance.cli import main
from tests.evaluation.answers.scripted_server import Reply, serving
from tests.evaluation.answers.test_endpoint import picture

PAGE = Path(__file__).parents[2] / "docs" / "evaluate-any-model.md"


def commands() -> list[list[str]]:
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.S | re.M)
    block = next(content for language, content in blocks if not language)
    return [shlex.split(line)[1:] for line in block.splitlines()]


def learner(body: Reply) -> str:
    """Knows an example with nearly the query's colour, and says "cat" otherwise."""

    def colour(part) -> int:
        return picture(part).getpixel((0, 0))[0]

    *turns, last = body["messages"]
    asked = colour(last["content"][0])
    for user, assistant in zip(turns[::2], turns[1::2], strict=True):
        if user["content"][0]["type"] == "image_url" and abs(colour(user["content"][0]) - asked) < 60:
            return assistant["content"]
    return "cat"


@pytest.mark.parametrize("helps", [True, False])
def test_two_commands_say_whether_four_examples_help(helps, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("pictures").mkdir()
    lines = ["image,label"]
    for i in range(60):
        shade = (10, 200)[i % 2] + i // 2
        Image.fromarray(np.full((8, 8, 3), shade, np.uint8)).save(f"pictures/{i}.png")
        lines.append(f"pictures/{i}.png,{('cat', 'dog')[i % 2]}")
    Path("pets.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with serving(learner if helps else lambda body: "cat") as server:
        evaluate, report = commands()
        evaluate[evaluate.index("--model") + 1] = server.url
        assert main(evaluate) == 0
        asked = [json.dumps(body) for body in server.requests]
        assert len(asked) == len(set(asked)) == server.sent <= 60 * 6 + 2  # two more found out how to choose labels
    assert main(report) == 0
    shown = [line.split("|") for line in Path("runs/pets/report.md").read_text(encoding="utf-8").splitlines()]
    (row,) = [[cell.strip() for cell in line] for line in shown if "4 instead of 0" in "|".join(line)]
    assert row[8] == ("they help" if helps else "no clear effect")
    assert float(row[5]) > 30 if helps else float(row[5]) == 0
    assert "What demonstrations add" in Path("runs/pets/report.md").read_text(encoding="utf-8")
    assert Path("runs/pets/index.html").is_file()
