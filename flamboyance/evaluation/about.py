"""What run.json says of an evaluation: the model, the settings, the data and the versions."""

from __future__ import annotations

import datetime
import hashlib
import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from flamboyance.evaluation import data_folders
from flamboyance.evaluation.results import Row
from flamboyance.evaluation.run import Answers, Settings
from flamboyance.evaluation.task import Task

PACKAGES = ("flamboyance", "torch", "transformers", "scikit-learn", "pillow", "numpy")


def describe(
    tasks: Sequence[Task], answers: Answers, settings: Settings, model: str, command: Sequence[str], fixed: Row
) -> Row:
    """The content of run.json.

    Args:
        model: the model's name.
        command: what was called.
        fixed: further settings that a resumed run must have in common with this one.
    """
    return {
        "command": list(command),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "model": {"name": model, **answers.describe()},
        "protocol": settings.protocol,
        "data": data_folders.sealed(data_folders.of_tasks(tasks)),
        "fixed": {"queries": settings.queries, **fixed},
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "machine": {"processor": platform.processor() or platform.machine(), "device": answers.place},
        "settings": {
            "shots": list(settings.shots), "demonstrations": list(settings.modes),
            "seeds": list(settings.seeds), "batch_size": settings.batch_size,
            **({"ablate": list(settings.changes)} if settings.ablate else {}),
            **({"orders": settings.orders} if settings.orders else {}),
        },
        "tasks": {task.name: _task(task) for task in tasks},
    }  # fmt: skip


def _task(task: Task) -> Row:
    found: dict[str, Any] = {
        "title": task.title, "metric": task.metric.name, "support": len(task.support), "queries": len(task.queries),
        "labels": task.labels and list(task.labels), "content": content(task), "images": shown(task),
        "prompt": _prompt(task),
    }  # fmt: skip
    return found | ({"variant": task.metric.variant} if task.metric.variant else {})


def _prompt(task: Task) -> Row:
    """How a task's examples are written, and its answers read."""
    return {
        "pattern": task.template.pattern, "stops": list(task.template.stops), "drop": task.template.drop,
        "strip": task.template.strip, "separator": task.separator, "max_new_tokens": task.max_new_tokens,
        "permutations": task.permutations,
    }  # fmt: skip


def content(task: Task) -> str:
    """A digest of a task's examples, which does not depend on their folder."""
    digest = hashlib.sha256()
    for part in (task.support, task.queries):
        for one in part:
            further = [tuple(image.name for image in one.further)] if one.further else []
            told = (one.id, one.image.name, one.answer, one.asked, one.references, *further)
            digest.update(repr(told).encode("utf-8", "replace"))
    return digest.hexdigest()[:16]


def shown(task: Task) -> str:
    """A digest of where a task's images are below its folder, and of which examples its queries are shown."""
    digest = hashlib.sha256()
    for part in (task.support, task.queries):
        paths = [os.path.split(image) for one in part for image in one.images]
        below = _below({folder for folder, _ in paths}, task.folder)
        digest.update(repr([(below[folder], name) for folder, name in paths]).encode("utf-8", "replace"))
    if task.choose is not None:
        digest.update(repr([task.choose(one, 1, 0) for one in task.queries]).encode())
    return digest.hexdigest()[:16]


def _below(folders: set[str], home: Path | None) -> dict[str, str]:
    """The paths of folders from their home, or from what they have in common, if one of them is elsewhere."""
    whole = {folder: os.path.abspath(folder) for folder in folders}
    common = os.path.commonpath(whole.values()) if folders else ""
    if home is not None and Path(common).is_relative_to(os.path.abspath(home)):
        common = os.path.abspath(home)
    return {folder: os.path.relpath(path, common) for folder, path in whole.items()}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
