"""`rices`: features of a task's images, by which the most similar ones are found, built ahead of an evaluation."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from flamboyance.commands.arguments import DEVICES

EPILOG = """\
`flamboyance evaluate --demonstrations rices` builds what is missing by itself; this does it where there is a GPU and no
language model yet. Each distinct image is encoded once, also where several tasks share it, and a build that was stopped
is resumed.
Several GPUs share the work: torchrun --nproc-per-node 8 -m flamboyance.cli rices imagenet --data benchmarks/
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = f"{parser.epilog or ''}{EPILOG}"
    parser.add_argument("tasks", nargs="+", metavar="TASK", help="as for `evaluate`")
    group = parser.add_argument_group("data")
    group.add_argument("--data", metavar="DIR", help="folder of the benchmarks' official files, as DIR/coco/…")
    group.add_argument(
        "--file", action="append", default=[], metavar="TASK.NAME=PATH", help="a file or folder that lies elsewhere"
    )
    group.add_argument("--support", metavar="FILE", help="demonstrations for a file of your own")
    group.add_argument("--outside", action="store_true", help="a file's images may stand outside of its folder")
    group = parser.add_argument_group("tower")
    group.add_argument(
        "--model", default="mini", metavar="NAME|DIR", help="the Flamingo whose tower it is (default: mini)"
    )
    group.add_argument(
        "--tower", metavar="NAME|DIR", help="another tower, e.g. ViT-L-14, with --tower-pretrained openai"
    )
    group.add_argument("--tower-pretrained", metavar="TAG", help="its weights, for OpenCLIP's names")
    group.add_argument("--device", choices=DEVICES, default="auto", help="default: auto")
    group.add_argument("--batch-size", type=_count, default=64, metavar="N", help="images at a time (default: 64)")
    group.add_argument("--threads", type=_count, metavar="N", help="that read images (default: cores, up to 8)")
    parser.add_argument("--features", metavar="DIR", help="where features are kept (default: the user's cache folder)")
    parser.set_defaults(protocol="papers")


def _count(given: str) -> int:
    if not given.isdecimal() or not int(given):
        raise argparse.ArgumentTypeError(f"{given!r} is not a whole number from 1 up")
    return int(given)


def rices(arguments: argparse.Namespace) -> int:
    """Build the features of the images of tasks, demonstrations and queries; 1 if none could be read."""
    from flamboyance.commands.progress import progress
    from flamboyance.commands.tasks import read_tasks
    from flamboyance.evaluation.rices.features import build, default_cache
    from flamboyance.processes import world

    tasks = read_tasks(arguments)
    images = list(dict.fromkeys(str(one.image) for task in tasks for one in (*task.support, *task.queries)))
    cache = Path(arguments.features) if arguments.features else default_cache()
    with world() as here:
        encoder = open_encoder(arguments, here.local_rank)
        mine = here.share(images)
        with progress(len(mine) if here.first else None, "images") as advance:
            moved = advance if here.first else lambda _: None
            found = build(mine, encoder, cache, arguments.batch_size, arguments.threads, moved)
        tell_broken(found)
        here.wait()
    part = f" (process {here.rank + 1} of {here.size})" if here.size > 1 else ""
    print(f"features of {len(mine) - len(found.broken)} of {len(mine)} images are in {cache / encoder.folder}{part}")
    return int(len(found.broken) == len(mine) > 0)


def open_encoder(arguments: argparse.Namespace, local: int = 0) -> Any:
    """The tower that was asked for, or else the model's; nothing else of the model is opened."""
    import torch
    from transformers.utils import logging

    from flamboyance import catalog
    from flamboyance.commands.models import device_of
    from flamboyance.evaluation.rices.features import Encoder

    logging.disable_progress_bar()
    device = device_of(arguments.device)
    device = torch.device("cuda", local) if device.type == "cuda" else device
    if arguments.tower:
        return Encoder.open(arguments.tower, arguments.tower_pretrained, device=device)
    if arguments.tower_pretrained:
        raise ValueError("--tower-pretrained is the weights of a --tower; name that too")
    spec, processor = catalog.resolve(arguments.model).tower()
    return Encoder.open(spec["name"], spec["pretrained"], spec["library"], processor, device)


def tell_broken(features: Any, most: int = 20) -> None:
    """Names the images that have no features, on the error stream."""
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
