"""`ask`: answer one question about each image."""

import argparse
from typing import Any

from flamboyance.commands.arguments import add_generation
from flamboyance.commands.describe import (
    Answer,
    Job,
    add_images,
    demonstrations_of,
    generation_of,
    one_line,
    open_task,
    run,
)
from flamboyance.commands.output import Row


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--question", required=True, help="what to ask about each image")
    add_images(parser)
    add_generation(parser)


def ask(arguments: argparse.Namespace) -> int:
    """Answer one question about each image."""
    question = arguments.question.strip()
    if not question:
        raise ValueError("--question is empty")
    # A text beside an image answers the question that is asked now.
    demonstrations = [d if len(d) == 3 else (d[0], question, d[1]) for d in demonstrations_of(arguments)]
    job = Job(arguments, {"question": question}, ["answer"], lambda row: one_line(row["answer"]))

    def answer() -> Answer:
        task = open_task(arguments, demonstrations, "vqa")

        def batch(images: list[Any]) -> list[Row]:
            answers = task([(image, question) for image in images], **generation_of(arguments))
            return [{"answer": text} for text in answers]

        return batch

    return run(job, answer)
