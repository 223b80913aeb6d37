"""`plan`: memory, time and data of a training run, without a GPU."""

import argparse
import json
from dataclasses import asdict, fields, replace
from typing import TYPE_CHECKING, Any

from flamboyance.commands.arguments import at_least, numbers
from flamboyance.commands.plan_tables import print_cheaper_plan, print_plan, print_rows

if TYPE_CHECKING:
    from flamboyance.planning.plan import Plan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kinds = "H100-80GB, H200-141GB, A100-80GB, A100-40GB, L40S-48GB, L4-24GB, T4-16GB, RTX4090-24GB, B200-180GB, "
    kinds += "cpu: this machine, or a main memory such as 16GB"
    parser.add_argument("recipe", metavar="RECIPE", help="as for `train`")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="as for `train`; shards may be left out")
    parser.add_argument("--gpus", type=numbers(1), default=(1,), metavar="N[,N…]", help="how many; a line for each")
    parser.add_argument("--kind", default="H100-80GB", help=f"{kinds} (default: %(default)s)")
    parser.add_argument("--per-node", type=at_least(1), default=8, metavar="N", help="of them in a node (default: 8)")
    parser.add_argument("--json", action="store_true", help="figures as JSON: bytes, seconds, operations")
    group = parser.add_argument_group("assumptions")
    for name, default, words in (
        ("--mfu", 0.35, "share of the peak reached, recomputing included"),
        ("--images-per-document", 3.0, "mean, of interleaved sources"),
        ("--image-bytes", 60e3, "mean, as stored"),
        ("--decoded", 400.0, "images that a CPU core decodes in a second"),
    ):
        group.add_argument(name, type=_positive, default=default, metavar="X", help=f"{words} (default: {default:g})")
    group.add_argument("--network", type=_positive, metavar="X", help="Gb/s of a GPU to other nodes (default: kind's)")
    _settings_anywhere(parser)


def _settings_anywhere(parser: argparse.ArgumentParser) -> None:
    """Lets settings follow an option, which argparse allows for a list of words only before the first option."""
    parse = parser.parse_known_args

    def parse_known_args(*arguments: Any) -> tuple[argparse.Namespace, list[str]]:
        found, rest = parse(*arguments)
        late = [word for word in rest if "=" in word and not word.startswith("-")]
        found.settings += late
        return found, [word for word in rest if word not in late]

    parser.parse_known_args = parse_known_args  # ty: ignore[invalid-assignment]


def _positive(given: str) -> float:
    try:
        number = float(given)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{given!r} is not a number above 0")
    return number


def plan(arguments: argparse.Namespace) -> int:
    """Print memory, operations, time and data of a recipe on some devices; for several numbers, a line each."""
    from flamboyance import recipes

    if arguments.recipe not in recipes.SUMMARIES and ".py:" not in arguments.recipe:
        raise recipes.unknown(arguments.recipe)
    from flamboyance.planning.plan import Assumptions, Planner
    from flamboyance.recipes.arguments import find, parameters, resolve
    from flamboyance.training.hardware import find as find_hardware

    recipe = find(arguments.recipe, recipes.RECIPES)
    # Where a run writes and reads does not matter here; what a recipe needs may be left out.
    named = {setting.partition("=")[0] for setting in arguments.settings}
    missing = [f"{n}={n}" for n, one in parameters(recipe).items() if one.required and n not in named]
    run = resolve(recipe, [*arguments.settings, *missing])
    given = {field.name: getattr(arguments, field.name) for field in fields(Assumptions)}
    hardware = find_hardware(arguments.kind)
    if arguments.network:
        hardware = replace(hardware, network=arguments.network * 1e9 / 8)
    planner = Planner(run.outline(), hardware, Assumptions(**given))
    plans = [planner.plan(run.training, gpus, arguments.per_node) for gpus in arguments.gpus]
    if arguments.json:
        print(json.dumps([figures(one) for one in plans], indent=1))
    elif len(plans) > 1:
        print_rows(arguments.recipe, plans)
    else:
        print_plan(arguments.recipe, plans[0])
        if not plans[0].fits:
            print_cheaper_plan(planner, plans[0])
    return 0


def figures(plan: "Plan") -> dict[str, Any]:
    """A plan's figures as JSON: bytes, seconds, operations of one device in an optimizer step."""
    return {
        "devices": plan.devices.count,
        "nodes": plan.devices.nodes,
        "parallel": plan.devices.spread,
        "kind": plan.hardware.name,
        "parameters": {name: {"frozen": part.frozen, "trained": part.trained} for name, part in plan.parts.items()},
        "memory": {**asdict(plan.memory), "total": plan.memory.total, "capacity": plan.hardware.memory},
        "fits": plan.fits,
        "flops": {f"{part}/{direction}": n for (part, direction), n in plan.flops.items()},
        "step_s": plan.step_s,
        "compute_s": plan.compute_s,
        "network_s": plan.network_s,
        "network_exposed_s": plan.exposed_network_s,
        "link_bytes": plan.traffic.link,
        "network_bytes": plan.traffic.network,
        "steps": plan.training.steps,
        "total_s": plan.total_s,
        "samples": plan.samples,
        "images": plan.images,
        "tokens": plan.tokens,
        "read_bytes": plan.read_bytes,
        "read_bytes_per_s_and_node": plan.read_bytes / plan.step_s / plan.devices.nodes,
        "cores_per_node": plan.decoding_cores,
        "not_counted": list(plan.not_counted),
    }
