"""The `flamboyance` command: its commands, and how its errors are shown.

Each command is a module of `flamboyance.commands`: `add_arguments` says what it takes, and the function of the
command's name does it. Those modules import torch and transformers inside functions, so that help comes at once.
"""

from __future__ import annotations

import argparse
import codecs
import io
import os
import signal
import sys
import threading
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any, NamedTuple, NoReturn


class Command(NamedTuple):
    """One command: its name, what it does in a few words, and an example."""

    name: str
    summary: str
    example: str

    @property
    def function(self) -> str:
        """The name of its function, and of the module of `flamboyance.commands` that holds it."""
        return self.name.replace(" ", "_")


COMMANDS = (
    Command("demo", "show the embedded model on held-out images: a table, a page, a plot", "flamboyance demo"),
    Command(
        "caption",
        "describe images",
        "flamboyance caption photos/ --demonstrations captioned/ --shots 4 --output captions.jsonl",
    ),
    Command(
        "ask",
        "answer a question about images",
        'flamboyance ask photos/ --question "What colour is the car?" --output answers.csv',
    ),
    Command(
        "classify",
        "say which label fits each image",
        "flamboyance classify photos/ --labels cat,dog,bird --demonstrations labelled.csv",
    ),
    Command(
        "info",
        "what a model is made of, what trains, how much memory it takes",
        "flamboyance info openflamingo/OpenFlamingo-3B-vitl-mpt1b",
    ),
    Command(
        "convert",
        "turn an OpenFlamingo checkpoint into a model directory",
        "flamboyance convert checkpoint.pt my-flamingo/ --model openflamingo/OpenFlamingo-3B-vitl-mpt1b",
    ),
    Command("evaluate", "few-shot benchmarks by the papers' protocol", "flamboyance evaluate birds.csv --shots 0,4,8"),
    Command(
        "rices",
        "features of images, to find similar demonstrations by, ahead of an evaluation",
        "flamboyance rices coco vqav2 --data benchmarks/ --tower ViT-L-14 --tower-pretrained openai",
    ),
    Command(
        "report",
        "tables, figures and a page of predictions from evaluations, beside published scores",
        "flamboyance report runs/3b --beside OpenFlamingo-3B,Flamingo-3B",
    ),
    Command(
        "plan",
        "memory, time and data that a training run will take, without a GPU",
        "flamboyance plan openflamingo-9b --gpus 64 --kind H100-80GB",
    ),
    Command(
        "plot",
        "draw losses, gates and evaluations of training runs",
        "flamboyance plot runs/first runs/second --output curves.png",
    ),
    Command(
        "convert mmc4",
        "turn MMC4's zips and images into tars",
        'flamboyance convert mmc4 "zips/docs_no_face_shard_{0..99}_v2.jsonl.zip" images/ mmc4/',
    ),
    Command("convert folder", "turn images with texts into tars", "flamboyance convert folder captioned/ tars/"),
    Command(
        "train",
        "train a model: flamboyance train RECIPE key=value",
        "flamboyance train finetune data=photos/ output=run",
    ),
    Command("completion", "the script that completes this command in a shell", "flamboyance completion bash"),
)

EPILOG = """\
examples:
  flamboyance demo
  flamboyance caption photos/ --demonstrations captioned/ --output captions.jsonl
  flamboyance ask photos/ --question "How many shapes are there?"
  flamboyance classify scans/ --labels 0,1,2,3,4,5,6,7,8,9 --demonstrations digits.csv --output digits.out.csv
  flamboyance info openflamingo/OpenFlamingo-3B-vitl-mpt1b

`flamboyance COMMAND --help` says more.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with `argv` (default: the process's arguments). Returns the exit status.

    0: done. 1: done, but nothing that was asked for could be read. 2: a mistake in what was asked, reported in one
    line. 130: interrupted with Ctrl-C. 141: the reader of the output closed it, as `head` does.
    """
    debug = False
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started us, as `>&-` does
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  the process's own
    codecs.register_error("flamboyance.names", _write_names)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="flamboyance.names")
    with _interrupts() as interrupted:
        try:
            arguments = build_parser().parse_args(_joined(sys.argv[1:] if argv is None else argv))
            debug = arguments.debug
            with warnings.catch_warnings():
                warnings.showwarning = _show_warning  # ty: ignore[invalid-assignment]
                function = arguments.command.function
                return getattr(import_module(f"flamboyance.commands.{function}"), function)(arguments) or 0
        except KeyboardInterrupt:
            return _say_interrupted()
        except SystemExit as ending:
            if isinstance(ending.__context__, BrokenPipeError):  # rich ends the process itself then, with 1
                return 141
            raise
        except BrokenPipeError:  # the reader of our output has had enough, as in `… | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left to flush goes nowhere
            return 141
        except Exception as error:
            if interrupted:  # libraries that are being imported turn an interrupt into errors of their own
                return _say_interrupted()
            if debug or not isinstance(error, ValueError | OSError | ImportError):
                raise
            print(f"flamboyance: {_one_line(error)}", file=sys.stderr)
            return 2


