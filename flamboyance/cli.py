"""The `flamboyance` command: its commands, and how its errors are shown.

Each command is a module of `flamboyance.commands`: `add_arguments` declares its arguments, and the function of the
command's name runs it. Those modules import torch and transformers inside functions, for start-up time.
"""

from __future__ import annotations

import argparse
import codecs
import io
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from importlib import import_module
from types import FrameType, FunctionType
from typing import Any, NamedTuple, NoReturn

from flamboyance.checks import printable


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
        "choose a label for each image",
        "flamboyance classify photos/ --labels cat,dog,bird --demonstrations labelled.csv",
    ),
    Command("chat", "converse about images and videos in the terminal", "flamboyance chat --model my-flamingo/"),
    Command(
        "info",
        "list a model's parts, trainable parameters, memory and gates",
        "flamboyance info openflamingo/OpenFlamingo-3B-vitl-mpt1b",
    ),
    Command(
        "convert",
        "turn an OpenFlamingo checkpoint into a model directory",
        "flamboyance convert checkpoint.pt my-flamingo/ --model openflamingo/OpenFlamingo-3B-vitl-mpt1b",
    ),
    Command("evaluate", "run few-shot benchmarks as in the papers", "flamboyance evaluate birds.csv --shots 0,4,8"),
    Command(
        "rices",
        "compute features of images, to find similar demonstrations by, before an evaluation",
        "flamboyance rices coco vqav2 --data benchmarks/ --tower ViT-L-14 --tower-pretrained openai",
    ),
    Command(
        "report",
        "make tables, figures and a page of predictions from evaluations, beside published scores",
        "flamboyance report runs/3b --beside OpenFlamingo-3B,Flamingo-3B",
    ),
    Command(
        "data",
        "say what training data holds: documents, images, tokens, and what is dropped",
        "flamboyance data photos/ --page samples.html",
    ),
    Command(
        "plan",
        "estimate the memory, time and data of a training run, without a GPU",
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
    Command(
        "convert obelics",
        "turn OBELICS' files and the images that img2dataset downloaded into tars",
        'flamboyance convert obelics "OBELICS/data/train-0000*.parquet" "downloaded/*.tar" obelics/',
    ),
    Command("convert folder", "turn images with texts into tars", "flamboyance convert folder captioned/ tars/"),
    Command(
        "train",
        "train a model: flamboyance train RECIPE key=value",
        "flamboyance train finetune data=photos/ output=run",
    ),
    Command(
        "serve",
        "answer over HTTP as OpenAI's chat completions do, with few-shot tasks by name",
        "flamboyance serve --model mini --port 8000",
    ),
    Command("web", "build few-shot prompts on a web page, with streamed answers and heat maps", "flamboyance web"),
    Command("completion", "print the script that completes this command in a shell", "flamboyance completion bash"),
)

EPILOG = """\
examples:
  flamboyance demo
  flamboyance caption photos/ --demonstrations captioned/ --output captions.jsonl
  flamboyance ask photos/ --question "How many shapes are there?"
  flamboyance classify scans/ --labels 0,1,2,3,4,5,6,7,8,9 --demonstrations digits.csv --output digits.out.csv
  flamboyance info openflamingo/OpenFlamingo-3B-vitl-mpt1b

`flamboyance COMMAND --help` lists a command's arguments.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with `argv` (default: the process's arguments). Returns the exit status.

    0: done. 1: done in part: no image could be read, or the budget was spent. 2: a mistake in the arguments or files,
    or a server that refuses, reported in one line. 130: interrupted with Ctrl-C. 141: the reader of the output closed
    it, as `head` does. 143: ended by SIGTERM.
    """
    debug = False
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the parent process, as `>&-` does
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  the process's own
    codecs.register_error("flamboyance.names", _write_names)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="flamboyance.names")
    with _signals() as signals:
        try:
            arguments = build_parser().parse_args(_joined(sys.argv[1:] if argv is None else argv))
            debug = arguments.debug
            with warnings.catch_warnings():
                warnings.showwarning = _show_warning  # ty: ignore[invalid-assignment]
                function = arguments.command.function
                return getattr(import_module(f"flamboyance.commands.{function}"), function)(arguments) or 0
        except KeyboardInterrupt:
            return _report(signal.SIGINT)
        except BrokenPipeError:  # the reader of our output has closed it, as in `… | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the rest of the buffer
            return 141
        except SystemExit as ending:
            if signals:
                return _report(signals[0])
            if isinstance(ending.__context__, BrokenPipeError):  # rich ends the process itself then, with 1
                return 141
            raise
        except Exception as error:
            if signals:  # libraries that are being imported turn an interrupt into errors of their own
                return _report(signals[0])
            if debug or not isinstance(error, ValueError | OSError | ImportError):
                raise
            print(f"flamboyance: {_one_line(error)}", file=sys.stderr)
            return 2


