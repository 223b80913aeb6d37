"""`classify`: choose a label for each image."""

import argparse
from typing import Any

from flamboyance.commands.describe import Job, add_images, as_caption, demonstrations_of, run
from flamboyance.commands.inputs import read_labels
from flamboyance.commands.output import Row


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--labels",
        required=True,
        help="a,b,c, or a text file with a label on each line, or a table with a column label",
    )
    add_images(parser)


def classify(arguments: argparse.Namespace) -> int:
    """Choose one of the labels for each image, with probabilities."""
    labels = read_labels(arguments.labels)

    def answer(task: Any, images: list[Any]) -> list[Row]:
        return [
            {"label": label, "probabilities": {name: round(p, 6) for name, p in probabilities.items()}}
            for label, probabilities in task.classify(images, labels)
        ]

    return run(
        Job(
            arguments,
            "classification",
            demonstrations_of(arguments, labels=True),
            as_caption,
            answer,
            columns=["label", *(f"probabilities.{label}" for label in labels)],
            cells=lambda row: [row["label"], f"{row['probabilities'][row['label']]:.4f}"],
            words={"labels": labels},
            settings={"labels": labels},
        )
    )
