"""`convert obelics`: converts OBELICS' Parquet files and their downloaded images to tars."""

import argparse

from flamboyance.commands.arguments import add_tars
from flamboyance.commands.output import print_counts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pages", nargs="+", metavar="PARQUET", help="OBELICS' files; * and {0..9} are read")
    parser.add_argument("images", help="tars that img2dataset made of the URLs in them; * and {00000..00099} are read")
    add_tars(parser)
    parser.add_argument("--unchecked", action="store_true", help="do not decode images to find the damaged ones")


def convert_obelics(arguments: argparse.Namespace) -> int:
    """Write OBELICS' pages with their images as tars."""
    from flamboyance.commands.progress import progress
    from flamboyance.data.convert import obelics

    with progress(None, "pages") as advance:
        counts = obelics.convert_obelics(
            arguments.pages,
            arguments.images,
            arguments.output,
            per_shard=arguments.records,
            check=not arguments.unchecked,
            advance=advance,
        )
    return print_counts(arguments.output, counts)
