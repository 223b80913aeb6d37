"""`evaluate`: run few-shot benchmarks by the papers' protocol."""

from __future__ import annotations

import argparse
import datetime
import hashlib
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flamboyance.commands.arguments import DEVICES, DTYPES, add_tasks, add_tower, at_least, numbers
from flamboyance.commands.models import model_name, note_default
from flamboyance.commands.tasks import read_tasks

if TYPE_CHECKING:
    from flamboyance.evaluation.run import Settings
    from flamboyance.evaluation.task import Task

NAMES = "coco flickr30k vqav2 ok_vqa textvqa vizwiz hateful_memes imagenet"
EPILOG = f"""\
tasks:
  {NAMES}, or all of them: `all`
  a CSV or JSONL file, or a folder:
    image,label             one of the labels that occur; accuracy
    image,text              captions; CIDEr
    image,question,answer   answers; exact match, or VQA accuracy where there are ten
  Demonstrations of your own data come from --support, or from the file itself, never a query's own image.

examples:
  flamboyance evaluate birds.csv --shots 0,4,8
  flamboyance evaluate coco vqav2 --data benchmarks/ --model openflamingo/OpenFlamingo-3B-vitl-mpt1b --queries 1000
  flamboyance evaluate all --data benchmarks/ --demonstrations random,rices --output runs/9b --model …
  torchrun --nproc-per-node 8 -m flamboyance.cli evaluate all --data benchmarks/ --output runs/9b --model …

The same command resumes a run that was stopped, on any number of processes.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    add_tasks(parser, help="see below")
    parser.add_argument("--output", default="flamboyance-evaluation", metavar="DIR", help="default: %(default)s")
    parser.add_argument("--json", action="store_true", help="scores as JSON on standard output, and all else on stderr")
    group = parser.add_argument_group("protocol")
    group.add_argument("--queries", type=at_least(1), metavar="N", help="a random part of each task (default: all)")
    group.add_argument(
        "--shots", type=numbers(0), default=(0, 4, 8, 16, 32), metavar="N,…", help="default: 0,4,8,16,32"
    )
    group.add_argument(
        "--demonstrations", type=_words, default=("random",), metavar="WAY,…",
        help="random, rices (the most similar ones), fixed (the same for all), balanced (by label); default: random",
    )  # fmt: skip
    group.add_argument("--seeds", type=numbers(0), default=(0, 1, 2), metavar="N,…", help="default: 0,1,2")
    group.add_argument(
        "--protocol", choices=("papers", "openflamingo"), default="papers",
        help="openflamingo: as its published tables were made, errors included (default: papers)",
    )  # fmt: skip
    group.add_argument("--beams", type=at_least(1), default=3, metavar="N", help="default: 3")
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model", metavar="NAME|DIR",
        help="a Flamingo, as in other commands, or any image-text-to-text model of transformers (default: mini)",
    )  # fmt: skip
    group.add_argument("--device", choices=DEVICES, default="auto", help="default: auto")
    group.add_argument("--dtype", choices=DTYPES, default="auto")
    group.add_argument("--batch-size", type=at_least(1), default=8, metavar="N", help="prompts per batch (default: 8)")
    group.add_argument(
        "--media-gb", type=float, default=2.0, metavar="X", help="memory for encoded images (default: %(default)s)"
    )
    group.add_argument("--media-folder", metavar="DIR", help="keep encoded images there between runs")
    add_tower(parser)


def _words(given: str) -> tuple[str, ...]:
    ways = tuple(dict.fromkeys(given.split(",")))
    for way in ways:
        if way not in ("random", "rices", "fixed", "balanced"):
            raise argparse.ArgumentTypeError(f"{way!r}: expected some of random, rices, fixed, balanced")
    return ways


def evaluate(arguments: argparse.Namespace) -> int:
    """Evaluate a model."""
    settings, tasks, first = answer(arguments)
    if first:
        show(settings, tasks, arguments.json)
    return 0


def answer(arguments: argparse.Namespace) -> tuple[Settings, list[Task], bool]:
    """Ask the model every query that the results directory has no answer to.

    Returns:
        The settings, the tasks, and whether this is the first process.
    """
    from flamboyance.commands.progress import progress
    from flamboyance.evaluation.run import Settings, evaluate
    from flamboyance.processes import world

    # Files are checked before a model is loaded.
    tasks = read_tasks(arguments)
    settings = Settings(
        Path(arguments.output), arguments.shots, arguments.demonstrations, arguments.seeds, arguments.queries,
        arguments.batch_size, arguments.protocol,
    )  # fmt: skip
    settings.check(tasks)
    by_default = arguments.model is None
    arguments.model = model_name(arguments)
    with world() as here:
        features = build_features(arguments, tasks, settings, here)
        answers = open_answers(arguments, here)
        if by_default and here.first:
            note_default()
        about = describe(arguments, tasks, answers)
        whole = sum(
            len(here.share(range(settings.query_count(task)))) for task in tasks for _ in settings.cells(task.name)
        )
        with progress(whole, "queries", here.first) as advance:
            evaluate(
                tasks, answers, settings, about, features, here,
                say=lambda line: print(line, flush=True, file=sys.stderr if arguments.json else sys.stdout),
                advance=advance,
            )  # fmt: skip
        return settings, tasks, here.first


def show(settings: Settings, tasks: Sequence[Task], as_json: bool) -> None:
    """Prints the scores of the given tasks with their intervals: a table, or JSON."""
    import json
    import shlex

    from flamboyance.commands.report import console_of, print_table
    from flamboyance.reports import report, tables
    from flamboyance.reports.evaluation_run import read_run

    # Of every seed that the directory holds, so that the table is the same whichever command asked last.
    asked = {(cell.task, cell.shots, cell.mode) for task in tasks for cell in settings.cells(task.name)}
    run = read_run(settings.output)
    whole = report.of_cells(run, {c.cell for c in run.cells if (c.cell.task, c.cell.shots, c.cell.mode) in asked})
    if as_json:
        print(json.dumps(tables.as_json(whole), indent=1, allow_nan=False))
    else:
        print_table(console_of(sys.stdout), tables.scores(whole))
    folder = shlex.quote(str(settings.output))
    print(
        f"results are in {settings.output}; for figures and a page of predictions: flamboyance report {folder}",
        file=sys.stderr if as_json else sys.stdout,
    )


def open_answers(arguments: argparse.Namespace, here: Any) -> Any:
    """The model that answers: a Flamingo, or one of transformers."""
    from flamboyance import catalog
    from flamboyance.commands import models
    from flamboyance.evaluation.answers.flamingo import FlamingoAnswers

    if catalog.resolve(arguments.model).is_flamingo():
        model, processor = models.load(arguments.model, arguments.device, arguments.dtype, here.local_rank)
        return FlamingoAnswers(
            model, processor, arguments.beams, arguments.protocol == "openflamingo", arguments.media_gb * 1e9,
            arguments.media_folder and Path(arguments.media_folder),
        )  # fmt: skip
    from flamboyance.evaluation.answers.transformers_vlm import TransformersAnswers

    place = models.device_of(arguments.device, here.local_rank)
    return TransformersAnswers.open(arguments.model, place, models.dtype_of(arguments.dtype, place), arguments.beams)


def build_features(arguments: argparse.Namespace, tasks: Sequence[Any], settings: Any, here: Any) -> dict[str, Any]:
    """Features of each task's images, for RICES cells that are not done. Features that are not in the cache are
    computed, shared among all processes.

    Raises:
        ValueError: a query's image has no feature, or too few demonstrations have one.
    """
    from flamboyance import catalog
    from flamboyance.commands.progress import progress
    from flamboyance.commands.rices import open_encoder, warn_broken
    from flamboyance.evaluation.rices.features import build, default_cache

    images = {task.name: found for task in tasks if (found := settings.images(task))}
    if not images:
        return {}
    if not arguments.tower and not catalog.resolve(arguments.model).is_flamingo():
        raise ValueError("RICES needs a vision tower: give --tower, for example openai/clip-vit-large-patch14")
    encoder = open_encoder(arguments, here.local_rank)
    cache = Path(arguments.features) if arguments.features else default_cache()
    whole = list(dict.fromkeys(image for some in images.values() for image in some))
    mine = here.share(whole)
    with progress(len(mine), "images", here.first) as advance:
        build(mine, encoder, cache, advance=advance)
    here.wait()
    found = {name: build(some, encoder, cache) for name, some in images.items()}
    if here.first:
        for features in found.values():
            warn_broken(features)
    for task in tasks:
        if task.name in found:
            settings.check_features(task, found[task.name])
    return found


def describe(arguments: argparse.Namespace, tasks: Sequence[Any], answers: Any) -> dict[str, Any]:
    """The content of run.json."""
    from flamboyance.evaluation import data_folders

    packages = ("flamboyance", "torch", "transformers", "scikit-learn", "pillow", "numpy")
    return {
        "command": ["flamboyance", *sys.argv[1:]],
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "model": {"name": arguments.model, **answers.describe()},
        "protocol": arguments.protocol,
        "data": data_folders.sealed(data_folders.of_tasks(tasks)),
        "fixed": {"beams": arguments.beams, "queries": arguments.queries, "tower": arguments.tower,
                  "tower_pretrained": arguments.tower_pretrained},
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in packages}},
        "machine": {"processor": platform.processor() or platform.machine(), "device": str(answers.model.device)},
        "settings": {
            "shots": list(arguments.shots), "demonstrations": list(arguments.demonstrations),
            "seeds": list(arguments.seeds), "batch_size": arguments.batch_size,
        },
        "tasks": {
            task.name: {
                "title": task.title, "metric": task.metric.name, "support": len(task.support),
                "queries": len(task.queries), "labels": task.labels and list(task.labels), "content": content(task),
                **({"variant": task.metric.variant} if task.metric.variant else {}),
            }
            for task in tasks
        },
    }  # fmt: skip


def content(task: Any) -> str:
    """A digest of a task's examples, which does not depend on their folder."""
    digest = hashlib.sha256()
    for part in (task.support, task.queries):
        for one in part:
            digest.update(
                repr((one.id, one.image.name, one.answer, one.asked, one.references)).encode("utf-8", "replace")
            )
    return digest.hexdigest()[:16]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
