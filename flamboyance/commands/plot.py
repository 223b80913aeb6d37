"""`plot`: curves of training runs."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="directories of runs, or their log.jsonl")
    parser.add_argument("--output", metavar="FILE", help=".png, .svg or .pdf (default: curves.png in the first run)")
    parser.add_argument(
        "--against", choices=("steps", "images", "tokens"), default="steps", help="horizontal axis (default: steps)"
    )
    parser.add_argument(
        "--smooth", type=int, metavar="N", help="steps in the running mean of losses (default: a fiftieth of the run)"
    )


def plot(arguments: argparse.Namespace) -> int:
    """Draw losses, gates, evaluations and gradient norms of one or more runs."""
    from flamboyance.training.plot import draw, read

    runs = [read(Path(run)) for run in arguments.runs]
    first = Path(arguments.runs[0])
    folder = first if first.is_dir() else first.parent
    output = Path(arguments.output) if arguments.output else folder / "curves.png"
    draw(runs, output, against=arguments.against, smooth=arguments.smooth)
    print(f"wrote {output}")
    return 0
