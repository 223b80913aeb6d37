"""`convert mmc4`: converts MMC4's zips and images to tars."""

import argparse

from flamboyance.commands.arguments import add_tars, at_least
from flamboyance.commands.output import print_counts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("zips", nargs="+", metavar="ZIP", help="zips of JSONL, with {0..99} and * understood")
    parser.add_argument("images", help="folder of the images, as NUMBER/image_name (NUMBER is the zip's) or image_name")
    add_tars(parser)
    parser.add_argument("--base64", action="store_true", help="images inside the JSON, as open_flamingo reads them")
    parser.add_argument("--unchecked", action="store_true", help="do not decode images to find the damaged ones")
    parser.add_argument("--workers", type=at_least(1), default=1, metavar="N", help="processes (default: 1)")


def convert_mmc4(arguments: argparse.Namespace) -> int:
    """Write MMC4's zips and images as tars."""
    from flamboyance.commands.progress import progress
    from flamboyance.data.convert import mmc4

    with progress(len(mmc4.find_zips(arguments.zips)), "zips") as advance:
        counts = mmc4.convert_mmc4(
            arguments.zips,
            arguments.images,
            arguments.output,
            per_shard=arguments.records,
            inside=arguments.base64,
            check=not arguments.unchecked,
            workers=arguments.workers,
            advance=advance,
        )
    return print_counts(arguments.output, counts)
