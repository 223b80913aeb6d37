"""`rices`: features of a task's images, to find similar demonstrations by, computed ahead of an evaluation."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from flamboyance.commands.arguments import DEVICES, add_tasks, add_tower, at_least
from flamboyance.commands.models import model_name

EPILOG = """\
`flamboyance evaluate --demonstrations rices` computes missing features itself; this command needs no language model.
Each distinct image is encoded once, even if several tasks share it, and the same command resumes a build that was
stopped.
Several GPUs share the work: torchrun --nproc-per-node 8 -m flamboyance.cli rices imagenet --data benchmarks/
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = f"{parser.epilog or ''}{EPILOG}"
    add_tasks(parser, help="as for `evaluate`")
    parser.add_argument(
        "--model",
        metavar="NAME|DIR",
        help="the Flamingo whose vision tower is used (default: that of `evaluate`)",
    )
    add_tower(parser)
    parser.add_argument("--device", choices=DEVICES, default="auto", help="default: auto")
    parser.add_argument("--batch-size", type=at_least(1), default=64, metavar="N", help="images at once (default: 64)")
    parser.add_argument("--threads", type=at_least(1), metavar="N", help="reading threads (default: cores, up to 8)")
    parser.set_defaults(protocol="papers")


def rices(arguments: argparse.Namespace) -> int:
    """Compute the features of the tasks' images, of demonstrations and queries; 1 if no image could be read."""
    from flamboyance.commands.progress import progress
    from flamboyance.commands.tasks import read_tasks
    from flamboyance.evaluation.rices.features import build, default_cache
    from flamboyance.processes import world

    tasks = read_tasks(arguments)
    examples = (one for task in tasks for one in (*task.support, *task.queries))
    images = list(dict.fromkeys(str(image) for one in examples for image in one.images))
    cache = Path(arguments.features) if arguments.features else default_cache()
    with world() as here:
        encoder = open_encoder(arguments, here.local_rank)
        mine = here.share(images)
        with progress(len(mine), "images", here.first) as advance:
            features = build(mine, encoder, cache, arguments.batch_size, arguments.threads, advance)
        warn_broken(features)
        here.wait()
    part = f" (process {here.rank + 1} of {here.size})" if here.size > 1 else ""
    print(f"features of {len(mine) - len(features.broken)} of {len(mine)} images are in {cache / encoder.folder}{part}")
    return int(len(features.broken) == len(mine) > 0)


def open_encoder(arguments: argparse.Namespace, local_rank: int) -> Any:
    """The tower of --tower, or else the model's; no other part of the model is opened."""
    from transformers.utils import logging

    from flamboyance import catalog
    from flamboyance.commands.models import device_of
    from flamboyance.evaluation.rices.features import Encoder
    from flamboyance.model.vision import chosen_settings

    logging.disable_progress_bar()
    device = device_of(arguments.device, local_rank)
    if arguments.tower:
        return Encoder.open(arguments.tower, arguments.tower_pretrained, device=device)
    if arguments.tower_pretrained:
        raise ValueError("--tower-pretrained needs --tower, whose weights it names")
    spec, processor = catalog.resolve(model_name(arguments)).tower()
    settings = chosen_settings(spec)
    return Encoder.open(spec["name"], spec["pretrained"], spec["library"], processor, device, **settings)


def warn_broken(features: Any, most: int = 20) -> None:
    """Names the images without features, on the error stream."""
    broken = list(features.broken.values())
    for message in broken[:most]:
        print(f"flamboyance: warning: {message}", file=sys.stderr)
    if broken:
        rest = f", {len(broken) - most} of which are not listed" if len(broken) > most else ""
        images = "image has" if len(broken) == 1 else "images have"
        print(
            f"flamboyance: warning: {len(broken)} {images} no feature{rest}: never shown as demonstrations",
            file=sys.stderr,
        )
