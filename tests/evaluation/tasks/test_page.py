"""docs/add-task.md has an example of a task that works, and docs/evaluation.md a table of every task and file."""

import re
from pathlib import Path

from flamboyance.evaluation import tasks
from tests.evaluation.tasks.files import picture, put

DOCS = Path(__file__).parents[3] / "docs"
PAGE = (DOCS / "evaluation.md").read_text(encoding="utf-8")
EXAMPLE = (DOCS / "add-task.md").read_text(encoding="utf-8")


def test_the_example_is_a_task(tmp_path, monkeypatch):
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", EXAMPLE, re.S) if "TaskFile(" in block]
    made: dict = {}
    exec(code, made)
    for name in ("train", "test"):
        picture(tmp_path / "images" / f"{name}.png")
        put(tmp_path / f"{name}.jsonl", f'{{"id": 1, "image": "{name}.png", "fracture": 1}}\n')
    monkeypatch.setitem(tasks.TASKS, "fractures", made["TASK"])
    task = tasks.open_task("fractures", tmp_path)
    assert task.queries[0].references == ("yes",)
    assert task.template.query() == "<image>Is there a fracture? Answer:"


def test_the_table_names_every_task_and_its_splits():
    for name, file in tasks.TASKS.items():
        (row,) = [line for line in PAGE.splitlines() if line.startswith(f"| `{name}`")]
        assert all(f"`{one}`" in row for one in file.files) or name == "ok_vqa", row
        assert all(f":{split}`" in row for split in file.splits), row
