"""`report`: tables, figures and a page of predictions from results directories."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flamboyance.commands.arguments import at_least

if TYPE_CHECKING:
    from flamboyance.reports.report import Report
    from flamboyance.reports.tables import Table

FILES = """\
files, in the first DIR or in --output:
  report.md    the tables, the figures, and what the published scores were measured on
  scores.csv   a line per run, task, way of choosing demonstrations and number of shots
  figure-*     OpenFlamingo's Figures 1, 6 and 7 for these runs (.png, .svg); ablation.* after evaluate --ablate
  lm_eval/     the scores in lm-eval's layout, a file per number of shots and way of choosing
  index.html   every query: images, demonstrations, prompt, answer, references, score; to filter, search and sort

The first run is also compared with each other one query by query, if they asked the same ones.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = f"{parser.epilog}{FILES}"
    parser.add_argument("runs", nargs="+", metavar="DIR", help="results directories of `flamboyance evaluate`")
    parser.add_argument("--output", metavar="DIR", help="folder to write to (default: the first run's)")
    parser.add_argument(
        "--beside", metavar="MODEL,…", help="published models to compare with, such as OpenFlamingo-9B,Flamingo-80B "
        "(default: the same model if it is published, else OpenFlamingo-9B)",
    )  # fmt: skip
    parser.add_argument("--open", choices=("yes", "no"), default="no", help="show the page in a browser (default: no)")
    group = parser.add_argument_group("page")
    group.add_argument(
        "--items",
        type=at_least(0),
        default=50_000,
        metavar="N",
        help="predictions in the page; of more, the first of each cell (default: %(default)s)",
    )
    group.add_argument(
        "--thumbnails", type=at_least(0), default=300, metavar="N",
        help="images copied small into the page; it links to the others where they are (default: %(default)s)",
    )  # fmt: skip

    group.add_argument(
        "--images", action="append", default=[], metavar="DIR",
        help="a folder whose images may be copied into the page, besides the results directory and the data folders of "
        "your own evaluations; can be repeated",
    )  # fmt: skip


def report(arguments: argparse.Namespace, note: str = "") -> int:
    """Read the runs, print their tables, and write report.md, scores.csv, figures and index.html.

    Args:
        note: a paragraph at the top of the page.
    """
    from flamboyance.reports import lm_eval, page, tables
    from flamboyance.reports.evaluation_run import read_runs
    from flamboyance.reports.report import build

    runs = read_runs([Path(run) for run in arguments.runs])
    beside = (
        None if arguments.beside is None else [name.strip() for name in arguments.beside.split(",") if name.strip()]
    )
    whole = build(runs, beside, with_gains=True)
    _print(whole)
    folder = Path(arguments.output) if arguments.output else runs[0].folder
    folder.mkdir(parents=True, exist_ok=True)
    pictures = _draw(whole, folder)
    tables.write_markdown(whole, pictures, folder / tables.MARKDOWN)
    tables.write_csv(whole, folder / tables.CSV)
    for run in runs:
        lm_eval.write(run, folder)
    links = [(tables.MARKDOWN, "tables"), (tables.CSV, "as CSV")]
    html = page.write_page(
        runs,
        folder,
        links,
        pictures,
        note,
        items=arguments.items,
        thumbnails=arguments.thumbnails,
        images=[Path(one) for one in arguments.images],
        say=lambda line: print(f"flamboyance: note: {line}", file=sys.stderr),
    )
    figures = "1 figure" if len(pictures) == 1 else f"{len(pictures)} figures"
    print(f"wrote {tables.MARKDOWN}, {tables.CSV} and {figures}; the page is {html.resolve()}")
    if arguments.open == "yes":
        import webbrowser

        webbrowser.open(html.resolve().as_uri())
    return 0


def _draw(whole: Report, folder: Path) -> list[tuple[str, str]]:
    """Draws the figures; without matplotlib there are none."""
    from flamboyance.reports.figures import draw

    try:
        return draw(whole, folder)
    except ImportError as error:
        print(f"no figures: {error}", file=sys.stderr)
        return []


def console_of(stream: Any) -> Any:
    """A console for tables; a file gets their whole width."""
    from rich.console import Console

    return Console(file=stream, highlight=False, markup=False, width=None if stream.isatty() else 200)


def _print(whole: Report) -> None:
    from flamboyance.reports.report import shares_of_flamingo
    from flamboyance.reports.tables import (
        ablation,
        curves,
        differences,
        facts,
        gains,
        inspected,
        scores,
        share_sentence,
        unfinished,
    )

    console = console_of(sys.stdout)
    for fact in facts(whole):
        console.print(fact, soft_wrap=True)
    for table in (scores(whole), gains(whole), curves(whole), ablation(whole), *inspected(whole), differences(whole)):
        if table is not None:
            console.print(f"\n{table.title}")
            print_table(console, table)
    for share in shares_of_flamingo(whole):
        console.print(share_sentence(share), soft_wrap=True)
    for line in unfinished(whole):
        console.print(f"unfinished, not counted: {line}", soft_wrap=True)


def print_table(console: Any, table: Table) -> None:
    """A table with its notes."""
    from rich.box import SIMPLE
    from rich.table import Table as Grid
    from rich.text import Text

    grid = Grid(box=SIMPLE, show_edge=False, pad_edge=False)
    for place, column in enumerate(table.columns):
        grid.add_column(Text(column), justify="left" if place < table.left else "right", overflow="fold")
    for section in table.sections:
        for row in section:
            grid.add_row(*map(Text, row))
        grid.add_section()
    if table.sections:
        console.print(grid)
    for note in table.notes:
        console.print(note, soft_wrap=True)
