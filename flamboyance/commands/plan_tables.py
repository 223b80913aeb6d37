"""`plan`'s tables and words."""

from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flamboyance.planning.plan import Plan, Planner

GIB = 2**30
MEMORY = {
    "frozen": "frozen parameters",
    "trained": "trained parameters",
    "gradients": "gradients",
    "optimizer": "AdamW's moments",
    "gathered": "gathered by FSDP at a time",
    "temporary": "activations, logits, workspace",
    "fragments": "between the allocator's blocks",
    "reserve": "driver and libraries",
}


def print_plan(name: str, plan: "Plan") -> None:
    """One plan in full."""
    from rich.console import Console

    console = Console(highlight=False)
    console.print(f"\n[bold]{name}[/] on {_devices(plan)}: {_how(plan)}")
    for table in (_parts(plan), _memory(plan), _time(plan)):
        console.print(table)
    console.print(_assumed(plan))
    _print_not_counted(plan)


def print_cheaper_plan(planner: "Planner", plan: "Plan", most: int = 12) -> None:
    """The first change with which a plan fits."""
    from rich.console import Console

    console = Console(highlight=False)
    change, last = "", plan
    for change, last in islice(planner.cheaper_plans(plan), most):
        if last.fits:
            console.print(
                f"\n[bold]It fits with[/] {change}: {_gib(last.memory.total)} of {_gib(last.hardware.memory)}, "
                f"{_seconds(last.step_s)} a step, {_seconds(last.total_s)} in all."
            )
            if last.samples != plan.samples:
                console.print(f"Then {last.samples:,} samples make a step, not {plan.samples:,}.")
            return
    console.print(
        f"\n[bold]It does not fit[/] even with {change or 'the least memory'}: {_gib(last.memory.total)} of "
        f"{_gib(last.hardware.memory)}. Give more devices to shard over (--gpus), or a kind with more memory (--kind)."
    )


def _devices(plan: "Plan") -> str:
    devices = plan.devices
    nodes = f" ({devices.nodes} nodes of {devices.per_node})" if devices.nodes > 1 else ""
    return f"{devices.count} × {plan.hardware.name}{nodes}"


def _how(plan: "Plan") -> str:
    training = plan.training
    batches = " and ".join(f"{sizes.rows} {name}" for name, sizes in plan.batches.items())
    checkpointed = ", activations checkpointed" if training.checkpoint_activations else ""
    micro_steps = training.gradient_accumulation_steps
    accumulate = f", accumulated {micro_steps} times" if micro_steps > 1 else ""
    return f"{plan.devices.spread}, {training.precision}{checkpointed}; {batches} on each{accumulate}"


def _table(*columns: str) -> Any:
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table(box=SIMPLE, show_edge=False, pad_edge=False)
    table.add_column(columns[0], no_wrap=True)
    for column in columns[1:]:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _parts(plan: "Plan") -> Any:
    table = _table("a device's part in a step", "frozen", "trained", "forward", "backward")
    names = [n for n in plan.parts if plan.parts[n].frozen or plan.parts[n].trained or plan.flops[n, "forward"]]
    for name in names:
        part = plan.parts[name]
        forward, backward = (plan.flops[name, d] for d in ("forward", "backward"))
        table.add_row(name, *(_count(n) for n in (part.frozen, part.trained)), _tera(forward), _tera(backward))
    frozen, trained = (sum(getattr(p, kind) for p in plan.parts.values()) for kind in ("frozen", "trained"))
    sums = [sum(n for (_, d), n in plan.flops.items() if d == direction) for direction in ("forward", "backward")]
    table.add_section()
    table.add_row("parameters; TFLOP", _count(frozen), _count(trained), *map(_tera, sums))
    return table


def _memory(plan: "Plan") -> Any:
    table = _table("memory of a device", "GiB")
    for name, words in MEMORY.items():
        if getattr(plan.memory, name):
            table.add_row(words, f"{getattr(plan.memory, name) / GIB:,.2f}")
    left = plan.hardware.memory - plan.memory.total
    tight = " (tight: the estimate is good to a few percent)" if left < 0.05 * plan.hardware.memory else ""
    verdict = (
        f"[green]fits, {_gib(left)} left{tight}[/]" if plan.fits else f"[red]does not fit: {_gib(-left)} too much[/]"
    )
    table.add_section()
    table.add_row(f"at the worst moment, of {_gib(plan.hardware.memory)}: {verdict}", f"{plan.memory.total / GIB:,.2f}")
    return table


