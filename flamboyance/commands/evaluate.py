"""`evaluate`: run few-shot benchmarks by the papers' protocol."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flamboyance.commands.arguments import (
    DEVICES,
    DTYPES,
    add_quantize,
    add_tasks,
    add_tower,
    add_video,
    at_least,
    numbers,
)
from flamboyance.commands.models import model_name, note_default
from flamboyance.commands.tasks import read_tasks

if TYPE_CHECKING:
    from flamboyance.evaluation.run import Settings
    from flamboyance.evaluation.task import Task
    from flamboyance.processes import World

BEAMS, CONCURRENCY, TIMEOUT = 3, 8, 300
NO_VIDEOS = "videos are for Flamingos,"
NO_TOWER = "RICES needs a vision tower: give --tower, for example openai/clip-vit-large-patch14"
NO_NEIGHBOURS = "needs a vision tower: --tower, for example openai/clip-vit-large-patch14"
VL_ICL = "open_mi clevr operator_induction operator_induction_interleaved textocr matching_mi"
NAMES = "coco flickr30k vqav2 ok_vqa textvqa vizwiz hateful_memes imagenet"
EPILOG = f"""\
tasks:
  {NAMES}, or all of them: `all`
  {VL_ICL}, or `vl_icl`: VL-ICL Bench
  a CSV or JSONL file, or a folder:
    image,label             one of the labels that occur; accuracy
    image,text              captions; CIDEr
    image,question,answer   answers; exact match, or VQA accuracy where there are ten
    image,answer            the same without a question
  hf:NAME[SPLIT], a dataset of Hugging Face or a folder of one, with --columns where its columns have other names
  Demonstrations of your own data come from --support, or from the file itself, never a query's own image.

examples:
  flamboyance evaluate birds.csv --shots 0,4,8
  flamboyance evaluate coco vqav2 --data benchmarks/ --model openflamingo/OpenFlamingo-3B-vitl-mpt1b --queries 1000
  flamboyance evaluate all --data benchmarks/ --demonstrations random,rices --output runs/9b --model …
  flamboyance evaluate birds.csv --model http://localhost:8000/v1 --shots 0,4 --output runs/served
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
    group.add_argument("--beams", type=at_least(1), metavar="N", help="default: 3; a served model has none")
    group.add_argument(
        "--ablate", action="store_true",
        help="also ask with changed demonstrations, up to seven times: images removed, blanked, shuffled, swapped for "
        "others; answers shuffled, random; questions removed. The report says what of them the model uses",
    )  # fmt: skip
    group.add_argument(
        "--changes", type=_changes, metavar="CHANGE,…",
        help="as --ablate, with some of the changes: no_images, blank_images, shuffled_images, other_images, "
        "shuffled_answers, random_answers, no_questions",
    )  # fmt: skip
    group.add_argument(
        "--orders", type=at_least(0), default=0, metavar="N",
        help="also ask with the same demonstrations in N other orders; the report says how much that changes",
    )  # fmt: skip
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model", metavar="NAME|DIR|URL",
        help="a Flamingo, as in other commands, or any image-text-to-text model of transformers (default: small); or "
        "the address of a server with OpenAI's API, such as http://localhost:8000/v1",
    )  # fmt: skip
    group.add_argument("--device", choices=DEVICES, default="auto", help="default: auto")
    group.add_argument("--dtype", choices=DTYPES, default="auto")
    add_quantize(group)
    add_video(group)
    group.add_argument("--batch-size", type=at_least(1), default=8, metavar="N", help="prompts per batch (default: 8)")
    group.add_argument(
        "--media-gb", type=float, default=2.0, metavar="X", help="memory for encoded images (default: %(default)s)"
    )
    group.add_argument("--media-folder", metavar="DIR", help="keep encoded images there between runs")
    group = parser.add_argument_group("served models (--model URL)")
    group.add_argument("--name", metavar="NAME", help="the model's name there (default: the only one)")
    group.add_argument(
        "--key-variable", metavar="NAME", help="the environment's variable that holds the key (default: OPENAI_API_KEY)"
    )
    group.add_argument("--concurrency", type=at_least(1), metavar="N", help="requests at a time (default: 8)")
    group.add_argument("--timeout", type=at_least(1), metavar="SECONDS", help="of one attempt (default: 300)")
    group.add_argument(
        "--max-requests", type=at_least(1), metavar="N", help="stop after so many; the same command resumes"
    )
    group.add_argument(
        "--max-tokens", type=at_least(1), metavar="N", help="stop after so many tokens of prompts and answers"
    )
    group.add_argument(
        "--labels-by", choices=("logprobs", "schema", "text"),
        help="how a label is chosen (default: the first of these that the server offers)",
    )  # fmt: skip
    add_tower(parser)


