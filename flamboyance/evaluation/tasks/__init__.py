"""Benchmarks, one module each; one's own data (user_data.py); datasets of Hugging Face (hf_dataset.py).

A benchmark's module declares `TASK`, whose `load(files, protocol)` reads the benchmark's files and returns the Task.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path

from flamboyance.evaluation.task import Task, TaskFile
from flamboyance.evaluation.tasks import (
    coco,
    flickr30k,
    hateful_memes,
    hf_dataset,
    imagenet,
    ok_vqa,
    textvqa,
    user_data,
    vizwiz,
    vl_icl,
    vqav2,
)
from flamboyance.evaluation.tasks.protocols import check_protocol
from flamboyance.files import local

TASKS: dict[str, TaskFile] = {
    file.TASK.name: file.TASK for file in (coco, flickr30k, vqav2, ok_vqa, textvqa, vizwiz, hateful_memes, imagenet)
}

VL_ICL: dict[str, TaskFile] = {task.name: task for task in vl_icl.TASKS}
"""VL-ICL Bench; its name stands for all six."""


def known() -> dict[str, TaskFile]:
    """All benchmarks."""
    return {**TASKS, **VL_ICL}


def open_tasks(
    names: Sequence[str],
    data: Path | str | None = None,
    support: Path | str | None = None,
    files: Mapping[str, Mapping[str, str]] | None = None,
    columns: Mapping[str, str] | None = None,
    protocol: str = "papers",
    outside: bool = False,
    called: str = "data",
) -> list[Task]:
    """Reads tasks by their names: benchmarks, groups of them, files or folders of one's own, datasets.

    Args:
        names: as of `open_task` or `open_own`; "all" and "vl_icl" stand for several benchmarks.
        data: the folder of the benchmarks' files.
        files: of a benchmark, as `open_task` takes them.
        called: what a user knows `data` as, for the error if it is missing.

    Raises:
        ValueError, OSError, ImportError: a task is unknown, its files are missing or wrong, or two have the same name.
    """
    groups = {"all": list(TASKS), "vl_icl": list(VL_ICL)}
    names = [one for name in names for one in groups.get(name, [name])]
    given = files or {}
    if unknown := set(given) - {name.partition(":")[0] for name in names}:
        raise ValueError(f"--file names {unknown.pop()}, which is not among the given tasks: {', '.join(names)}")
    tasks = []
    for name in dict.fromkeys(names):
        base = name.partition(":")[0]
        if base in known():
            if not data:
                raise ValueError(f"{called} is missing: the folder that holds {base}/ with the benchmark's files")
            tasks.append(open_task(name, Path(data), given.get(base, {}), protocol))
        elif name.startswith(hf_dataset.PREFIX) or Path(name).exists():
            tasks.append(open_own(name, support, columns, protocol, outside))
        else:
            raise ValueError(
                f"{name} is neither a task ({', '.join(known())}) nor an existing file or folder, nor hf:NAME[SPLIT]"
            )
    twice = [task.name for task in tasks if [other.name for other in tasks].count(task.name) > 1]
    if twice:
        raise ValueError(f"two tasks are called {twice[0]}: rename one of the files, results are kept by that name")
    return tasks


def open_own(
    name: Path | str,
    support: Path | str | None = None,
    columns: Mapping[str, str] | None = None,
    protocol: str = "papers",
    outside: bool = False,
) -> Task:
    """Reads a task that is no benchmark: a file or folder of one's own, or a dataset as "hf:NAME[SPLIT]".

    Args:
        support: the examples to choose demonstrations from, of the same sort; default: those of `name`.
        columns: of a dataset: our names -> its own.
        outside: a file's images may be outside of its folder.

    Raises:
        ValueError, OSError, ImportError: see `user_data.load` and `hf_dataset.load`.
    """
    if str(name).startswith(hf_dataset.PREFIX):
        return hf_dataset.load(str(name), columns, None if support is None else str(support), protocol)
    return user_data.load(name, support, protocol=protocol, outside=outside)


def open_task(
    name: str,
    data: Path,
    files: Mapping[str, str] | None = None,
    protocol: str = "papers",
) -> Task:
    """Reads a benchmark from its files.

    Args:
        name: one of `TASKS` or `VL_ICL`, or one of its further splits, as in "vqav2:test-dev"; that task is named
            "vqav2-test-dev".
        data: the folder of the official files: they are in `data/vqav2`, or in `data` itself if that does not exist.
        files: paths of files that are elsewhere, by the names that the task gives them; "" for no file.
        protocol: "papers", or "openflamingo" for the rules of the published tables.

    Raises:
        ValueError: there is no such task, split, file name or protocol, or an item of a file is wrong.
        FileNotFoundError: files are missing, all of which are named, or images are.
    """
    check_protocol(protocol)
    task_file, split = _find(name)
    given = dict(files or {})
    task = task_file.load(_resolve(task_file, split, Path(data), given), protocol)
    if not (split or given.get("annotations") == "" or any(one.references for one in task.queries)):
        raise ValueError(_no_answers(name, task_file))
    return dataclasses.replace(task, name=f"{task.name}-{split}", title=f"{task.title} ({split})") if split else task


def _no_answers(name: str, task: TaskFile) -> str:
    problem = f"{name}: the queries have no answers to compare with. "
    if "annotations" not in {**task.files, **task.optional}:
        return problem + f"Give a file with answers as --file {name}.queries=PATH"
    others = "".join(f", or use {name}:{split}" for split in task.splits)
    return problem + f"Give --file {name}.annotations=PATH, or an empty PATH to get predictions only{others}"


def _find(name: str) -> tuple[TaskFile, str]:
    base, _, split = name.partition(":")
    tasks = known()
    if base not in tasks:
        near = difflib.get_close_matches(base, tasks, 1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ValueError(f"there is no task {base!r}.{hint} The tasks are {', '.join(tasks)}")
    splits = tasks[base].splits
    if split and split not in splits:
        others = ", ".join(f"{base}:{one}" for one in splits)
        raise ValueError(f"{base} has no split {split!r}; expected {base}" + (f", or {others}" if others else ""))
    return tasks[base], split


def _resolve(task: TaskFile, split: str, data: Path, given: Mapping[str, str]) -> dict[str, Path]:
    """The path of each file to read. All of them exist, files as files and folders as folders."""
    required = {**task.files, **task.splits.get(split, {})}
    known = {**task.optional, **required}
    for name, path in given.items():
        if name not in known:
            raise ValueError(f"{task.name} has no file {name!r}; its files are {', '.join(known)}")
        if not path and name in task.files and name != "annotations":
            raise ValueError(f"{task.name}.{name} is empty; expected the path of a {_kind(known[name])}")
    home = data / task.name if (data / task.name).is_dir() else data
    found, missing = {}, []
    for name, default in known.items():
        path = given.get(name, default)
        if not path:
            continue
        path = local(given[name]) if name in given else _first(home, default)
        if path.is_dir() if _kind(default) == "folder" else path.is_file():
            found[name] = path
        elif name in required or name in given:
            missing.append(_missing(task.name, name, path, default))
    if missing:
        raise FileNotFoundError(f"{task.title} lacks files:\n" + "\n".join(missing))
    return found


def _first(home: Path, default: str) -> Path:
    """The first of the alternatives that exists; if none does, the first."""
    paths = [home / one for one in default.split("|")]
    return next((path for path in paths if path.exists()), paths[0])


def _kind(default: str) -> str:
    return "folder" if default.endswith("/") else "file"


def _missing(task: str, name: str, path: Path, default: str) -> str:
    alternatives = "".join(f" or {one}" for one in default.split("|")[1:])
    found = f", found a {'folder' if path.is_dir() else 'file'}" if path.exists() else ""
    expected = f"expected a {_kind(default)}{found}"
    return f"  {path}{alternatives}: {expected}; if it is elsewhere, give --file {task}.{name}=PATH"
