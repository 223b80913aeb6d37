"""The tables of docs/scaling.md: `flamboyance plan` from 1 GPU to 1,024.

python -m benchmarks.scaling            # prints them (two minutes)
python -m benchmarks.scaling --write    # writes them into docs/scaling.md
"""

import argparse
import re
from collections.abc import Callable
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

from flamboyance.planning.plan import Plan, Planner
from flamboyance.recipes import RECIPES
from flamboyance.recipes.arguments import find, parameters, resolve
from flamboyance.training.hardware import find as find_hardware
from flamboyance.training.run import TrainingRun

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "scaling.md"
LARGE = f"{ROOT / 'examples/recipes/flamingo_80b.py'}:flamingo_80b"
# The published batch, 4,096 pairs and 2,048 documents, on any number of devices.
PUBLISHED = {
    1: ["gradient_accumulation_steps=64"],
    8: ["gradient_accumulation_steps=8"],
    64: [],
    256: ["laion.batch_size=16", "mmc4.batch_size=8"],
    1024: ["laion.batch_size=4", "mmc4.batch_size=2"],
}
HEAD = "devices | settings | GiB | step s | samples/s | to the end | GB within nodes | GB between nodes | waits | "
HEAD += "MB/s a node | cores a node"
KINDS = ("B200", "H200", "H100", "A100-80GB", "A100-40GB", "L40S", "RTX4090")


def published(recipe: str) -> list[str]:
    """A row for each number of H100."""
    return [row(planned(recipe, gpus, settings), settings) for gpus, settings in PUBLISHED.items()]


def spreads() -> list[str]:
    """The 9B model on 1,024 H100: a row for each kind of parallelism."""
    given = [[*PUBLISHED[1024], f"parallel={spread}"] for spread in ("ddp", "hybrid", "fsdp")]
    return [row(planned("openflamingo-9b", 1024, settings), settings[-1:]) for settings in given]


def kinds() -> list[str]:
    """The 9B model on 64 devices: a row for each kind, with the change that `plan` proposes where it does not fit."""
    rows = []
    for kind in KINDS:
        first = planned("openflamingo-9b", 64, [], kind)
        tried = chain([("", first)], planner("openflamingo-9b").cheaper_plans(first))
        changes, plan = next(((words, one) for words, one in tried if one.fits), ("", first))
        rows.append(row(plan, [kind, changes]))
    return rows


TABLES: dict[str, Callable[[], list[str]]] = {
    "3b": lambda: published("openflamingo-3b"),
    "9b": lambda: published("openflamingo-9b"),
    "spreads": spreads,
    "kinds": kinds,
    "80b": lambda: [row(planned(LARGE, gpus, []), []) for gpus in (8, 64, 256, 1024)],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the tables into docs/scaling.md")
    arguments = parser.parse_args()
    page = PAGE.read_text(encoding="utf-8")
    for name in TABLES:
        made = table(name)
        print(f"\n**{name}**\n\n{made}", flush=True)
        page = page.replace(written(name, page), made)
    if arguments.write:
        PAGE.write_text(page, encoding="utf-8")


def table(name: str) -> str:
    """A table in Markdown."""
    return "\n".join([f"| {HEAD} |", f"|{' --- |' * (HEAD.count('|') + 1)}", *TABLES[name]()])


def written(name: str, page: str) -> str:
    """The table that the page has after its marker `<!-- scaling: NAME -->`."""
    found = re.search(rf"<!-- scaling: {name} -->\n((?:\|.*\n)+)", page)
    if found is None:
        raise ValueError(f"{PAGE} has no table after a line '<!-- scaling: {name} -->'")
    return found[1].rstrip("\n")


@cache
def planner(name: str) -> Planner:
    """One for each model: what was counted once is kept."""
    return Planner(_run(name, []).outline(), find_hardware("H100"))


def planned(name: str, gpus: int, settings: list[str], kind: str = "H100") -> Plan:
    planner(name).hardware = find_hardware(kind)
    return planner(name).plan(_run(name, settings).training, gpus)


def _run(name: str, settings: list[str]) -> TrainingRun:
    recipe = find(name, RECIPES)
    missing = [f"{n}={n}" for n, one in parameters(recipe).items() if one.required]
    return resolve(recipe, [*settings, *missing])


def row(plan: Plan, settings: list[Any]) -> str:
    days = plan.total_s / 86400
    cells = [
        f"{plan.devices.count:,}",
        " ".join(s for s in [plan.devices.spread, *settings] if s and not s.startswith("parallel=")),
        f"{plan.memory.total / 2**30:.1f}" + ("" if plan.fits else " (too much)"),
        f"{plan.step_s:.3g}",
        f"{plan.samples / plan.step_s:,.0f}",
        f"{days:,.1f} days" if days >= 2 else f"{24 * days:,.1f} h",
        f"{plan.traffic.link / 1e9:,.1f}",
        f"{plan.traffic.network / 1e9:,.2f}",
        f"{plan.exposed_network_s / plan.step_s:.0%}",
        f"{plan.read_bytes / plan.step_s / plan.devices.nodes / 1e6:,.0f}",
        f"{plan.decoding_cores:,.1f}",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
