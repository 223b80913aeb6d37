"""`caption`, `ask` and `classify`: one few-shot task over many images, row by row."""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from flamboyance.checks import brief, printable
from flamboyance.commands.arguments import add_model, add_video, at_least
from flamboyance.commands.inputs import Demonstration, find_images, read_demonstrations, task_of
from flamboyance.commands.models import (
    device_of,
    dtype_of,
    load,
    model_name,
    note_default,
    note_unknown_words,
    sampling_settings,
    set_sampling,
)
from flamboyance.commands.output import Row, RowFile, refuse_inputs
from flamboyance.commands.output_identity import Settings, demonstration_settings, model_settings
from flamboyance.commands.progress import progress
from flamboyance.files import json_line

EPILOG = """\
demonstrations:
  a folder     images, each with its text beside it: cat.jpg, cat.txt
  a CSV file   columns image,text or image,label or image,question,answer; image paths relative to the file;
               also with tabs (.tsv) or semicolons
  a JSONL file one object a line, with the same keys
  a task file  .json, as the web page and FewShotTask.save write it; its template is used

output:
  Without --output each line is the image's path, a tab, and the answer; with --json it is a JSON object.
  With --output, rows are appended to the file one by one, and the same command resumes where the file ends.
  FILE.settings.json holds the model, demonstrations and options of the rows. An image that cannot be read becomes a
  row with `error`, and the next run tries it again.

exit status:
  0 done; 1 no image could be read; 2 a mistake in the arguments or files; 130 interrupted; 143 ended by SIGTERM
"""


@dataclass(frozen=True)
class Job:
    """One run of a command.

    Attributes:
        template: the name of the prompt's template in flamboyance.templates; that of a task file is used instead.
        demonstrations: as given; `shot` converts one to (image, fields of the template…).
        answer: (few-shot task, images) -> the columns of each image's row.
        columns: the columns of an answer.
        cells: the parts of a row that text output shows after the image's path.
        constant: the columns that are the same in all rows.
        words: texts whose words the tokenizer should know, by their source.
        settings: further settings that rows depend on, besides the model and the demonstrations.
    """

    arguments: argparse.Namespace
    template: str
    demonstrations: Sequence[Demonstration]
    shot: Callable[[Demonstration], tuple[Any, ...]]
    answer: Callable[[Any, list[Any]], list[Row]]
    columns: list[str]
    cells: Callable[[Row], list[str]]
    constant: Row = field(default_factory=dict)
    words: dict[str, list[str]] = field(default_factory=dict)
    settings: Row = field(default_factory=dict)


def add_images(parser: argparse.ArgumentParser) -> None:
    """The arguments that the three commands share."""
    parser.epilog = f"{parser.epilog or ''}{EPILOG}"
    parser.add_argument(
        "images", nargs="+", metavar="IMAGE", help="image or video files, or folders of them at any depth"
    )
    group = parser.add_argument_group("demonstrations")
    group.add_argument("--demonstrations", metavar="FOLDER|FILE", help="images with their texts; see below")
    group.add_argument("--shots", type=at_least(0), metavar="N", help="the first N demonstrations (default: all)")
    group.add_argument("--outside", action="store_true", help="paths and links may lead out of the given folders")
    add_model(parser)
    add_video(parser.add_argument_group("videos"))
    parser.add_argument("--batch-size", type=at_least(1), default=8, metavar="N", help="images per batch (default: 8)")
    group = parser.add_argument_group("output")
    group.add_argument("--output", metavar="FILE", help=".jsonl or .csv file to append rows to")
    group.add_argument("--overwrite", action="store_true", help="start --output anew, whatever it holds")
    group.add_argument("--json", action="store_true", help="rows as JSON on standard output; with --output, a summary")


def run(job: Job) -> int:
    """Answer for every image that is not yet in the output. Returns the exit status."""
    arguments = job.arguments
    if arguments.overwrite and not arguments.output:
        raise ValueError("--overwrite needs --output, the file to start anew")
    shots = [job.shot(one) for one in job.demonstrations]
    images = find_images(arguments.images, arguments.outside)
    if arguments.output:
        refuse_inputs(
            arguments.output, filter(None, (arguments.demonstrations, getattr(arguments, "labels", None), *images))
        )
    with _output(job) if arguments.output else nullcontext() as output:
        keys = [{"image": str(path), **job.constant} for path in images]
        todo = [path for path, row in zip(images, keys, strict=True) if output is None or row not in output]
        if not todo:
            print(f"all {len(images)} images are in {arguments.output} already", file=sys.stderr)
            return _end(job, len(images), 0, 0)
        task = _open_task(job, shots)
        if output is not None:
            output.begin(row for row in keys if row not in output)
        failed = 0
        with progress(len(todo), "images") as advance:
            for row in _rows(todo, job, task):
                failed += "error" in row
                if output is not None:
                    output.append(row)
                else:
                    _print_row(job, row)
                advance(1)
    return _end(job, len(images), len(todo), failed)


