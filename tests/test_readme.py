"""The README names files that exist and is short, links lead somewhere, and a script draws the example pictures."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flamboyance import examples
from scripts.pretrain_mini import pictures

README = Path(__file__).parents[1] / "README.md"


def test_the_tree_names_what_is_there():
    tree = re.search(r"## What is where\n```\n(.*?)```", README.read_text(encoding="utf-8"), re.S)[1]
    parents: list[Path] = []
    for line in tree.splitlines():
        indent, name = re.match(r"( *)(\S+)", line).groups()
        depth = len(indent) // 2
        if depth > 2 or ("." not in name and not name.endswith("/")):
            continue  # a note that continues
        path = Path(*parents[depth - 1 : depth], name.rstrip(","))
        parents[depth:] = [path]
        assert (README.parent / path).exists(), f"the README's tree names {path}"


PAGES = sorted(path for folder in (".", "docs", "dev") for path in (README.parent / folder).glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_readme_is_short():
    assert len(README.read_text(encoding="utf-8").splitlines()) < 150


def test_the_example_pictures_are_what_their_script_draws():
    drawn = pictures.draw()
    assert set(drawn) == {p.relative_to(examples.folder).as_posix() for p in examples.folder.glob("*/*.png")}
    for name, (picture, _) in drawn.items():
        np.testing.assert_array_equal(np.asarray(Image.open(examples.folder / name)), np.asarray(picture))
    assert examples.demonstrations == [
        (examples.folder / name, caption)
        for name, (_, caption) in sorted(drawn.items())
        if name.startswith("captioned")
    ]
    assert [p.name for p in examples.queries] == sorted(f"{thing.replace(' ', '-')}.png" for thing in pictures.NEW)
