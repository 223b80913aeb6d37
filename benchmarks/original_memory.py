"""The table of memory of docs/flamingo.md: what a device holds when the original's sizes are trained, as `flamboyance
plan` counts it.

python -m benchmarks.original_memory            # prints it (two minutes; models on the meta device, without weights)
python -m benchmarks.original_memory --write    # writes it into docs/flamingo.md
"""

import re

from benchmarks.original import show
from flamboyance.planning.plan import Plan, Planner
from flamboyance.recipes import RECIPES
from flamboyance.recipes.arguments import resolve
from flamboyance.training.hardware import find

HEAD = "| size | devices | spread | frozen | trained | gradients | moments | gathered | activations | rest | in all |"
DEVICES = {"flamingo-3b": (8,), "flamingo-9b": (8,), "flamingo-80b": (8, 64)}
PARTS = ("frozen", "trained", "gradients", "optimizer", "gathered", "temporary")  # the rest: fragments and reserve
GIVEN = ("output=o", "laion=l", "mmc4=m", "captions=c", "videos=v")  # all four parts of the mixture


def plans(name: str) -> list[Plan]:
    """The size on H100s of 80 GB, as `flamboyance plan NAME captions=c videos=v --gpus 8,64` plans it."""
    run = resolve(RECIPES[name], list(GIVEN))
    planner = Planner(run.outline(), find("H100-80GB"))
    return [planner.plan(run.training, gpus) for gpus in DEVICES[name]]


def row(name: str, plan: Plan) -> str:
    """The row of one plan, in GiB."""
    parts = [getattr(plan.memory, part) for part in PARTS]
    sizes = [*parts, plan.memory.total - sum(parts), plan.memory.total]
    cells = [name.removeprefix("flamingo-").upper(), str(plan.devices.count), plan.devices.spread]
    return f"| {' | '.join([*cells, *(f'{size / 2**30:.1f}' for size in sizes)])} |"


def written(name: str, page: str) -> list[str]:
    """The rows of one size that the page has."""
    return re.findall(rf"^\| {name.removeprefix('flamingo-').upper()} \|.*$", page, re.M)


def table() -> list[str]:
    return [HEAD, f"|{' --- |' * 3}{' ---: |' * 8}", *(row(name, plan) for name in DEVICES for plan in plans(name))]


if __name__ == "__main__":
    show(__doc__, table)
