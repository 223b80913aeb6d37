"""The README's first example runs as it stands there, and what it says is so."""

import contextlib
import io
import re
from pathlib import Path

import numpy as np

from flamboyance.demo import world

README = Path(__file__).parents[1] / "README.md"


def test_the_first_example(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for name, shape, color, size in (
        ("a", "ring", "red", "large"),
        ("b", "square", "blue", "small"),
        ("c", "ring", "green", "large"),
        ("d", "cross", "yellow", "large"),
    ):
        scene = world.scene(rng, 1, shape=shape, color=color, size=size)
        world.picture(scene).save(tmp_path / f"{name}.png")
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(.*?)```", README.read_text(), re.S)[1]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {})
    captions, answers = printed.getvalue().splitlines()
    assert captions == "['a large green ring', 'a large yellow cross']"
    assert answers == "['green']"


def test_the_tree_names_what_is_there():
    tree = re.search(r"## What is where\n```\n(.*?)```", README.read_text(), re.S)[1]
    parents: list[Path] = []
    for line in tree.splitlines():
        indent, name = re.match(r"( *)(\S+)", line).groups()
        depth = len(indent) // 2
        if depth > 2 or ("." not in name and not name.endswith("/")):
            continue  # a note that goes on
        path = Path(*parents[depth - 1 : depth], name.rstrip(","))
        parents[depth:] = [path]
        assert (README.parent / path).exists(), f"the README's tree names {path}"
