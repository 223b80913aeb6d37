"""The documentation's site builds without a warning, its links hold, and every page is in its navigation."""

import os
import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import yaml

import flamboyance as fl
from flamboyance.cli import COMMANDS, build_parser

pytest.importorskip("material", reason="mkdocs-material is not installed (extra docs)")
from scripts.documentation import hooks, reference

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))


def listed(nav: Any) -> list[str]:
    """The pages of a navigation, in order."""
    if isinstance(nav, str):
        return [nav]
    return [page for one in (nav if isinstance(nav, list) else nav.values()) for page in listed(one)]


def test_the_navigation_lists_every_page_once() -> None:
    nav = listed(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    assert max(Counter(nav).values()) == 1
    lacking = {page.name for page in PAGES} - set(nav)
    assert not lacking, f"add to the nav of mkdocs.yml, where a reader looks for it: {', '.join(sorted(lacking))}"
    made = {*hooks.MADE, *hooks.COPIED.values()}
    assert set(nav) == {page.name for page in PAGES} | made


class Html(HTMLParser):
    """A page's links, ids, and paragraphs."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.ids: set[str] = set()
        self.paragraphs: list[str] = []
        self.within = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.links += [value for name in ("href", "src") if (value := values.get(name))]
        if tag in ("script", "img", "link", "iframe"):
            self.loaded += [value for name in ("href", "src") if (value := values.get(name))]
        self.ids |= {value for name in ("id", "name") if (value := values.get(name))}
        self.within = tag
        if tag == "p":
            self.paragraphs.append("")

    def handle_data(self, data: str) -> None:
        if self.within == "p":
            self.paragraphs[-1] += data


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Html]:
    """The built pages, by their paths in the site."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "WARNING" not in run.stderr, run.stderr
    pages = {}
    for file in folder.rglob("*"):
        pages[file.relative_to(folder).as_posix()] = page = Html()
        if file.suffix == ".html":
            page.feed(file.read_text(encoding="utf-8"))
    return pages


def test_links_within_the_site_lead_to_a_file_and_an_anchor(site: dict[str, Html]) -> None:
    wrong, seen = [], 0
    for name, page in site.items():
        for link in page.links:
            if re.match(r"[a-z]+:", link):
                continue
            path, _, anchor = link.partition("#")
            goal = os.path.normpath(Path(name).parent / unquote(path)) if path else name
            goal = next((one for one in (goal, f"{goal}/index.html".removeprefix("./")) if one in site), "")
            if name == "404.html" and goal == "":
                continue  # its links begin at the root of the server
            seen += 1
            if not goal or (anchor and goal.endswith(".html") and unquote(anchor) not in site[goal].ids):
                wrong.append(f"{name}: {link}")
    assert seen > 1000
    assert not wrong, "\n".join(wrong)


def test_nothing_is_loaded_from_elsewhere(site: dict[str, Html]) -> None:
    assert not {link for page in site.values() for link in page.loaded if re.match(r"(https?:)?//", link)}


def test_no_list_or_table_is_left_as_text(site: dict[str, Html]) -> None:
    left = [
        f"{name}: {paragraph[:80]!r}"
        for name, page in site.items()
        for paragraph in page.paragraphs
        if re.search(r"^\|.*\||\n[-*] |^\d+\. |```", paragraph)
    ]
    assert not left, "\n".join(left)


def test_the_reference_has_every_public_name(site: dict[str, Html]) -> None:
    ids = set().union(*(page.ids for name, page in site.items() if name.startswith("reference/")))
    modules = {"examples", "metrics", "templates", "__version__"}
    lacking = set(fl.__all__) - modules - ids
    assert not lacking, f"add to PAGES in scripts/documentation/reference.py: {', '.join(sorted(lacking))}"


def test_the_reference_has_every_argument_of_every_command() -> None:
    page = hooks.MADE["reference/commands.md"]()
    sections = dict(re.findall(r"^## (.+)\n((?:(?!## ).*\n)*)", page + "\n", re.M))
    parser = build_parser()
    [commands] = [action for action in parser._actions if hasattr(action, "choices") and action.choices]
    assert sections.keys() == {command.name for command in COMMANDS}
    for name, one in commands.choices.items():
        options = {option for action in one._actions for option in action.option_strings}
        for option in options - {"-h", "--help", "--debug"}:
            assert option in sections[name], (name, option)


def test_a_docstring_becomes_lists() -> None:
    docstring = """Adds.

    More <words>.

        add(1)

    Args:
        a, b: numbers,
            or `<image>`.

    Raises:
        ValueError: never.
    """
    assert re.split(r"\n{2,}", reference.markdown(docstring).strip()) == [
        "Adds.",
        "More &lt;words>.",
        "```python\nadd(1)\n```",
        "**Arguments**",
        "`a`, `b`\n:   numbers, or `<image>`.",
        "**Raises**",
        "`ValueError`\n:   never.",
    ]


@pytest.mark.parametrize(
    "given, expected",
    [
        ("text\n- one\n- two", "text\n\n- one\n- two"),
        ("text\n| a |\n|---|\n| b |", "text\n\n| a |\n|---|\n| b |"),
        ("1. one\n2. two\n   more", "1. one\n2. two\n   more"),
        ("- one\n  more\n- two", "- one\n  more\n- two"),
        ("| `a\\|b` |", "| `a|b` |"),
        ("<!-- note -->\ntext", "\ntext"),
    ],
)
def test_lists_and_tables_are_separated_from_text(given: str, expected: str) -> None:
    assert hooks.separated(given) == f"\n{expected}\n"
