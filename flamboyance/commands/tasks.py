"""The tasks of `evaluate` and `rices`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def read_tasks(arguments: argparse.Namespace) -> list[Any]:
    """Reads the tasks from their files.

    Raises:
        ValueError, OSError: a task is unknown, or its files are missing or wrong.
    """
    from flamboyance.evaluation.tasks import TASKS, VL_ICL, hf_dataset, known, open_own, open_task

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
    groups = {"all": list(TASKS), "vl_icl": list(VL_ICL)}
    names = [one for name in arguments.tasks for one in groups.get(name, [name])]
    unknown = set(files) - {name.partition(":")[0] for name in names}
    if unknown:
        raise ValueError(f"--file names {unknown.pop()}, which is not among the given tasks: {', '.join(names)}")
    tasks = []
    for name in dict.fromkeys(names):
        base = name.partition(":")[0]
        if base in known():
            if arguments.data is None:
                raise ValueError(f"--data is missing: the folder that holds {base}/ with the benchmark's files")
            tasks.append(open_task(name, Path(arguments.data), files.get(base, {}), arguments.protocol))
        elif name.startswith(hf_dataset.PREFIX) or Path(name).exists():
            tasks.append(open_own(name, arguments.support, arguments.columns, arguments.protocol, arguments.outside))
        else:
            raise ValueError(
                f"{name} is neither a task ({', '.join(known())}) nor an existing file or folder, nor hf:NAME[SPLIT]"
            )
    twice = [task.name for task in tasks if [other.name for other in tasks].count(task.name) > 1]
    if twice:
        raise ValueError(f"two tasks are called {twice[0]}: rename one of the files, results are kept by that name")
    return tasks