def _say_interrupted() -> int:
    print("flamboyance: interrupted", file=sys.stderr)
    return 130


@contextmanager
def _interrupts() -> Generator[list[int]]:
    """Within it every Ctrl-C raises KeyboardInterrupt, as always, and is noted in the list that this gives.

    Python drops one that arrives inside a destructor or a callback, as those of its imports: that is raised again.
    """
    noted: list[int] = []

    def note(number: int, frame: Any) -> NoReturn:
        noted.append(number)
        raise KeyboardInterrupt

    def unraisable(dropped: Any) -> None:
        if issubclass(dropped.exc_type, KeyboardInterrupt):
            # Later, from elsewhere: raised here, it would be dropped again.
            threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGINT)).start()
        else:
            hook(dropped)

    # Elsewhere than in the main thread, or where another handler is set, interrupts are somebody else's.
    ours = threading.current_thread() is threading.main_thread()
    ours = ours and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    hook = sys.unraisablehook
    if ours:
        signal.signal(signal.SIGINT, note)
        sys.unraisablehook = unraisable
    try:
        yield noted
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            sys.unraisablehook = hook


def _write_names(error: UnicodeError) -> tuple[str | bytes, int]:
    """What standard output does with what its encoding lacks: bytes of a file's name go out as they are, for the
    program that reads them; the rest is escaped."""
    assert isinstance(error, UnicodeEncodeError)
    part = error.object[error.start : error.end]
    try:
        return part.encode("ascii", "surrogateescape"), error.end
    except UnicodeEncodeError:
        return part.encode("ascii", "backslashreplace"), error.end


def _joined(argv: Sequence[str]) -> list[str]:
    # `convert mmc4` and `convert folder` are commands of their own, beside `convert checkpoint.pt DIR`.
    words = [str(word) for word in argv]
    double = " ".join(words[:2])
    return [double, *words[2:]] if " " in double and any(double == one.name for one in COMMANDS) else words


def _show_warning(message: Warning | str, category: type[Warning], *_: Any) -> None:
    # Warnings of other kinds (deprecations) are for programmers.
    if issubclass(category, UserWarning):
        print(f"flamboyance: warning: {_one_line(message)}", file=sys.stderr)


def _one_line(error: Exception | str) -> str:
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


# The arguments ------------------------------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """Reports a mistake in the arguments in one line, with the names that it may have been meant for."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        # A parser with commands does not know their options.
        words = list(sys.argv[1:] if args is None else args)
        self._check_options(words[: words.index("--")] if "--" in words else words if self._subparsers is None else [])
        self._check_empty(words)
        found, rest = super().parse_known_args(args, namespace)
        self._check_options(rest)
        return found, rest

    def _check_empty(self, words: Sequence[str]) -> None:
        # As of a shell's variable that is not set: `""` would be the current directory, or an option that is not given.
        for before, word in zip(["", *words], words, strict=False):
            name, _, value = word.partition("=")
            if not word:
                self.error(f"{before} is empty" if before.startswith("--") else "an argument is empty")
            if word.startswith("--") and name != word and not value:
                self.error(f"{name} is empty")

    def _check_options(self, words: Sequence[str]) -> None:
        for word in words:
            name = word.partition("=")[0]
            if word.startswith("--") and not any(option.startswith(name) for option in self._option_string_actions):
                near = _did_you_mean(name, self._option_string_actions)
                if not near and any(action.dest == "settings" for action in self._actions):
                    near = f"; settings are written key=value, as in {name.lstrip('-').replace('-', '_')}=…"
                self.error(f"there is no option {name!r}{near}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            choices = [str(choice) for choice in action.choices]
            near = _did_you_mean(str(value), choices)
            expected = near or f": expected one of {', '.join(choices)}"
            raise argparse.ArgumentError(action, f"invalid choice: {value!r}{expected}")


def _did_you_mean(given: str, known: Any) -> str:
    from difflib import get_close_matches

    near = get_close_matches(given, list(known), 1)
    return f"; did you mean {near[0]}?" if near else ""


def build_parser(one_word: bool = False) -> argparse.ArgumentParser:
    """All commands with their arguments. `one_word`: without those of two words, which shells cannot complete."""
    parser = Parser(
        prog="flamboyance",
        description="Few-shot vision-language models: show a few images with their texts, and get the next.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        if not (one_word and " " in command.name):
            _add(commands, command)
    return parser


def _add(commands: Any, command: Command) -> None:
    one = commands.add_parser(
        command.name,
        help=command.summary,
        description=command.summary,
        epilog=f"example:\n  {command.example}\n\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=command.name != "train",  # recipes say themselves what they take
    )
    one.add_argument("--debug", action="store_true", help="show where an error comes from")
    one.set_defaults(command=command, build_parser=build_parser)
    import_module(f"flamboyance.commands.{command.function}").add_arguments(one)


class _Version(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        import flamboyance

        print(f"flamboyance {flamboyance.__version__}")
        parser.exit()


if __name__ == "__main__":
    sys.exit(main())
