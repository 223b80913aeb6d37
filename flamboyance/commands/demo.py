"""`demo`: an embedded model on held-out images, evaluated and reported as any model is."""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from flamboyance import catalog
from flamboyance.catalog import MINI, SMALL
from flamboyance.commands.arguments import add_model, at_least

REQUIRED = {"sklearn": "scikit-learn", "matplotlib": "matplotlib"}


class Question(NamedTuple):
    """What is asked of flamingo-small, as arguments of `evaluate`.

    Attributes:
        task: a file of small/benchmarks.py.
        about: for the page.
        shots: numbers of demonstrations.
        controlled: the number of demonstrations that are changed too; "" for none.
        support: the file that RICES chooses the demonstrations from, instead of the query's own.
    """

    task: str
    about: str
    shots: str
    controlled: str
    support: str = ""


DRAWINGS = (
    Question("words-2way", "two made-up words for two things, each drawn by one artist", "0,2,4,8", "4"),
    Question("words-2way-artists", "the same, learned from drawings by other artists", "0,2,4,8", "4"),
    Question("words-5way", "five made-up words for five things", "0,5,10,20", "10"),
    Question("naming", "the names of things", "0,4,8", "4"),
    # Not 0: the answers of similar images, shown without the images, would be answers to copy.
    Question("naming-rices", "the same, after similar drawings by another artist", "4,8", "", "naming-support"),
    Question("which-task", "name, kind, translation or format: the demonstrations say which", "0,2,4,8", "4"),
)
CONTROLS = "blank_images,shuffled_images"

MINI_TASKS = {
    "coco": "captions of one or two objects",
    "vqav2": "questions about color, shape and number, or with the answer yes or no",
    "textvqa": "handwritten digits",
    "imagenet": "16 made-up words, each for a kind of object or a digit, which demonstrations alone explain",
}
MINI_SHOTS = "0,4,8"
MINI_SUPPORT = 48  # images to take demonstrations from: three for each made-up word


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", default="flamboyance-demo", help="folder to write to (default: %(default)s)")
    parser.add_argument("--queries", type=at_least(1), default=32, metavar="N", help="per task (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="another seed draws others (default: 0)")
    add_model(parser, default="small (embedded; the default), mini (embedded; asked about a world of its own)")


def demo(arguments: argparse.Namespace) -> int:
    """Write small benchmarks, evaluate a model on them, and write the report.

    flamingo-mini is asked about the world that it was trained on, every other model about drawings.
    """
    from flamboyance.commands import report

    start = time.monotonic()
    name, folder = arguments.model or SMALL, Path(arguments.output)
    arguments.model = name
    _check(folder)
    note = (_mini_world if catalog.resolve(name).name == MINI else _drawings)(arguments, folder)
    report.report(_parsed(report, [str(folder)]), note)
    print(note)
    print(f"done in {time.monotonic() - start:.0f} seconds")
    return 0


def _check(folder: Path) -> None:
    """Makes the folder, and finds out before any work whether the demonstration can run.

    Raises:
        ImportError: a library of the `demo` extra is missing.
        OSError: the folder cannot be written to.
    """
    missing = [library for module, library in REQUIRED.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise ImportError(f"the demo needs {' and '.join(missing)}: pip install {' '.join(missing)}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OSError(f"cannot write to {folder} ({error.strerror}): give another folder with --output") from error


def _parsed(command: ModuleType, arguments: Sequence[str]) -> argparse.Namespace:
    """What another command's function expects, from that command's own arguments."""
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(arguments)


def _settings(arguments: argparse.Namespace, folder: Path) -> list[str]:
    """The arguments of `evaluate` that all tasks have in common."""
    settings = ["--seeds", "0", "--beams", "1", "--features", str(folder / "features"), "--output", str(folder)]
    settings += ["--model", arguments.model, "--device", arguments.device, "--dtype", arguments.dtype]
    return settings + (["--quantize", arguments.quantize] if arguments.quantize else [])


# ---- flamingo-small, and any other model ----------------------------------------------------------------------------


def _drawings(arguments: argparse.Namespace, folder: Path) -> str:
    """Evaluates a model on the drawings; returns what the scores mean."""
    from flamboyance.commands import evaluate
    from flamboyance.processes import World
    from flamboyance.small import benchmarks

    settings = _settings(arguments, folder)
    opened = evaluate.open_answers(_parsed(evaluate, ["-", *settings]), World())  # once, for all tasks
    data = benchmarks.write(folder / "benchmarks", arguments.queries, arguments.seed)
    for one in DRAWINGS:
        asked = [str(data / f"{one.task}.jsonl"), *settings]
        if one.support:
            asked += ["--support", str(data / f"{one.support}.jsonl"), "--demonstrations", "rices"]
        evaluate.answer(_parsed(evaluate, [*asked, "--shots", one.shots]), opened)
        if one.controlled:
            controls = ["--shots", one.controlled, "--changes", CONTROLS]
            evaluate.answer(_parsed(evaluate, [*asked, *controls]), opened)
    return _note_of_drawings(arguments.model)


def _note_of_drawings(name: str) -> str:
    tasks = "; ".join(f"{one.task}: {one.about}" for one in DRAWINGS)
    known = (
        "flamingo-small was not trained on drawings by the queries' artist, nor on any picture of the things that the "
        "made-up words mean; the things of naming and which-task it has seen in drawings by others. "
        if catalog.resolve(name).name == SMALL
        else ""
    )
    return (
        f"These are small benchmarks on emoji of 128 × 128 pixels ({tasks}). {known}Chance is 50 % of two words and "
        "20 % of five. Beside the scores are two controls, the demonstrations' images blanked and shuffled, and two "
        "answers without a model: the most frequent one, and that of the demonstrations whose images are the most "
        "similar to the query's, by the vision tower's features. The scores say nothing about photographs."
    )


# ---- flamingo-mini --------------------------------------------------------------------------------------------------


def _mini_world(arguments: argparse.Namespace, folder: Path) -> str:
    """Evaluates flamingo-mini on its world; returns what the scores mean."""
    from flamboyance.commands import evaluate
    from flamboyance.mini import benchmarks

    data = benchmarks.write(folder / "benchmarks", MINI_SUPPORT, arguments.queries, arguments.seed, tuple(MINI_TASKS))
    settings = ["--data", str(data), "--shots", MINI_SHOTS, "--demonstrations", "random,rices"]
    with _one_thread():
        evaluate.answer(_parsed(evaluate, [*MINI_TASKS, *settings, *_settings(arguments, folder)]))
    return _note_of_mini()


@contextmanager
def _one_thread() -> Generator[None]:
    """One thread: the model is so small that more threads cost more than they save."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _note_of_mini() -> str:
    from flamboyance.mini.world.words import COLORS, SHAPES, SIZES

    tasks = "; ".join(f"{task}: {content}" for task, content in MINI_TASKS.items())
    world = (
        f"images of 64 × 64 pixels with up to three objects ({', '.join(SHAPES)}) in {len(COLORS)} colors and "
        f"{len(SIZES)} sizes, or with a handwritten digit"
    )
    return (
        f"These are small benchmarks in the official formats ({tasks}). All images are of the world that flamingo-mini "
        f"was trained on: {world}. The images are held out, the world is not. Other images are outside of it: about a "
        "photograph, another shape or another size the model answers with the same confidence, and the answer means "
        "nothing. It did not learn to bind made-up words from the papers' loss alone: its training had an auxiliary "
        "loss and a gate set by hand."
    )
