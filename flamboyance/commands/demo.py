"""`demo`: the embedded model on held-out images, evaluated and reported as any model is."""

import argparse
import importlib.util
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from flamboyance.commands.arguments import add_model, at_least
from flamboyance.commands.models import MINI, model_name

TASKS = {
    "coco": "captions of one or two objects",
    "vqav2": "questions about color, shape and number, or with the answer yes or no",
    "textvqa": "handwritten digits",
    "imagenet": "16 made-up words, each for a kind of object or a digit, which demonstrations alone explain",
}
SHOTS = "0,4,8"
SUPPORT = 48  # images to take demonstrations from: three for each made-up word
REQUIRED = {"sklearn": "scikit-learn", "matplotlib": "matplotlib"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", default="flamboyance-demo", help="folder to write to (default: %(default)s)")
    parser.add_argument("--queries", type=at_least(1), default=32, metavar="N", help="per task (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="another seed draws other images (default: 0)")
    add_model(parser)


def demo(arguments: argparse.Namespace) -> int:
    """Draw small benchmarks, evaluate the model on them, and write the report."""
    from flamboyance.commands import evaluate, report
    from flamboyance.mini import benchmarks

    start = time.monotonic()
    name, folder = model_name(arguments), Path(arguments.output)
    _check(folder)
    data = benchmarks.write(folder / "benchmarks", SUPPORT, arguments.queries, arguments.seed, TASKS)
    settings = ["--data", str(data), "--shots", SHOTS, "--demonstrations", "random,rices", "--seeds", "0"]
    settings += ["--beams", "1", "--features", str(folder / "features"), "--output", str(folder)]
    settings += ["--model", name, "--device", arguments.device, "--dtype", arguments.dtype]
    settings += ["--quantize", arguments.quantize] if arguments.quantize else []
    with _one_thread(name == MINI):
        evaluate.answer(_parsed(evaluate, [*TASKS, *settings]))
    note = _note(name)
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


def _parsed(command: ModuleType, arguments: list[str]) -> argparse.Namespace:
    """What another command's function expects, from that command's own arguments."""
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(arguments)


@contextmanager
def _one_thread(embedded: bool) -> Generator[None]:
    """One thread for the embedded model, which is so small that more threads cost more than they save."""
    import torch

    threads = torch.get_num_threads()
    if embedded:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _note(name: str) -> str:
    """What the scores mean, and what they do not."""
    from flamboyance.mini.world.words import COLORS, SHAPES, SIZES

    tasks = "; ".join(f"{task}: {content}" for task, content in TASKS.items())
    world = (
        f"images of 64 × 64 pixels with up to three objects ({', '.join(SHAPES)}) in {len(COLORS)} colors and "
        f"{len(SIZES)} sizes, or with a handwritten digit"
    )
    if name != MINI:
        return (
            f"These are small benchmarks in the official formats ({tasks}). All images are of the world that "
            f"flamingo-mini was trained on: {world}. Other images are outside of it: the scores say nothing about how "
            f"{name} does on photographs."
        )
    return (
        f"These are small benchmarks in the official formats ({tasks}). All images are of the world that flamingo-mini "
        f"was trained on: {world}. The images are held out, the world is not. Other images are outside of it: about a "
        "photograph, another shape or another size the model answers with the same confidence, and the answer means "
        "nothing. It did not learn to bind made-up words from the papers' loss alone: its training had an auxiliary "
        "loss and a gate set by hand."
    )
