"""`caption`: describe images."""

import argparse

from flamboyance.commands.arguments import add_generation
from flamboyance.commands.describe import (
    Job,
    add_images,
    as_caption,
    demonstrations_of,
    generation_of,
    generation_settings,
    run,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_images(parser)
    add_generation(parser)


def caption(arguments: argparse.Namespace) -> int:
    """Describe images."""
    generation = generation_of(arguments)
    return run(
        Job(
            arguments,
            "caption",
            demonstrations_of(arguments),
            as_caption,
            lambda task, images: [{"text": text} for text in task(images, **generation)],
            columns=["text"],
            cells=lambda row: [row["text"]],
            settings=generation_settings(arguments),
        )
    )
