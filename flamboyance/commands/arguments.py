"""Arguments that several commands take."""

import argparse
from collections.abc import Callable

from flamboyance.checks import SCHEMES

DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = ("auto", "float32", "bfloat16", "float16")


def at_least(least: int) -> Callable[[str], int]:
    """The type of an argument that is a whole number, `least` or more."""

    def number(given: str) -> int:
        if not given.lstrip("-").isdecimal() or int(given) < least:
            raise argparse.ArgumentTypeError(f"{given!r} is not a whole number from {least} up")
        return int(given)

    return number


def numbers(least: int) -> Callable[[str], tuple[int, ...]]:
    """The type of an argument such as `0,4,8`: distinct whole numbers, each `least` or more."""

    def parse(given: str) -> tuple[int, ...]:
        return tuple(dict.fromkeys(at_least(least)(part.strip()) for part in given.split(",")))

    return parse


def add_generation(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("generation")
    group.add_argument("--max-new-tokens", type=at_least(1), default=20, metavar="N", help="default: 20")
    group.add_argument("--beams", type=at_least(1), default=3, metavar="N", help="1 is greedy (default: 3)")


def add_model(
    parser: argparse.ArgumentParser,
    device: bool = True,
    default: str = "small (embedded; the default), mini (embedded)",
) -> None:
    """--model, None if it is not given; and --device and --dtype.

    Args:
        default: the embedded models, in words.
    """
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        metavar="NAME|DIR",
        help=f"{default}, a directory, or a released name such as openflamingo/OpenFlamingo-3B-vitl-mpt1b",
    )
    add_quantize(group)
    if device:
        group.add_argument("--device", choices=DEVICES, default="auto", help="default: cuda where there is one, or cpu")
        group.add_argument(
            "--dtype", choices=DTYPES, default="auto", help="default: bfloat16 on CUDA, float32 elsewhere"
        )


def add_quantize(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--quantize",
        choices=tuple(SCHEMES),
        help="keep the frozen parts' weights in 8 or 4 bits (default: as they were saved)",
    )


def renamed(given: str) -> dict[str, str]:
    """`image=picture,label=species` as a dictionary."""
    pairs = [part.partition("=") for part in given.split(",")]
    if not all(ours and theirs for ours, _, theirs in pairs):
        raise argparse.ArgumentTypeError(f"{given!r}: expected OURS=THEIRS,…, as image=picture,label=species")
    return {ours.strip(): theirs.strip() for ours, _, theirs in pairs}


def add_video(parser: argparse._ActionsContainer) -> None:
    """Which frames of videos are shown; see flamboyance.commands.models.set_sampling."""
    parser.add_argument(
        "--frames",
        type=at_least(1),
        metavar="N",
        help="the most frames of a video (default: 30; of a model of images: 1)",
    )
    parser.add_argument(
        "--frames-per-second", type=above_zero, metavar="X", help="frames for each second of a video (default: 1)"
    )


def above_zero(given: str) -> float:
    """The type of an argument that is a number above 0, and at most 1,000."""
    try:
        number = float(given)
    except ValueError:
        number = 0
    if not 0 < number <= 1000:
        raise argparse.ArgumentTypeError(f"{given!r} is not a number above 0 and at most 1,000")
    return number


def add_tasks(parser: argparse.ArgumentParser, help: str) -> None:
    """The evaluation tasks and their files; see flamboyance.commands.tasks.read_tasks."""
    parser.add_argument("tasks", nargs="+", metavar="TASK", help=help)
    group = parser.add_argument_group("data")
    group.add_argument("--data", metavar="DIR", help="folder of the benchmarks' official files, as DIR/coco/…")
    group.add_argument(
        "--file", action="append", default=[], metavar="TASK.NAME=PATH", help="a file or folder that is elsewhere"
    )
    group.add_argument("--support", metavar="FILE", help="demonstrations for a file of your own")
    group.add_argument(
        "--columns", type=renamed, default={}, metavar="OURS=THEIRS,…",
        help="what a dataset of Hugging Face (hf:NAME[SPLIT]) calls image, label, text, question, answer, answers",
    )  # fmt: skip
    group.add_argument("--outside", action="store_true", help="a file's images may be outside of its folder")


def add_tower(parser: argparse.ArgumentParser) -> None:
    """The vision tower whose features RICES compares."""
    group = parser.add_argument_group("RICES")
    group.add_argument(
        "--tower",
        metavar="NAME|DIR",
        help="another tower than the model's, as ViT-L-14 with --tower-pretrained openai",
    )
    group.add_argument("--tower-pretrained", metavar="TAG", help="its weights, for OpenCLIP's names")
    group.add_argument("--features", metavar="DIR", help="folder of the features (default: the user's cache folder)")


def add_tars(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", help="the folder to write; a stopped conversion resumes there")
    parser.add_argument(
        "--records", type=at_least(1), default=1000, metavar="N", help="records per tar (default: 1000)"
    )
