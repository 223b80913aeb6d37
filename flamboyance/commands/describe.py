"""`caption`, `ask` and `classify`: one few-shot task over many images, row by row."""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flamboyance.commands.arguments import add_model, at_least
from flamboyance.commands.inputs import Demonstration, find_images, read_demonstrations
from flamboyance.commands.models import load
from flamboyance.commands.output import Row, RowFile
from flamboyance.commands.progress import progress

EPILOG = """\
demonstrations:
  a folder     images, each with its text beside it: cat.jpg, cat.txt
  a CSV file   columns image,text or image,question,answer; image paths relative to the file
  a JSONL file one object a line, with the same keys

output:
  Without --output each line is the image's path, a tab, and what was said of it. With it, rows are appended
  to the file one by one, and a later run goes on where this one ended. An image that cannot be read becomes a
  row with `error`, and the run goes on; the exit status is 1 only if none could be read.
"""

Answer = Callable[[list[Any]], list[Row]]
"""What a task says of a batch of loaded images: the columns of each row besides `image`."""


@dataclass(frozen=True)
class Job:
    """One run: the constant part of its rows, the columns of an answer, and how a row reads on a terminal."""

    arguments: argparse.Namespace
    constant: Row
    columns: list[str]
    line: Callable[[Row], str]

    @property
    def all_columns(self) -> list[str]:
        return ["image", *self.constant, *self.columns, "error"]


def add_images(parser: argparse.ArgumentParser) -> None:
    """The arguments that the three commands share."""
    parser.epilog = f"{parser.epilog or ''}{EPILOG}"
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files, or folders of them at any depth")
    group = parser.add_argument_group("demonstrations")
    group.add_argument("--demonstrations", metavar="FOLDER|CSV|JSONL", help="images with their texts; see below")
    group.add_argument("--shots", type=at_least(0), metavar="N", help="use the first N demonstrations (default: all)")
    add_model(parser)
    parser.add_argument("--output", metavar="FILE", help=".jsonl or .csv file to append rows to")
    parser.add_argument("--batch-size", type=at_least(1), default=8, metavar="N", help="images at a time (default: 8)")


def run(job: Job, make_answer: Callable[[], Answer]) -> int:
    """Answer for every image that the output does not hold yet. Returns the exit status."""
    arguments = job.arguments
    images = find_images(arguments.images)
    keys = ["image", *job.constant]
    output = RowFile(arguments.output, job.all_columns, keys) if arguments.output else None
    with output or nullcontext():
        todo = [path for path in images if output is None or {"image": str(path), **job.constant} not in output]
        if not todo:
            print(f"all {len(images)} images are in {arguments.output} already", file=sys.stderr)
            return 0
        answer = make_answer()
        failed = 0
        with progress(len(todo), "images") as advance:
            for row in _rows(todo, answer, job.constant, arguments.batch_size):
                failed += "error" in row
                if output is not None:
                    output.append(row)
                elif "error" in row:
                    print(f"{row['image']}: {row['error']}", file=sys.stderr)
                else:
                    print(f"{row['image']}\t{job.line(row)}", flush=True)
                advance(1)
    _summarize(done=len(todo) - failed, before=len(images) - len(todo), failed=failed)
    return 1 if failed == len(todo) else 0


def _rows(paths: Sequence[Path], answer: Answer, constant: Row, batch_size: int) -> Iterator[Row]:
    """A row for each path, in order: an answer, or what is wrong with the file."""
    from flamboyance.images import load_image

    for start in range(0, len(paths), batch_size):
        rows: list[Row] = []
        readable, images = [], []
        for path in paths[start : start + batch_size]:
            row = {"image": str(path), **constant}
            rows.append(row)
            try:
                images.append(load_image(path))
                readable.append(row)
            except (ValueError, OSError) as error:
                row["error"] = one_line(str(error))
        for row, said in zip(readable, _answers(answer, images) if images else [], strict=True):
            row.update(said)
        yield from rows


def _answers(answer: Answer, images: list[Any]) -> Iterator[Row]:
    """What is said of each image of a batch. A picture that preprocessing refuses costs its own row only."""
    from flamboyance.images import ImageError

    try:
        yield from answer(images)
    except ImageError as error:
        if len(images) == 1:
            yield {"error": one_line(str(error))}
        else:
            for image in images:
                yield from _answers(answer, [image])


def one_line(text: str) -> str:
    return " ".join(text.split())


def _summarize(done: int, before: int, failed: int) -> None:
    parts = [f"{done} images done"]
    if before:
        parts.append(f"{before} were done before")
    if failed:
        parts.append(f"{failed} could not be read")
    print(", ".join(parts), file=sys.stderr)


def demonstrations_of(arguments: argparse.Namespace) -> list[Demonstration]:
    shots = arguments.shots
    if arguments.demonstrations is None:
        if shots:
            raise ValueError(f"--shots {shots} needs --demonstrations to take them from")
        return []
    return read_demonstrations(arguments.demonstrations, shots)


def as_caption(demonstration: Demonstration) -> tuple[Path, str]:
    if len(demonstration) == 3:
        raise ValueError(
            f"the demonstration {demonstration[0]} is a question with its answer; expected the columns "
            "image,text (`flamboyance ask` takes questions)"
        )
    return demonstration


def open_task(arguments: argparse.Namespace, demonstrations: Sequence[Demonstration], template: str) -> Any:
    from flamboyance import templates
    from flamboyance.few_shot import FewShotTask

    model, processor = load(arguments.model, arguments.device, arguments.dtype)
    return FewShotTask(model, processor, demonstrations=list(demonstrations), template=getattr(templates, template))


def generation_of(arguments: argparse.Namespace) -> dict[str, int]:
    return {"max_new_tokens": arguments.max_new_tokens, "num_beams": arguments.beams}
