"""Arguments that several commands take."""

import argparse
from collections.abc import Callable


def at_least(least: int) -> Callable[[str], int]:
    def number(given: str) -> int:
        if not given.lstrip("-").isdecimal() or int(given) < least:
            raise argparse.ArgumentTypeError(f"{given!r} is not a whole number from {least} up")
        return int(given)

    return number


def add_images(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files, or folders of them at any depth")
    group = parser.add_argument_group("demonstrations")
    group.add_argument("--demonstrations", metavar="FOLDER|CSV|JSONL", help="images with their texts; see below")
    group.add_argument("--shots", type=at_least(0), metavar="N", help="use the first N demonstrations (default: all)")
    add_model(parser)
    parser.add_argument("--output", metavar="FILE", help=".jsonl or .csv file to append rows to")
    parser.add_argument("--batch-size", type=at_least(1), default=8, metavar="N", help="images at a time (default: 8)")


def add_generation(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("generation")
    group.add_argument("--max-new-tokens", type=at_least(1), default=20, metavar="N", help="default: 20")
    group.add_argument("--beams", type=at_least(1), default=3, metavar="N", help="1 is greedy (default: 3)")


def add_model(parser: argparse.ArgumentParser, device: bool = True) -> None:
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        default="mini",
        metavar="NAME|DIR",
        help="mini (embedded; the default), a directory, or a released name such as "
        "openflamingo/OpenFlamingo-3B-vitl-mpt1b",
    )
    if device:
        group.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto")
        group.add_argument(
            "--dtype",
            choices=("auto", "float32", "bfloat16", "float16"),
            default="auto",
            help="default: bfloat16 on CUDA, float32 on a CPU",
        )
