"""Text is UTF-8 whatever the locale: in the source, and in commands that run under LC_ALL=C."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parent.parent
SOURCES = sorted(file for name in ("flamboyance", "scripts", "benchmarks") for file in (ROOT / name).rglob("*.py"))


def without_encoding(source: str) -> list[int]:
    """The lines that read or write a text without naming its encoding; ruff sees those whose type it can tell."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            places = {"read_text": 0, "write_text": 1}.get(node.func.attr)
            named = any(keyword.arg in ("encoding", None) for keyword in node.keywords)
            mode = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else None
            opens = node.func.attr == "open" and isinstance(mode, str) and set(mode) <= set("rwaxt+")
            if ((places is not None and len(node.args) <= places) or opens) and not named:
                found.append(node.lineno)
    return found


def test_every_text_file_names_its_encoding() -> None:
    wrong = [
        f"{file.relative_to(ROOT)}:{line}" for file in SOURCES for line in without_encoding(file.read_text("utf-8"))
    ]
    assert not wrong, 'give encoding="utf-8", or use flamboyance.files'


def test_the_search_sees_calls_without_an_encoding() -> None:
    assert without_encoding("p.read_text()\np.write_text('a')\np.read_text(errors='replace')\np.open('w')") == [
        1,
        2,
        3,
        4,
    ]
    assert not without_encoding(
        "p.read_text('utf-8')\np.write_text('a', encoding='utf-8')\nread_text(p)\np.open('wb')\nq.open()"
    )


RUN = """
import sys
from pathlib import Path
from flamboyance import FewShotTask, load_mini
from flamboyance.cli import main

model, processor = load_mini()
task = FewShotTask(model, processor, [("photos/0.png", "größer 猫")])
task.save("task")
assert FewShotTask.load("task", model, processor).texts == task.texts
common = ["--model", "mini"]
short = ["--beams", "1", "--max-new-tokens", "2"]
assert main(["caption", "photos", "--demonstrations", "shown.csv", "--output", "out.jsonl", *common, *short]) == 0
assert main(["ask", "photos", "--question", "größer?", "--output", "out.csv", *common, *short]) == 0
assert main(["classify", "photos", "named", "--labels", "labels.txt", *common]) == 0
assert main(["caption", "photos", "--demonstrations", "größer.csv", *common]) == 2
"""


def test_tasks_and_commands_under_another_locale(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(2):
        Image.new("RGB", (64, 64), ("red", "blue")[number]).save(tmp_path / "photos" / f"{number}.png")
    (tmp_path / "named").mkdir()
    (tmp_path / "named" / "été.png").write_bytes((tmp_path / "photos" / "0.png").read_bytes())
    (tmp_path / "shown.csv").write_text("image,text\nnamed/été.png,größer 猫\n", encoding="utf-8")
    (tmp_path / "labels.txt").write_text("größer\n猫\n", encoding="utf-8")
    (tmp_path / "run.py").write_text(RUN, encoding="utf-8")
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run([sys.executable, "run.py"], cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode("utf-8", "replace")
    assert json.loads((tmp_path / "task" / "task.json").read_bytes())["texts"] == [
        "<image>Output:größer 猫<|endofchunk|>"
    ]
    assert len((tmp_path / "out.jsonl").read_bytes().splitlines()) == 2
    assert "größer?".encode() in (tmp_path / "out.csv").read_bytes()
    # What the terminal's encoding lacks is escaped; names of files come out as the bytes that they are.
    printed = done.stdout.splitlines()
    assert [line.split(b"\t")[0] for line in printed] == [b"photos/0.png", b"photos/1.png", "named/été.png".encode()]
    assert any(rb"gr\xf6\xdfer" in line or rb"\u732b" in line for line in printed)
