"""The table of parameters of docs/flamingo.md: the original Flamingo's sizes as published, and as they are here.

python -m benchmarks.original            # prints it (half a minute; models on the meta device, without weights)
python -m benchmarks.original --write    # writes it into docs/flamingo.md
"""

import argparse
import re
from collections.abc import Callable
from pathlib import Path

from flamboyance import catalog
from flamboyance.commands.info import as_json
from flamboyance.configuration_original import SIZES, VOCABULARY

PAGE = Path(__file__).parents[1] / "docs" / "flamingo.md"
HEAD = "| size | part | paper | here | difference | with A, B and C | difference |"
# Flamingo, table 1.
PAPER = {
    "flamingo-3b": {"language": 1.4e9, "vision": 435e6, "cross_attention": 1.2e9, "resampler": 194e6, "total": 3.2e9},
    "flamingo-9b": {"language": 7.1e9, "vision": 435e6, "cross_attention": 1.6e9, "resampler": 194e6, "total": 9.3e9},
    "flamingo-80b": {"language": 70e9, "vision": 435e6, "cross_attention": 10e9, "resampler": 194e6, "total": 80e9},
}


def counts(name: str) -> dict[str, int]:
    """The model's parameters by part, as `flamboyance info NAME --json` prints them."""
    return as_json(name, catalog.resolve(name).outline(), None)["parameters"]


def explained(name: str, here: dict[str, int]) -> dict[str, int]:
    """The parameters with the page's differences A (a matrix of relative positions in each layer), B (keys and values
    of inputs as wide as the language model) and C (32 layers and 8 blocks for the 9B)."""
    layers, width, every = SIZES[name]
    layers = 32 if name == "flamingo-9b" else layers  # C
    blocks = len(range(0, layers, every))
    found = {"vision": here["vision"], "resampler": here["resampler"]}
    found["language"] = 13 * layers * width**2 + VOCABULARY * width  # A
    found["cross_attention"] = 12 * blocks * width**2  # B
    return found | {"total": sum(found.values())}


def table(name: str, here: dict[str, int]) -> list[str]:
    """The rows of one size."""
    rows, corrected = [], explained(name, here)
    for part, paper in PAPER[name].items():
        cells = [name, part.replace("_", "-"), _count(paper)]
        for count in (here[part], corrected[part]):
            cells += [_count(count), f"{count / paper - 1:+.1%}"]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def written(name: str, page: str) -> list[str]:
    """The rows of one size that the page has."""
    return re.findall(rf"^\| {name} \|.*$", page, re.M)


def _count(number: float) -> str:
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.1f} M"


def show(description: str | None, make: Callable[[], list[str]]) -> None:
    """The command of a table of docs/flamingo.md: prints it, and with --write puts it in the place of the one there.

    Args:
        make: gives the lines, the first of which is the table's head.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--write", action="store_true", help="write the table into docs/flamingo.md")
    arguments = parser.parse_args()
    made = make()
    print("\n".join(made))
    if arguments.write:
        page = PAGE.read_text(encoding="utf-8")
        start = page.index(made[0])
        PAGE.write_text(page[:start] + "\n".join(made) + page[page.index("\n\n", start) :], encoding="utf-8")


def main() -> None:
    show(__doc__, lambda: [HEAD, f"|{' --- |' * 7}", *(row for name in PAPER for row in table(name, counts(name)))])


if __name__ == "__main__":
    main()
