"""The tables of docs/scaling.md: `flamboyance plan` from 1 GPU to 1,024.

python benchmarks/scaling.py
"""

from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

from flamboyance.recipes import RECIPES
from flamboyance.recipes.arguments import find, parameters, resolve
from flamboyance.training.hardware import find as find_hardware
from flamboyance.training.plan import Plan, Planner
from flamboyance.training.run import Run

LARGE = f"{Path(__file__).parents[1] / 'examples/recipes/flamingo_80b.py'}:flamingo_80b"
# The published batch, 4,096 pairs and 2,048 documents, on any number of devices.
PUBLISHED = {
    1: ["accumulate=64"],
    8: ["accumulate=8"],
    64: [],
    256: ["laion.batch_size=16", "mmc4.batch_size=8"],
    1024: ["laion.batch_size=4", "mmc4.batch_size=2"],
}
HEAD = "devices | settings | GiB | step s | samples/s | to the end | sent within nodes GB | between nodes GB | waits | "
HEAD += "MB/s a node | cores a node"


def main() -> None:
    for recipe in ("openflamingo-3b", "openflamingo-9b"):
        title(f"{recipe}, the published batch, H100")
        for gpus, settings in PUBLISHED.items():
            row(planned(recipe, gpus, settings), settings)
    title("openflamingo-9b, the published batch, 1,024 H100, by how it is spread")
    for spread in ("ddp", "hybrid", "fsdp"):
        settings = [*PUBLISHED[1024], f"parallel={spread}"]
        row(planned("openflamingo-9b", 1024, settings), settings[-1:])
    title("openflamingo-9b on 64, the published batch, by kind")
    for kind in ("B200", "H200", "H100", "A100-80GB", "A100-40GB", "L40S", "RTX4090"):
        first = planned("openflamingo-9b", 64, [], kind)
        tried = chain([("", first)], planner("openflamingo-9b").mended(first))
        changes, plan = next(((words, one) for words, one in tried if one.fits), ("", first))
        row(plan, [kind, changes])
    title("flamingo_80b, batches of a device as they are, H100")
    for gpus in (8, 64, 256, 1024):
        row(planned(LARGE, gpus, []), [])


@cache
def planner(name: str) -> Planner:
    """One for each model: what was counted once is kept."""
    return Planner(_run(name, []).outline(), find_hardware("H100"))


def planned(name: str, gpus: int, settings: list[str], kind: str = "H100") -> Plan:
    planner(name).hardware = find_hardware(kind)
    return planner(name).plan(_run(name, settings).training, gpus)


def _run(name: str, settings: list[str]) -> Run:
    recipe = find(name, RECIPES)
    missing = [f"{n}={n}" for n, one in parameters(recipe).items() if one.required]
    return resolve(recipe, [*settings, *missing])


def title(text: str) -> None:
    print(f"\n**{text}**\n\n| {HEAD} |\n|{' --- |' * (HEAD.count('|') + 1)}")


def row(plan: Plan, settings: list[Any]) -> None:
    days = plan.total / 86400
    cells = [
        f"{plan.devices.count:,}",
        " ".join(s for s in [plan.devices.spread, *settings] if s and not s.startswith("parallel=")),
        f"{plan.memory.total / 2**30:.1f}" + ("" if plan.fits else " (too much)"),
        f"{plan.step:.3g}",
        f"{plan.samples / plan.step:,.0f}",
        f"{days:,.1f} days" if days >= 2 else f"{24 * days:,.1f} h",
        f"{plan.traffic.link / 1e9:,.1f}",
        f"{plan.traffic.network / 1e9:,.2f}",
        f"{plan.waiting / plan.step:.0%}",
        f"{plan.read / plan.step / plan.devices.nodes / 1e6:,.0f}",
        f"{plan.cores:,.1f}",
    ]
    print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
