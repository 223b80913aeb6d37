"""Benchmarks: a file each, which says what it reads and how it is asked; and a user's own data."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from pathlib import Path

from flamboyance.evaluation.task import Task, TaskFile
from flamboyance.evaluation.tasks import (
    coco,
    flickr30k,
    hateful_memes,
    imagenet,
    ok_vqa,
    textvqa,
    vizwiz,
    vqav2,
)
from flamboyance.evaluation.tasks.protocols import check_protocol

TASKS: dict[str, TaskFile] = {
    file.TASK.name: file.TASK for file in (coco, flickr30k, vqav2, ok_vqa, textvqa, vizwiz, hateful_memes, imagenet)
}


def open_task(
    name: str,
    data: Path,
    files: Mapping[str, str] | None = None,
    protocol: str = "papers",
    support_only: bool = False,
) -> Task:
    """Reads a benchmark from its files.

    Args:
        name: one of `TASKS`, or one of its further splits, as in "vqav2:test-dev"; that task is named "vqav2-test-dev".
        data: where the official files lie: in `data/vqav2`, or in `data` itself where there is no such folder.
        files: paths of files that lie elsewhere, by the names that the task gives them; "" for none.
        protocol: "papers", or "openflamingo" for what produced the published tables.
        support_only: what demonstrations are taken from alone; the files of the queries are not needed.

    Raises:
        ValueError: there is no such task, split, file name or protocol; or a file holds something wrong.
        FileNotFoundError: files are missing, which are all named; or images.
    """
    check_protocol(protocol)
    task_file, split = _find(name)
    given = dict(files or {})
    found = _resolve(task_file, split, Path(data), given, support_only)
    task = task_file.load(found, protocol)
    measured = support_only or split or given.get("annotations") == "" or any(one.references for one in task.queries)
    if not measured:
        raise ValueError(_unanswered(name, task_file))
    return dataclasses.replace(task, name=f"{task.name}-{split}", title=f"{task.title} ({split})") if split else task


def _unanswered(name: str, task: TaskFile) -> str:
    said = f"{name}: the queries have no answers to compare with. "
    if "annotations" not in {**task.files, **task.optional}:
        return said + f"Give a file that has them as --file {name}.queries=PATH"
    others = "".join(f", or ask for {name}:{split}" for split in task.splits)
    return said + f"Give --file {name}.annotations=PATH, or no PATH to get predictions alone{others}"


def _find(name: str) -> tuple[TaskFile, str]:
    base, _, split = name.partition(":")
    if base not in TASKS:
        near = difflib.get_close_matches(base, TASKS, 1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ValueError(f"there is no task {base!r}.{hint} There are {', '.join(TASKS)}")
    splits = TASKS[base].splits
    if split and split not in splits:
        known = ", ".join(f"{base}:{one}" for one in splits)
        raise ValueError(f"{base} has no split {split!r}; there is {base}" + (f", and {known}" if known else ""))
    return TASKS[base], split


def _resolve(task: TaskFile, split: str, data: Path, given: Mapping[str, str], support_only: bool) -> dict[str, Path]:
    """The paths of what is read, each there and of the right kind."""
    usual = {**task.files, **task.splits.get(split, {})}
    known = {**task.optional, **usual}
    for name, path in given.items():
        if name not in known:
            raise ValueError(f"{task.name} reads no {name!r}; its files are {', '.join(known)}")
        if not path and name in task.files and name != "annotations":
            raise ValueError(f"{task.name}.{name} is empty; expected the path of a {_kind(known[name])}")
    home = data / task.name if (data / task.name).is_dir() else data
    found, missing = {}, []
    for name, default in known.items():
        path = given.get(name, default)
        if not path or (support_only and name in task.for_queries):
            continue
        path = Path(given[name]).expanduser() if name in given else _first(home, default)
        if path.is_dir() if _kind(default) == "folder" else path.is_file():
            found[name] = path
        elif name in usual or name in given:
            missing.append(_missing(task.name, name, path, default))
    if missing:
        raise FileNotFoundError(f"{task.title} needs what is not there:\n" + "\n".join(missing))
    return found


def _first(home: Path, default: str) -> Path:
    """The first of the alternatives that exists; where none does, the first."""
    paths = [home / one for one in default.split("|")]
    return next((path for path in paths if path.exists()), paths[0])


def _kind(default: str) -> str:
    return "folder" if default.endswith("/") else "file"


def _missing(task: str, name: str, path: Path, default: str) -> str:
    why = " is not one:" if path.exists() else ":"
    alternatives = "".join(f" or {one}" for one in default.split("|")[1:])
    return f"  {path}{alternatives}{why} expected a {_kind(default)}; if it lies elsewhere, --file {task}.{name}=PATH"
