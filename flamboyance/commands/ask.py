"""`ask`: answer one question about each image."""

import argparse
from typing import Any

from flamboyance.commands.arguments import add_generation
from flamboyance.commands.describe import (
    Job,
    add_images,
    demonstrations_of,
    generation_of,
    generation_settings,
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
    generation = generation_of(arguments)

    def answer(task: Any, images: list[Any]) -> list[Row]:
        return [{"answer": text} for text in task([(image, question) for image in images], **generation)]

    return run(
        Job(
            arguments,
            "vqa",
            demonstrations_of(arguments),
            # A text beside an image answers the question that is asked now.
            lambda one: one if len(one) == 3 else (one[0], question, one[1]),
            answer,
            columns=["answer"],
            cells=lambda row: [row["answer"]],
            constant={"question": question},
            words={"question": [question]},
            settings=generation_settings(arguments),
        )
    )
