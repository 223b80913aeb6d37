"""What MkDocs calls while it builds the site (`hooks` in mkdocs.yml).

- Pages that are not in docs/ are added: the reference, the notebook, and the repository's own pages.
- Links are as GitHub needs them, relative to the file. Those that lead out of docs/ lead to the added pages; a link to
  a file that the site does not have becomes plain text.
- A link whose text is a file's name ("data.md") gets the page's title as its text.
- GitHub reads a list, table or fence that follows a line of text; Python-Markdown needs an empty line before it. In
  tables GitHub needs a backslash before each "|" in code; Python-Markdown would print it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from scripts.documentation import commands, notebook, reference

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
COPIED = {  # a file of the repository -> its place in the site
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "dev/LOG.md": "log.md",
    "flamboyance/weights/flamingo-mini/README.md": "flamingo-mini.md",
    "flamboyance/weights/flamingo-small/README.md": "card-of-flamingo-small.md",
}
NOTEBOOK = "examples/few_shot_captioning.ipynb"
MADE = {  # a page's place in the site -> the function that writes its Markdown
    "notebook.md": lambda: notebook.page(ROOT / NOTEBOOK),
    "reference/commands.md": commands.page,
    **{f"reference/{name}.md": lambda name=name: reference.page(name) for name in reference.PAGES},
}
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
BEGINS_BLOCK = re.compile(r"([-*] |\d+\. |\| |```)")


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages that are made, and the files that pages link to outside of docs/."""
    made: dict[str, Callable[[], str]] = dict(MADE)
    for source, place in COPIED.items():
        made[place] = lambda source=source: (ROOT / source).read_text(encoding="utf-8")
    for place, write in made.items():
        files.append(File.generated(config, place, content=write()))
    for picture in sorted({picture for page in DOCS.glob("*.md") for picture in _pictures_outside(page)}):
        files.append(File.generated(config, _place(picture), abs_src_path=str(ROOT / picture)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """The page as Python-Markdown reads it, with links that hold in the site."""
    place = page.file.src_uri
    titles = _titles(config.nav)
    source = next((name for name, copy in COPIED.items() if copy == place), f"docs/{place}")
    if place == "notebook.md":
        source = NOTEBOOK

    def linked(found: re.Match[str]) -> str:
        picture, text, target = found.groups()
        if re.match(r"[a-z]+:|#", target):
            return found[0]
        path, _, anchor = target.partition("#")
        goal = _place(os.path.normpath(Path(source).parent / path))
        if files.get_file_from_path(goal) is None:
            return text
        relative = os.path.relpath(goal, Path(place).parent)
        text = titles.get(goal, text) if text.endswith(".md") else text
        return f"{picture}[{text}]({relative}{'#' if anchor else ''}{anchor})"

    return "\n".join(part if part.startswith("```") else separated(LINK.sub(linked, part)) for part in _parts(markdown))


def _titles(nav: Any) -> dict[str, str]:
    """The title of each page in the navigation."""
    if isinstance(nav, list):
        return {place: title for one in nav for place, title in _titles(one).items()}
    [(title, below)] = nav.items()
    return {below: title} if isinstance(below, str) else _titles(below)


def _place(path: str) -> str:
    """The place in the site of a path of the repository."""
    if path in COPIED:
        return COPIED[path]
    if path == NOTEBOOK:
        return "notebook.md"
    if path.removeprefix("flamboyance/") in reference.FILES:
        return reference.FILES[path.removeprefix("flamboyance/")]
    return path.removeprefix("docs/")


def _pictures_outside(page: Path) -> list[str]:
    found = [os.path.normpath(Path("docs") / target) for _, _, target in LINK.findall(page.read_text(encoding="utf-8"))]
    return [path for path in found if path.endswith((".png", ".svg", ".webp")) and not path.startswith("docs/")]


def _parts(markdown: str) -> list[str]:
    """The page cut before and after each fenced block."""
    return [part.strip("\n") for part in re.split(r"^(```[^\n]*\n.*?^```$)", markdown, flags=re.S | re.M)]


def separated(markdown: str) -> str:
    """The same with an empty line before each list and table that follows a line of text, and around comments."""
    lines: list[str] = []
    for line in markdown.split("\n"):
        if re.fullmatch(r"<!--.*-->", line):
            line = ""
        if line.startswith("|"):
            line = re.sub(r"`[^`]*`", lambda code: code[0].replace("\\|", "|"), line)
        before = lines[-1] if lines else ""
        begins, follows = (BEGINS_BLOCK.match(one) for one in (line, before))
        same = begins and follows and (begins[1] == "| ") == (follows[1] == "| ")
        if begins and before.strip() and not same and not before.startswith((" ", "|")):
            lines.append("")
        lines.append(line)
    return "\n".join(["", *lines, ""])