def _output(job: Job) -> RowFile:
    arguments = job.arguments
    return RowFile(
        arguments.output,
        ["image", *job.constant, *job.columns, "error"],
        ["image", *job.constant],
        cache(lambda: settings_of(job)),
        arguments.overwrite,
    )


def settings_of(job: Job) -> Settings:
    """The settings that rows depend on, besides the images and the constant columns."""
    import flamboyance

    arguments = job.arguments
    dtype = dtype_of(arguments.dtype, device_of(arguments.device))
    task = task_of(arguments.demonstrations)
    return {
        "command": arguments.command.name,
        "model": model_settings(model_name(arguments)),
        "dtype": str(dtype).removeprefix("torch."),
        **({"quantize": arguments.quantize} if arguments.quantize else {}),
        "demonstrations": demonstration_settings(arguments.demonstrations, job.demonstrations),
        **({} if task is None else {"template": _template_settings(task.template, job)}),
        **sampling_settings(arguments),
        **job.settings,
        "flamboyance": flamboyance.__version__,
    }


def _template_settings(template: Any, job: Job) -> Settings | str:
    """All of a task file's template, since answers are parsed by its stops too; of the command's own the pattern, which
    is all that files of earlier versions have."""
    from flamboyance import templates
    from flamboyance.task_files import template_as_json

    return template.pattern if template == getattr(templates, job.template) else template_as_json(template)


def _print_row(job: Job, row: Row) -> None:
    if job.arguments.json:
        print(json_line(row), end="", flush=True)
    elif "error" in row:
        print(printable(f"{row['image']}: {row['error']}"), file=sys.stderr)
    else:
        print(printable(row["image"]), *(printable(one_line(cell)) for cell in job.cells(row)), sep="\t", flush=True)


def _end(job: Job, images: int, tried: int, failed: int) -> int:
    """Reports the counts. Returns the exit status."""
    done, before = tried - failed, images - tried
    parts = [f"{done} {'image' if done == 1 else 'images'} done"]
    if before:
        parts.append(f"{before} {'was' if before == 1 else 'were'} done before")
    if failed:
        parts.append(f"{failed} could not be read")
    if tried:
        print(", ".join(parts), file=sys.stderr)
    if job.arguments.json and job.arguments.output:
        summary = {"output": job.arguments.output, "done": done, "done_before": before, "failed": failed}
        print(json_line(summary), end="")
    return 1 if failed == images else 0


def _rows(paths: Sequence[Path], job: Job, task: Any) -> Iterator[Row]:
    """A row per path, in order: an answer, or why the image cannot be read."""
    from flamboyance.images import ImageError

    size = job.arguments.batch_size
    for batch in (paths[start : start + size] for start in range(0, len(paths), size)):
        rows: list[Row] = [{"image": str(path), **job.constant} for path in batch]
        images = []
        for path, row in zip(batch, rows, strict=True):
            try:
                images.append(task.processor.prepare(path))
            except ImageError as error:
                row["error"] = one_line(str(error))
        readable = [row for row in rows if "error" not in row]
        for row, answer in zip(readable, job.answer(task, images) if images else [], strict=True):
            row.update(answer)
        yield from rows


def one_line(text: str) -> str:
    return " ".join(text.split())


def demonstrations_of(arguments: argparse.Namespace, labels: bool = False) -> list[Demonstration]:
    """The first --shots of --demonstrations; `labels` as of `read_demonstrations`."""
    shots = arguments.shots
    if arguments.demonstrations is None:
        if shots:
            raise ValueError(f"--shots {shots} needs --demonstrations to take them from")
        return []
    return read_demonstrations(arguments.demonstrations, shots, arguments.outside, labels)


def as_caption(demonstration: Demonstration) -> tuple[Path | bytes, str]:
    """The demonstration as (image, text); refuses one with a question."""
    if len(demonstration) == 3:
        raise ValueError(
            f"the demonstration {brief(demonstration[0])} is a question with its answer; expected the columns "
            "image,text (`flamboyance ask` takes questions)"
        )
    return demonstration


def _open_task(job: Job, shots: list[tuple[Any, ...]]) -> Any:
    from flamboyance import templates
    from flamboyance.few_shot import FewShotTask

    arguments = job.arguments
    model, processor = load(model_name(arguments), arguments.device, arguments.dtype, quantize=arguments.quantize)
    set_sampling(processor, arguments, model_name(arguments))
    if arguments.model is None:
        note_default()
    texts = [text for _, *fields in job.demonstrations for text in fields]
    note_unknown_words(model_name(arguments), processor, job.words | ({"demonstrations": texts} if texts else {}))
    task = task_of(arguments.demonstrations)
    template = getattr(templates, job.template) if task is None else task.template
    return FewShotTask(model, processor, shots, template=template)


def generation_of(arguments: argparse.Namespace) -> dict[str, int]:
    """What a few-shot task passes to `generate`."""
    return {"max_new_tokens": arguments.max_new_tokens, "num_beams": arguments.beams}


def generation_settings(arguments: argparse.Namespace) -> Settings:
    return {"max_new_tokens": arguments.max_new_tokens, "beams": arguments.beams}
