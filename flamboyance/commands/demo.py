"""`demo`: the embedded model on held-out images."""

import argparse
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flamboyance.commands.arguments import add_model, at_least
from flamboyance.commands.models import MINI, load, model_name
from flamboyance.commands.progress import progress

if TYPE_CHECKING:
    from flamboyance.demo.results import Cell, Results

SMALL = 20_000_000  # parameters


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", default="flamboyance-demo", help="folder to write to (default: %(default)s)")
    parser.add_argument(
        "--queries", type=at_least(1), default=64, metavar="N", help="of each task (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="other pictures for another seed (default: 0)")
    add_model(parser)


def demo(arguments: argparse.Namespace) -> int:
    """Write the demonstration's images, page and plot to a folder, and print its table."""
    from flamboyance.demo import run as demonstration
    from flamboyance.demo.page import PAGE
    from flamboyance.demo.snippets import MINI as EMBEDDED

    began = time.monotonic()
    name = model_name(arguments)
    folder = Path(arguments.output)
    demonstration.check(folder, arguments.queries)
    model, processor = load(name, arguments.device, arguments.dtype)
    total = demonstration.TASKS * len(demonstration.SHOTS) * arguments.queries
    with _few_threads(model), progress(total, "queries") as advance:
        results = demonstration.run(
            model,
            processor,
            folder,
            name=EMBEDDED if name == MINI else name,
            queries=arguments.queries,
            seed=arguments.seed,
            advance=advance,
        )
    _print_table(results)
    print("all pictures are of the small world that flamingo-mini was trained on; other pictures are outside of it")
    print(f"done in {time.monotonic() - began:.0f} seconds; the page is {(folder / PAGE).resolve()}")
    return 0


@contextmanager
def _few_threads(model: Any) -> Generator[None]:
    """One thread for a model so small that sharing its work costs more than it saves, on busy cores by far."""
    import torch

    before = torch.get_num_threads()
    if sum(p.numel() for p in model.parameters()) < SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _print_table(results: "Results") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(f"{results.model} on held-out pictures: right answers, 95 % interval"))
    table.add_column("task")
    for shots in results.shots:
        table.add_column(f"{shots} shots", justify="right")
    for task in results.tasks:
        chance = "" if task.task.chance is None else f"\nchance {task.task.chance:.0%}"
        figures = (_figure(task.cell(shots)) for shots in results.shots)
        table.add_row(Text(task.task.title + chance), *figures, end_section=True)
    # A file gets the whole width that the table takes.
    Console(width=None if sys.stdout.isatty() else 100).print(table)


def _figure(cell: "Cell") -> str:
    low, high = cell.interval
    return f"{cell.accuracy:.1%}  {cell.right}/{cell.total}\n{100 * low:.0f}–{100 * high:.0f} %"
