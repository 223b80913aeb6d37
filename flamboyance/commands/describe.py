"""`caption`, `ask` and `classify`: one few-shot task over many images, row by row."""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flamboyance.commands.inputs import Demonstration, find_images, read_demonstrations, read_labels
from flamboyance.commands.models import load
from flamboyance.commands.output import Row, RowFile
from flamboyance.commands.progress import progress

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


def caption(arguments: argparse.Namespace) -> int:
    """Describe images."""
    demonstrations = [_as_caption(d) for d in _demonstrations(arguments)]
    job = Job(arguments, {}, ["text"], lambda row: _one_line(row["text"]))

    def answer() -> Answer:
        task = _task(arguments, demonstrations, "caption")
        return lambda images: [{"text": text} for text in task(images, **_generation(arguments))]

    return run(job, answer)


def ask(arguments: argparse.Namespace) -> int:
    """Answer one question about each image."""
    question = arguments.question.strip()
    if not question:
        raise ValueError("--question is empty")
    # A text beside an image answers the question that is asked now.
    demonstrations = [d if len(d) == 3 else (d[0], question, d[1]) for d in _demonstrations(arguments)]
    job = Job(arguments, {"question": question}, ["answer"], lambda row: _one_line(row["answer"]))

    def answer() -> Answer:
        task = _task(arguments, demonstrations, "vqa")

        def batch(images: list[Any]) -> list[Row]:
            answers = task([(image, question) for image in images], **_generation(arguments))
            return [{"answer": text} for text in answers]

        return batch

    return run(job, answer)


def classify(arguments: argparse.Namespace) -> int:
    """Say which of some labels fits each image, with probabilities."""
    labels = read_labels(arguments.labels)
    demonstrations = [_as_caption(d) for d in _demonstrations(arguments)]
    columns = ["label", *(f"probabilities.{label}" for label in labels)]
    job = Job(arguments, {}, columns, lambda row: f"{row['label']}\t{row['probabilities'][row['label']]:.4f}")

    def answer() -> Answer:
        task = _task(arguments, demonstrations, "classification")

        def batch(images: list[Any]) -> list[Row]:
            return [
                {"label": label, "probabilities": {name: round(p, 6) for name, p in probabilities.items()}}
                for label, probabilities in task.classify(images, labels)
            ]

        return batch

    return run(job, answer)


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
                row["error"] = _one_line(str(error))
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
            yield {"error": _one_line(str(error))}
        else:
            for image in images:
                yield from _answers(answer, [image])


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _summarize(done: int, before: int, failed: int) -> None:
    parts = [f"{done} images done"]
    if before:
        parts.append(f"{before} were done before")
    if failed:
        parts.append(f"{failed} could not be read")
    print(", ".join(parts), file=sys.stderr)


def _demonstrations(arguments: argparse.Namespace) -> list[Demonstration]:
    shots = arguments.shots
    if arguments.demonstrations is None:
        if shots:
            raise ValueError(f"--shots {shots} needs --demonstrations to take them from")
        return []
    return read_demonstrations(arguments.demonstrations, shots)


def _as_caption(demonstration: Demonstration) -> tuple[Path, str]:
    if len(demonstration) == 3:
        raise ValueError(
            f"the demonstration {demonstration[0]} is a question with its answer; expected the columns "
            "image,text (`flamboyance ask` takes questions)"
        )
    return demonstration


def _task(arguments: argparse.Namespace, demonstrations: Sequence[Demonstration], template: str) -> Any:
    from flamboyance import templates
    from flamboyance.few_shot import FewShotTask

    model, processor = load(arguments.model, arguments.device, arguments.dtype)
    return FewShotTask(model, processor, demonstrations=list(demonstrations), template=getattr(templates, template))


def _generation(arguments: argparse.Namespace) -> dict[str, int]:
    return {"max_new_tokens": arguments.max_new_tokens, "num_beams": arguments.beams}
