"""Arguments that several commands take."""

import argparse
from collections.abc import Callable


def at_least(least: int) -> Callable[[str], int]:
    def number(given: str) -> int:
        if not given.lstrip("-").isdecimal() or int(given) < least:
            raise argparse.ArgumentTypeError(f"{given!r} is not a whole number from {least} up")
        return int(given)

    return number


def add_generation(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("generation")
    group.add_argument("--max-new-tokens", type=at_least(1), default=20, metavar="N", help="default: 20")
    group.add_argument("--beams", type=at_least(1), default=3, metavar="N", help="1 is greedy (default: 3)")


DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = ("auto", "float32", "bfloat16", "float16")


def add_model(parser: argparse.ArgumentParser, device: bool = True) -> None:
    """--model, None if it is not given; and where and in which precision it computes."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        metavar="NAME|DIR",
        help="mini (embedded; the default), a directory, or a released name such as "
        "openflamingo/OpenFlamingo-3B-vitl-mpt1b",
    )
    if device:
        group.add_argument("--device", choices=DEVICES, default="auto", help="default: cuda where there is one, or cpu")
        group.add_argument(
            "--dtype", choices=DTYPES, default="auto", help="default: bfloat16 on CUDA, float32 elsewhere"
        )


def add_tars(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", help="the folder to write; a stopped conversion resumes there")
    parser.add_argument(
        "--records", type=at_least(1), default=1000, metavar="N", help="records per tar (default: 1000)"
    )