def _words(given: str) -> tuple[str, ...]:
    ways = tuple(dict.fromkeys(given.split(",")))
    for way in ways:
        if way not in ("random", "rices", "fixed", "balanced"):
            raise argparse.ArgumentTypeError(f"{way!r}: expected some of random, rices, fixed, balanced")
    return ways


def _changes(given: str) -> tuple[str, ...]:
    from flamboyance.evaluation.changes import TITLES

    changes = tuple(dict.fromkeys(given.split(",")))
    for change in changes:
        if change not in TITLES:
            raise argparse.ArgumentTypeError(f"{change!r}: expected some of {', '.join(TITLES)}")
    return changes


def evaluate(arguments: argparse.Namespace) -> int:
    """Evaluate a model; 1 if the budget was spent before all queries were answered."""
    from flamboyance.evaluation.answers.budget import BudgetSpentError
    from flamboyance.reports.evaluation_run import read_run

    try:
        settings, tasks, first = answer(arguments)
    except BudgetSpentError as spent:
        run = read_run(Path(arguments.output))
        done = sum(one.count() for one in (*run.cells, *run.changed, *run.unfinished))
        print(
            f"flamboyance: {spent}. {done:,} answers are in {arguments.output}; the same command resumes",
            file=sys.stderr,
        )
        return 1
    if first:
        show(settings, tasks, arguments.json)
    return 0