def _report(number: int) -> int:
    print(f"flamboyance: {'interrupted' if number == signal.SIGINT else 'terminated'}", file=sys.stderr)
    return 128 + number


@contextmanager
def _signals() -> Generator[list[int]]:
    """Within it every Ctrl-C raises KeyboardInterrupt and SIGTERM raises SystemExit. Yields a list to which the
    signals that arrive are added.

    Python drops a KeyboardInterrupt that is raised inside a destructor or a callback, as those of its imports: that is
    raised again. A second SIGTERM ends the process at once.
    """
    noted: list[int] = []
    process = os.getpid()
    dropped_one = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal dropped_one
        if number == signal.SIGINT and dropped_one:
            if _within(unraisable, frame):  # raised there, it would be dropped again: the next one is raised
                return
            dropped_one = False
        if number == signal.SIGTERM:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            if os.getpid() != process:  # a forked process, which its parent ends
                os.kill(os.getpid(), signal.SIGTERM)
        noted.append(number)
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    def unraisable(dropped: Any) -> None:
        nonlocal dropped_one
        if issubclass(dropped.exc_type, KeyboardInterrupt):
            dropped_one = True
            threading.Thread(target=send_again, daemon=True).start()
        else:
            hook(dropped)

    def send_again() -> None:
        time.sleep(0.01)
        while dropped_one:
            os.kill(process, signal.SIGINT)
            time.sleep(0.1)

    # Other threads cannot handle signals, and a handler that is already set stays. Other ranks than the first may wait
    # in an exchange, where no Python code runs: SIGTERM ends them as the system does.
    expected: dict[int, Any] = {signal.SIGINT: signal.default_int_handler}
    if os.environ.get("RANK", "0") == "0":
        expected[signal.SIGTERM] = signal.SIG_DFL
    main_thread = threading.current_thread() is threading.main_thread()
    before = {n: handler for n, handler in expected.items() if main_thread and signal.getsignal(n) is handler}
    hook = sys.unraisablehook
    for number in before:
        signal.signal(number, note)
    if signal.SIGINT in before:
        sys.unraisablehook = unraisable
    try:
        yield noted
    finally:
        dropped_one = False
        for number, handler in before.items():
            signal.signal(number, handler)
        sys.unraisablehook = hook


def _within(function: FunctionType, frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code is not function.__code__:
        frame = frame.f_back
    return frame is not None


def _write_names(error: UnicodeError) -> tuple[str | bytes, int]:
    """The error handler of standard output, for characters that its encoding lacks: bytes of a file's name are written
    as they are, for the program that reads them; other characters are escaped."""
    assert isinstance(error, UnicodeEncodeError)
    part = error.object[error.start : error.end]
    try:
        return part.encode("ascii", "surrogateescape"), error.end
    except UnicodeEncodeError:
        return part.encode("ascii", "backslashreplace"), error.end


def _joined(argv: Sequence[str]) -> list[str]:
    # `convert mmc4` and its like are commands of their own, beside `convert checkpoint.pt DIR`.
    words = [str(word) for word in argv]
    double = " ".join(words[:2])
    return [double, *words[2:]] if " " in double and any(double == one.name for one in COMMANDS) else words


def _show_warning(message: Warning | str, category: type[Warning], *_: Any) -> None:
    # Warnings of other kinds (deprecations) are for programmers.
    if issubclass(category, UserWarning):
        print(f"flamboyance: warning: {_one_line(message)}", file=sys.stderr)


def _one_line(error: Exception | str) -> str:
    if isinstance(error, OSError) and error.filename and error.strerror:
        return printable(f"{error.filename}: {error.strerror}")
    return printable(" ".join(str(error).split())) or type(error).__name__


# The arguments ------------------------------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """Reports a mistake in the arguments in one line, with the names that it may have been meant for."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, printable(f"{self.prog}: {message} (see {self.prog} --help)") + "\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        # A parser with commands does not know their options.
        words = list(sys.argv[1:] if args is None else args)
        self._check_options(words[: words.index("--")] if "--" in words else words if self._subparsers is None else [])
        self._check_empty(words)
        found, rest = super().parse_known_args(args, namespace)
        self._check_options(rest)
        return found, rest

    def _check_empty(self, words: Sequence[str]) -> None:
        # A shell variable that is not set gives `""`, which would mean the current directory or no option.
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
        description="Few-shot vision-language models: show a few images with texts, and get the text of the next.",
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
        add_help=command.name != "train",  # its help depends on the recipe
    )
    one.add_argument("--debug", action="store_true", help="show the traceback of an error")
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