def _time(plan: "Plan") -> Any:
    table = _table("time and data", "")
    images = plan.images * plan.training.steps
    rate = plan.samples / plan.step_s
    hidden = (
        "all of it hidden" if not plan.exposed_network_s else f"{_seconds(plan.exposed_network_s)} of it not hidden"
    )
    rows = [
        ("a step", _seconds(plan.step_s)),
        (f"  sending to and from other devices, {hidden}", _seconds(plan.network_s)),
        (
            "  received by a device in its node; from other nodes",
            f"{_gb(plan.traffic.link)}; {_gb(plan.traffic.network)}",
        ),
        (f"all {plan.training.steps:,} steps", _seconds(plan.total_s)),
        ("samples, images a second", f"{rate:,.0f}, {plan.images / plan.step_s:,.0f}"),
        ("samples in all", f"{plan.samples * plan.training.steps:,}"),
        ("images in all", f"{images:,}"),
        ("tokens in all, padding included", f"{plan.tokens * plan.training.steps / 1e9:,.2f} G"),
        ("to read in all", _gb(plan.read_bytes * plan.training.steps)),
        ("to read on each node", f"{plan.read_bytes / plan.step_s / plan.devices.nodes / 1e6:,.1f} MB/s"),
        ("CPU cores that decode, on each node", f"{plan.decoding_cores:,.1f}"),
    ]
    for row in rows:
        table.add_row(*row)
    return table


def _print_not_counted(plan: "Plan") -> None:
    from rich.console import Console

    for one in plan.not_counted:
        Console(highlight=False).print(f"[bold]Not counted:[/] {one}.")


def _assumed(plan: "Plan") -> str:
    given, kind = plan.assumptions, plan.hardware
    return (
        f"Assumed: {given.mfu:.0%} of {kind.peak(plan.training.precision) / 1e12:,.3g} TFLOP/s is reached (--mfu), "
        f"{kind.network * 8e-9:g} Gb/s from each device to other nodes (--network); "
        f"{given.images_per_document:g} images in a document (--images-per-document), of {given.image_bytes / 1e3:g} "
        f"kB (--image-bytes); a core decodes {given.decoded:g} images a second (--decoded); memory is for the largest "
        "batches that can come. docs/scaling.md says how it is estimated."
    )


def print_rows(name: str, plans: Sequence["Plan"]) -> None:
    """A line for each plan."""
    from rich.console import Console

    columns = ("devices", "parallel", "GiB", "fits", "step s", "samples/s", "days", "from nodes GB", "wait s")
    table = _table(*columns, "MB/s node", "cores node")
    for plan in plans:
        table.add_row(
            str(plan.devices.count),
            plan.devices.spread,
            f"{plan.memory.total / GIB:.1f}",
            "yes" if plan.fits else "no",
            f"{plan.step_s:.2f}",
            f"{plan.samples / plan.step_s:,.0f}",
            f"{plan.total_s / 86400:,.2f}",
            f"{plan.traffic.network / 1e9:.2f}",
            f"{plan.exposed_network_s:.2f}",
            f"{plan.read_bytes / plan.step_s / plan.devices.nodes / 1e6:,.1f}",
            f"{plan.decoding_cores:,.1f}",
        )
    # A file gets the whole width that the table takes.
    console = Console(highlight=False, width=None if Console().is_terminal else 140)
    console.print(f"\n[bold]{name}[/] on {plans[0].hardware.name}: {_how(plans[0]).partition(', ')[2]}")
    console.print(table)
    console.print(_assumed(plans[0]))
    _print_not_counted(plans[0])


def _gib(size: float) -> str:
    return f"{size / GIB:,.1f} GiB"


def _gb(size: float) -> str:
    return f"{size / 1e12:,.2f} TB" if size >= 1e12 else f"{size / 1e9:,.2f} GB"


def _count(number: int) -> str:
    if number < 1e5:
        return f"{number:,}" if number else ""
    return f"{number / 1e6:,.1f} M"


def _tera(number: int) -> str:
    return f"{number / 1e12:,.2f}" if number else ""


def _seconds(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    for unit, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:,.1f} {name}"
    return f"{seconds:.1f} seconds"
