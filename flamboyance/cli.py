"""The `flamboyance` command: its arguments, and how its errors are shown."""

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from flamboyance.commands.arguments import add_generation, add_images, add_model, at_least

EPILOG = """\
examples:
  flamboyance demo
  flamboyance caption photos/ --demonstrations captioned/ --output captions.jsonl
  flamboyance ask photos/ --question "How many shapes are there?"
  flamboyance classify scans/ --labels 0,1,2,3,4,5,6,7,8,9 --demonstrations digits.csv --output digits.out.csv
  flamboyance info openflamingo/OpenFlamingo-3B-vitl-mpt1b

`flamboyance COMMAND --help` says more.
"""

DEMONSTRATIONS = """\
demonstrations:
  a folder     images, each with its text beside it: cat.jpg, cat.txt
  a CSV file   columns image,text or image,question,answer; image paths relative to the file
  a JSONL file one object a line, with the same keys

output:
  Without --output each line is the image's path, a tab, and what was said of it. With it, rows are appended
  to the file one by one, and a later run goes on where this one ended. An image that cannot be read becomes a
  row with `error`, and the run goes on; the exit status is 1 only if none could be read.
"""

# Commands whose modules hold their arguments: name, summary, an example.
MODULES = (
    ("evaluate", "few-shot benchmarks by the papers' protocol", "flamboyance evaluate birds.csv --shots 0,4,8"),
    (
        "rices",
        "features of images, to find similar demonstrations by, ahead of an evaluation",
        "flamboyance rices coco vqav2 --data benchmarks/ --tower ViT-L-14 --tower-pretrained openai",
    ),
    (
        "report",
        "tables, figures and a page of predictions from evaluations, beside published scores",
        "flamboyance report runs/3b --beside OpenFlamingo-3B,Flamingo-3B",
    ),
    (
        "plan",
        "memory, time and data that a training run will take, without a GPU",
        "flamboyance plan openflamingo-9b --gpus 64 --kind H100-80GB",
    ),
    (
        "plot",
        "draw losses, gates and evaluations of training runs",
        "flamboyance plot runs/first runs/second --output curves.png",
    ),
)
CONVERSIONS = (["mmc4"], ["folder"])


