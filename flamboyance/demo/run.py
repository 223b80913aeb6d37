"""The whole demonstration, from an empty folder to the page."""

import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from flamboyance.demo.asking import ask
from flamboyance.demo.examples import write_examples
from flamboyance.demo.page import write_page
from flamboyance.demo.plot import write_plots
from flamboyance.demo.results import Results
from flamboyance.flamingo import FlamingoForConditionalGeneration
from flamboyance.processing import FlamingoProcessor

SHOTS = (0, 2, 4, 8)
TASKS = 4
NEEDED = {"sklearn": "scikit-learn", "matplotlib": "matplotlib"}


def check(folder: Path, queries: int) -> None:
    """Makes the folder, and finds out before any work whether the demonstration can run.

    Raises:
        ValueError: too few queries.
        ImportError: a library of the `demo` extra is missing.
        OSError: the folder cannot be written to.
    """
    if queries < 1:
        raise ValueError(f"--queries is {queries}; expected 1 or more")
    missing = [library for module, library in NEEDED.items() if find_spec(module) is None]
    if missing:
        raise ImportError(f"the demo needs {' and '.join(missing)}: pip install {' '.join(missing)}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OSError(f"cannot write to {folder} ({error.strerror}): give another folder with --output") from error


def run(
    model: FlamingoForConditionalGeneration,
    processor: FlamingoProcessor,
    folder: Path,
    *,
    name: str = "flamingo-mini",
    queries: int = 64,
    seed: int = 0,
    advance: Callable[[int], None] = lambda _: None,
) -> Results:
    """Draws pictures, asks the model, and writes images, `results.json`, the plots and `index.html` into the folder.

    Args:
        queries: of each task; each is asked after every number of shots.
        seed: other pictures for another seed; all are held out.
        advance: told how many queries were just answered, of `TASKS * len(SHOTS) * queries`.
    """
    began = time.monotonic()
    tasks = write_examples(folder, queries, max(SHOTS), seed)
    answered = [ask(model, processor, task, folder, SHOTS, advance) for task in tasks]
    results = Results(
        model=name,
        parameters=sum(p.numel() for p in model.parameters()),
        trained=sum(p.numel() for p in model.trained_parameters().values()),
        shots=SHOTS,
        seed=seed,
        tasks=answered,
        seconds=time.monotonic() - began,
    )
    results.save(folder)
    write_plots(results, folder)
    write_page(results, folder)
    return results
