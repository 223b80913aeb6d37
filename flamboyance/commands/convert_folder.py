"""`convert folder`: converts images with texts to tars."""

import argparse

from flamboyance.commands.arguments import add_tars
from flamboyance.commands.output import print_counts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="a folder of images, each with its .txt or .json; or a JSONL file")
    add_tars(parser)
    parser.add_argument("--outside", action="store_true", help="a JSONL's images may be outside of its folder")


def convert_folder(arguments: argparse.Namespace) -> int:
    """Write a folder of images with texts, or a JSONL file, as tars."""
    from flamboyance.commands.progress import progress
    from flamboyance.data.convert import folder as convert

    with progress(None, "records") as advance:
        counts = convert.convert_folder(
            arguments.source,
            arguments.output,
            per_shard=arguments.records,
            outside=arguments.outside,
            advance=advance,
        )
    return print_counts(arguments.output, counts)