def answer(arguments: argparse.Namespace, opened: Any = None) -> tuple[Settings, list[Task], bool]:
    """Ask the model every query that the results directory has no answer to.

    Args:
        opened: the model of `arguments`, as `open_answers` gives it; None: it is opened.

    Returns:
        The settings, the tasks, and whether this is the first process.
    """
    from flamboyance.commands import models
    from flamboyance.commands.progress import progress
    from flamboyance.evaluation.about import describe
    from flamboyance.evaluation.run import Settings, evaluate, has_features
    from flamboyance.processes import world

    # Files are checked before a model is loaded.
    tasks = read_tasks(arguments)
    endpoint = check_endpoint(arguments)
    settings = Settings(
        Path(arguments.output), arguments.shots, arguments.demonstrations, arguments.seeds, arguments.queries,
        # A server batches by itself: while some requests are waited for, others are under way.
        2 * (arguments.concurrency or CONCURRENCY) if endpoint else arguments.batch_size, arguments.protocol,
        arguments.ablate or arguments.changes is not None, arguments.orders,
        **({} if arguments.changes is None else {"changes": arguments.changes}),
    )  # fmt: skip
    settings.check(tasks)
    by_default = arguments.model is None
    arguments.model = model_name(arguments)
    with world() as here:
        features, tower = build_features(arguments, tasks, settings, here)
        with opened_answers(arguments, here) if opened is None else nullcontext(opened) as answers:
            if by_default and here.first:
                note_default()
            fixed = {
                "beams": None if endpoint else arguments.beams or BEAMS, "tower": arguments.tower,
                "tower_pretrained": arguments.tower_pretrained, **models.sampling_settings(arguments),
                **({"features": tower} if tower else {}),
            }  # fmt: skip
            name = answers.name if endpoint else arguments.model
            about = describe(tasks, answers, settings, name, ["flamboyance", *sys.argv[1:]], fixed)
            whole = sum(
                len(here.share(range(settings.query_count(task))))
                for task in tasks
                for _ in settings.all_cells(task, has_features(task, features, settings))
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


ENDPOINT = ("name", "key_variable", "concurrency", "timeout", "max_requests", "max_tokens", "labels_by")


def check_endpoint(arguments: argparse.Namespace) -> bool:
    """Whether a served model is asked.

    Raises:
        ValueError: options do not go together.
    """
    from flamboyance.evaluation.answers.http_client import checked_url, is_address

    if arguments.model is None or not is_address(arguments.model):
        given = [name for name in ENDPOINT if getattr(arguments, name) is not None]
        if given:
            raise ValueError(f"--{given[0].replace('_', '-')} is for a served model: give its address as --model URL")
        return False
    checked_url(arguments.model)
    if arguments.beams is not None:
        raise ValueError("--beams is for a model that is computed here; a server decides itself: remove it")
    if arguments.quantize:
        raise ValueError("--quantize is for a model that is computed here; a server decides itself: remove it")
    if arguments.frames or arguments.frames_per_second:
        raise ValueError(f"{NO_VIDEOS} and a server is given images: remove --frames and --frames-per-second")
    if "rices" in arguments.demonstrations and not arguments.tower:
        raise ValueError(NO_TOWER)
    return True


@contextmanager
def opened_answers(arguments: argparse.Namespace, here: World) -> Generator[Any]:
    """The model that answers: a Flamingo, one of transformers, or a served one."""
    from flamboyance.evaluation.answers.http_client import is_address

    if not is_address(arguments.model):
        yield open_answers(arguments, here)
        return
    from flamboyance.evaluation.answers.budget import Budget
    from flamboyance.evaluation.answers.endpoint import EndpointAnswers
    from flamboyance.evaluation.answers.reply_cache import FOLDER

    if here.size > 1:
        raise ValueError("a served model is asked by one process: start one, with --concurrency requests at a time")
    answers = EndpointAnswers.open(
        arguments.model, arguments.name, arguments.key_variable, Budget(arguments.max_requests, arguments.max_tokens),
        arguments.timeout or TIMEOUT, replies=Path(arguments.output) / FOLDER,
        concurrency=arguments.concurrency or CONCURRENCY, labels_by=arguments.labels_by,
    )  # fmt: skip
    try:
        yield answers
    finally:
        answers.close()
        budget = answers.client.budget
        print(
            f"flamboyance: {budget.sent:,} requests, {budget.used:,} tokens; {answers.known:,} answers were known",
            file=sys.stderr,
        )


def open_answers(arguments: argparse.Namespace, here: Any) -> Any:
    """The model that answers: a Flamingo, or one of transformers."""
    from flamboyance import catalog
    from flamboyance.commands import models
    from flamboyance.evaluation.answers.flamingo import FlamingoAnswers

    if catalog.resolve(arguments.model).is_flamingo():
        model, processor = models.load(
            arguments.model, arguments.device, arguments.dtype, here.local_rank, arguments.quantize
        )
        models.set_sampling(processor, arguments, arguments.model)
        return FlamingoAnswers(
            model, processor, arguments.beams or BEAMS, arguments.protocol == "openflamingo", arguments.media_gb * 1e9,
            arguments.media_folder and Path(arguments.media_folder),
        )  # fmt: skip
    from flamboyance.evaluation.answers.transformers_vlm import TransformersAnswers

    if arguments.quantize:
        raise ValueError(
            f"--quantize {arguments.quantize} is for Flamingos, and {arguments.model} is none; leave it out"
        )
    if arguments.frames or arguments.frames_per_second:
        raise ValueError(f"{NO_VIDEOS} and {arguments.model} is none: remove --frames and --frames-per-second")
    place = models.device_of(arguments.device, here.local_rank)
    return TransformersAnswers.open(
        arguments.model, place, models.dtype_of(arguments.dtype, place), arguments.beams or BEAMS
    )


def build_features(
    arguments: argparse.Namespace, tasks: Sequence[Any], settings: Any, here: Any
) -> tuple[dict[str, Any], str | None]:
    """Features of each task's images, for RICES cells that are not done. Features that are not in the cache are
    computed, shared among all processes.

    Returns:
        The features by the task's name, and the name of what computes them; None if none are needed.

    Raises:
        ValueError: a query's image has no feature, or too few demonstrations have one.
    """
    from flamboyance import catalog
    from flamboyance.commands.progress import progress
    from flamboyance.commands.rices import open_encoder, warn_broken
    from flamboyance.evaluation.answers.http_client import is_address
    from flamboyance.evaluation.rices.features import build, default_cache

    images = {task.name: found for task in tasks if (found := settings.images(task))}
    if not images:
        return {}, None
    if not arguments.tower and (is_address(arguments.model) or not catalog.resolve(arguments.model).is_flamingo()):
        if "rices" in settings.modes:
            raise ValueError(NO_TOWER)
        if here.first:
            print(f"flamboyance: note: without the nearest neighbours' vote, which {NO_NEIGHBOURS}", file=sys.stderr)
        return {}, None
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
    return found, encoder.folder
