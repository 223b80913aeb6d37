"""`caption`: describe images."""

import argparse

from flamboyance.commands.arguments import add_generation
from flamboyance.commands.describe import (
    Answer,
    Job,
    add_images,
    as_caption,
    demonstrations_of,
    generation_of,
    one_line,
    open_task,
    run,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_images(parser)
    add_generation(parser)


def caption(arguments: argparse.Namespace) -> int:
    """Describe images."""
    demonstrations = [as_caption(d) for d in demonstrations_of(arguments)]
    job = Job(arguments, {}, ["text"], lambda row: one_line(row["text"]))

    def answer() -> Answer:
        task = open_task(arguments, demonstrations, "caption")
        return lambda images: [{"text": text} for text in task(images, **generation_of(arguments))]

    return run(job, answer)