class Parser(argparse.ArgumentParser):
    """Says what is wrong with the arguments in one line, like every other mistake."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with `argv` (default: the process's arguments). Returns the exit status.

    0: done. 1: done, but no image could be read. 2: a mistake in what was asked, told in one line.
    """
    arguments = build_parser().parse_args(_joined(sys.argv[1:] if argv is None else argv))
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning  # ty: ignore[invalid-assignment]
            return arguments.command(arguments) or 0
    except KeyboardInterrupt:
        print("flamboyance: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has had enough, as in `… | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left to flush goes nowhere
        return 141
    except (ValueError, OSError, ImportError) as error:
        if arguments.debug:
            raise
        print(f"flamboyance: {_one_line(error)}", file=sys.stderr)
        return 2


def _joined(argv: Sequence[str]) -> list[str]:
    # `convert mmc4` and `convert folder` are commands of their own, beside `convert checkpoint.pt DIR`.
    words = [str(word) for word in argv]
    return [" ".join(words[:2]), *words[2:]] if words[:1] == ["convert"] and words[1:2] in CONVERSIONS else words


def _show_warning(message: Warning | str, category: type[Warning], *_: Any) -> None:
    # Warnings of other kinds (deprecations) are for programmers.
    if issubclass(category, UserWarning):
        print(f"flamboyance: warning: {_one_line(message)}", file=sys.stderr)


def _one_line(error: Exception | str) -> str:
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def build_parser() -> argparse.ArgumentParser:
    """All commands with their arguments."""
    parser = Parser(
        prog="flamboyance",
        description="Few-shot vision-language models: show a few images with their texts, and get the next.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_demo(commands)
    _add_caption(commands)
    _add_ask(commands)
    _add_classify(commands)
    _add_info(commands)
    _add_convert(commands)
    for name, summary, line in MODULES:
        _add_module(commands, name, summary, line)
    _add_convert_mmc4(commands)
    _add_convert_folder(commands)
    _add_train(commands)
    return parser


def _version() -> str:
    from importlib.metadata import version

    return f"flamboyance {version('flamboyance')}"


def _add(commands: Any, name: str, module: str, summary: str, epilog: str = "") -> argparse.ArgumentParser:
    """One command, run by the function of its name in `flamboyance.commands.<module>`."""
    parser = commands.add_parser(
        name,
        help=summary,
        description=summary,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--debug", action="store_true", help="show where an error comes from")
    parser.set_defaults(command=_later(module, name.replace(" ", "_")))
    return parser


def _example(line: str) -> str:
    return f"example:\n  {line}\n\n"


def _later(module: str, function: str) -> Callable[[argparse.Namespace], int]:
    """The function, imported when it is called: `--help` need not wait for torch."""

    def call(arguments: argparse.Namespace) -> int:
        from importlib import import_module

        return getattr(import_module(f"flamboyance.commands.{module}"), function)(arguments)

    return call


def _add_demo(commands: Any) -> None:
    parser = _add(commands, "demo", "demo", "show the embedded model on held-out images: a table, a page, a plot")
    parser.add_argument("--output", default="flamboyance-demo", help="folder to write to (default: %(default)s)")
    parser.add_argument(
        "--queries", type=at_least(1), default=64, metavar="N", help="of each task (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="other pictures for another seed (default: 0)")
    add_model(parser)


def _add_caption(commands: Any) -> None:
    line = "flamboyance caption photos/ --demonstrations captioned/ --shots 4 --output captions.jsonl"
    parser = _add(commands, "caption", "describe", "describe images", _example(line) + DEMONSTRATIONS)
    add_images(parser)
    add_generation(parser)


def _add_ask(commands: Any) -> None:
    line = 'flamboyance ask photos/ --question "What colour is the car?" --output answers.csv'
    parser = _add(commands, "ask", "describe", "answer a question about images", _example(line) + DEMONSTRATIONS)
    parser.add_argument("--question", required=True, help="what to ask about each image")
    add_images(parser)
    add_generation(parser)


def _add_classify(commands: Any) -> None:
    line = "flamboyance classify photos/ --labels cat,dog,bird --demonstrations labelled.csv"
    parser = _add(commands, "classify", "describe", "say which label fits each image", _example(line) + DEMONSTRATIONS)
    parser.add_argument("--labels", required=True, help="a,b,c, or a text file with a label on each line")
    add_images(parser)


def _add_info(commands: Any) -> None:
    summary = "what a model is made of, what trains, how much memory it takes"
    parser = _add(commands, "info", "info", summary, "Released models are not downloaded for this.\n")
    parser.add_argument("name", nargs="?", metavar="MODEL", help="same as --model")
    add_model(parser, device=False)


def _add_convert(commands: Any) -> None:
    line = "flamboyance convert checkpoint.pt my-flamingo/ --model openflamingo/OpenFlamingo-3B-vitl-mpt1b"
    parser = _add(
        commands,
        "convert",
        "convert",
        "turn an OpenFlamingo checkpoint into a model directory",
        _example(line) + "`convert mmc4` and `convert folder` turn datasets into tars.\n",
    )
    parser.add_argument("checkpoint", help="an OpenFlamingo .pt file")
    parser.add_argument("directory", help="the folder to write: safetensors of what trained, and the configuration")
    parser.add_argument("--model", help="the released model whose backbones it belongs to (default: recognized)")
    group = parser.add_argument_group("backbones", "hub ids or directories, for checkpoints that were not released")
    group.add_argument("--language", metavar="NAME|DIR", help="the language model")
    group.add_argument("--vision", metavar="NAME|DIR", help="the vision tower")
    group.add_argument("--tokenizer", metavar="NAME|DIR", help="default: the language model's")


def _add_train(commands: Any) -> None:
    summary = "train a model: flamboyance train RECIPE key=value"
    parser = commands.add_parser("train", help=summary, add_help=False)
    parser.add_argument("recipe", nargs="?")
    parser.add_argument("settings", nargs="*")
    # Recipes say themselves what they take, which depends on the one that is named.
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("--debug", action="store_true")
    parser.set_defaults(command=_later("train", "train"))


def _add_convert_mmc4(commands: Any) -> None:
    line = 'flamboyance convert mmc4 "zips/docs_no_face_shard_{0..99}_v2.jsonl.zip" images/ mmc4/'
    parser = _add(commands, "convert mmc4", "convert", "turn MMC4's zips and images into tars", _example(line))
    parser.add_argument("zips", nargs="+", metavar="ZIP", help="zips of JSONL, with {0..99} and * understood")
    parser.add_argument("images", help="folder of the images, as NUMBER/image_name (NUMBER is the zip's) or image_name")
    _add_tars(parser)
    parser.add_argument("--base64", action="store_true", help="images inside the JSON, as open_flamingo reads them")
    parser.add_argument("--unchecked", action="store_true", help="do not decode images to find the damaged ones")
    parser.add_argument("--workers", type=at_least(1), default=1, metavar="N", help="processes (default: 1)")


def _add_convert_folder(commands: Any) -> None:
    line = "flamboyance convert folder captioned/ tars/"
    parser = _add(commands, "convert folder", "convert", "turn images with texts into tars", _example(line))
    parser.add_argument("source", help="a folder of images, each with its .txt or .json; or a JSONL file")
    _add_tars(parser)
    parser.add_argument("--outside", action="store_true", help="a JSONL's images may stand outside of its folder")


def _add_tars(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", help="the folder to write; a stopped conversion goes on there")
    parser.add_argument(
        "--records", type=at_least(1), default=1000, metavar="N", help="records of a tar (default: 1000)"
    )


def _add_module(commands: Any, name: str, summary: str, line: str) -> None:
    """A command whose module says itself what it takes."""
    from importlib import import_module

    module = import_module(f"flamboyance.commands.{name}")
    module.add_arguments(_add(commands, name, name, summary, _example(line)))


if __name__ == "__main__":
    sys.exit(main())
