"""The tasks of `evaluate` and `rices`."""

from __future__ import annotations

import argparse
from typing import Any


def read_tasks(arguments: argparse.Namespace) -> list[Any]:
    """Reads the tasks from their files.

    Raises:
        ValueError, OSError: a task is unknown, or its files are missing or wrong.
    """
    from flamboyance.evaluation.tasks import hf_dataset, open_tasks

    files: dict[str, dict[str, str]] = {}
    for given in arguments.file:
        name, separator, path = given.partition("=")
        task, dot, what = name.partition(".")
        if not separator or not dot:
            raise ValueError(f"--file {given}: expected TASK.NAME=PATH, as coco.karpathy=/data/dataset_coco.json")
        files.setdefault(task, {})[what] = path
    if arguments.columns and not any(name.startswith(hf_dataset.PREFIX) for name in arguments.tasks):
        raise ValueError(
            "--columns is for datasets of Hugging Face (hf:NAME[SPLIT]); rename a file's columns in the file"
        )
    return open_tasks(
        arguments.tasks, arguments.data, arguments.support, files, arguments.columns, arguments.protocol,
        arguments.outside, called="--data",
    )  # fmt: skip
