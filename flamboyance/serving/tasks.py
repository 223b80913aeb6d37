"""Few-shot tasks by name: uploaded once, their demonstrations computed once, and used by any number of requests."""

from __future__ import annotations

import re
import shutil
import threading
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from flamboyance import templates
from flamboyance.few_shot import FewShotTask
from flamboyance.model.media import Media
from flamboyance.prompting import Prefix
from flamboyance.serving.batching import Engine, Picture
from flamboyance.serving.errors import ApiError, bad
from flamboyance.serving.protocol import TemplateBody
from flamboyance.templates import IMAGE_TOKEN, Template, settled

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
TEMPLATES: dict[str, Template] = {name: value for name, value in vars(templates).items() if isinstance(value, Template)}


@dataclass(frozen=True)
class StoredTask:
    """A task that is ready.

    Attributes:
        created: seconds since 1970.
        version: of its task.json, which shows that it was written again; None without a folder.
    """

    name: str
    template: Template
    prefix: Prefix | None
    texts: tuple[str, ...]
    created: int
    version: tuple[int, int] | None = None

    def described(self, model: str) -> dict[str, Any]:
        return {
            "id": self.name,
            "object": "task",
            "created": self.created,
            "model": f"{model}:{self.name}",
            "template": {"pattern": self.template.pattern, "stops": list(self.template.stops)},
            "fields": list(self.template.fields),
            "demonstrations": len(self.texts),
            "prefix_tokens": 0 if self.prefix is None else len(self.prefix.ids),
        }


def read_template(given: TemplateBody) -> Template:
    """The template of a request; of a named one, what is given beside the name takes the place of its own.

    Raises:
        ApiError: it is neither the name of a template nor a valid pattern.
    """
    fields = given.model_dump(exclude={"pattern"}, exclude_unset=True)
    if "stops" in fields:
        fields["stops"] = tuple(fields["stops"])
    named = TEMPLATES.get(given.pattern)
    if named is None and given.pattern.count(IMAGE_TOKEN) != 1:
        known = ", ".join(TEMPLATES)
        raise bad("template", f"template {given.pattern!r:.200}: expected one {IMAGE_TOKEN} in it, or one of {known}")
    try:
        return Template(given.pattern, **fields) if named is None else replace(named, **fields)
    except ValueError as error:
        raise bad("template", str(error)) from None


class TaskStore:
    """The tasks of a server.

    Args:
        folder: where tasks are kept between runs, one directory each, as FewShotTask.save writes them; None: nowhere.
            Servers may share it: a task that another one has stored is loaded when it is asked for.
    """

    def __init__(self, engine: Engine, most: int, folder: Path | None = None):
        self.engine, self.most, self.folder = engine, most, folder
        self._tasks: dict[str, StoredTask] = {}
        self._adding: set[str] = set()
        self._lock = threading.Lock()
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            for name in self._names():
                try:
                    self._load(name)
                except ValueError as error:
                    warnings.warn(f"the stored task {name!r} cannot be used: {error}", stacklevel=2)

    def _names(self) -> list[str]:
        """The tasks in the folder, or else in memory."""
        if self.folder is None:
            return sorted(self._tasks)
        found = [path.name for path in self.folder.iterdir() if (path / "task.json").is_file()]
        return sorted(name for name in found if NAME.fullmatch(name))

    def all(self) -> list[StoredTask]:
        """The tasks by name, without those in the folder that were made with another model."""
        found = []
        for name in self._names():
            with suppress(ApiError):
                found.append(self.find(name))
        return found

    def find(self, name: str) -> StoredTask:
        """
        Raises:
            ApiError: 404.
        """
        task = self._tasks.get(name)
        if self.folder is not None and NAME.fullmatch(name):
            version = self._version(name)
            if version is None:  # another server may have deleted it
                self._tasks.pop(name, None)
                task = None
            elif task is None or task.version != version:  # or written it anew
                try:
                    task = self._load(name)
                except ValueError:
                    self._tasks.pop(name, None)
                    raise ApiError(409, f"the stored task {name!r} was made with another model", "model") from None
        if task is None:
            raise ApiError(404, f"there is no task {name!r}", "model", "task_not_found")
        return task

    def add(self, name: str, template: Template, shots: Sequence[tuple[Picture, tuple[str, ...]]]) -> StoredTask:
        """Computes and stores a task; `shots` are images with the values of the template's fields.

        Raises:
            ApiError: the name is not valid or in use, the texts cannot be in a prompt, or there are too many tasks.
        """
        if not NAME.fullmatch(name):
            raise bad("name", f"name is {name!r:.100}; expected 1 to 64 letters, digits, '.', '_' and '-'")
        if not self.most:
            raise ApiError(403, "this server takes no tasks", None, "no_tasks")
        with self._lock:
            taken = name in self._tasks or name in self._adding
            if taken or (self.folder is not None and (self.folder / name).exists()):
                raise ApiError(409, f"there is a task {name!r} already; delete it first", "name", "task_exists")
            if len(self._tasks) + len(self._adding) >= self.most:
                raise ApiError(409, f"there are {self.most} tasks already; delete one first", None, "too_many_tasks")
            self._adding.add(name)
        try:
            stored = self.engine.call(lambda: self._make(name, template, shots)).result()
            self._tasks[name] = stored
            return stored
        finally:
            self._adding.discard(name)

    def delete(self, name: str) -> None:
        """
        Raises:
            ApiError: 404.
        """
        stored = self.folder is not None and NAME.fullmatch(name) is not None and (self.folder / name).is_dir()
        if not stored and name not in self._tasks:
            raise ApiError(404, f"there is no task {name!r}", "model", "task_not_found")
        self._tasks.pop(name, None)
        if self.folder is not None and stored:  # also one of another model, or what a failed upload left
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def _version(self, name: str) -> tuple[int, int] | None:
        """What tells a task's file from one that was written later; None if there is none."""
        assert self.folder is not None
        try:
            about = (self.folder / name / "task.json").stat()
        except OSError:
            return None
        return about.st_mtime_ns, about.st_ino

    def _make(self, name: str, template: Template, shots: Sequence[tuple[Picture, tuple[str, ...]]]) -> StoredTask:
        """In the engine's thread."""
        model, processor = self.engine.model, self.engine.processor
        template = settled(template, (values[-1] for _, values in shots))
        try:
            texts = [template.demonstration(*values) for _, values in shots]
            (ids,) = processor.tokenize(["".join(texts)])
            model.check_length(len(ids), new=1)
            media = Media.join(self.engine.encode([picture for picture, _ in shots]), (tuple(range(len(shots))),))
            prefix = Prefix.of(model, torch.tensor(ids, device=model.device), media)
        except (ValueError, TypeError) as error:
            raise bad("demonstrations", str(error)) from None
        if self.folder is None:
            return StoredTask(name, template, prefix, tuple(texts), int(time.time()))
        try:
            FewShotTask.of_prefix(model, processor, template, texts, prefix).save(self.folder / name)
        except OSError:
            shutil.rmtree(self.folder / name, ignore_errors=True)  # else a failed upload would keep the name
            raise
        return StoredTask(name, template, prefix, tuple(texts), int(time.time()), self._version(name))

    def _load(self, name: str) -> StoredTask:
        assert self.folder is not None
        path = self.folder / name

        def load() -> StoredTask:
            version = self._version(name)  # before it is read: if it is written meanwhile, it is read again
            task = FewShotTask.load(path, self.engine.model, self.engine.processor)
            created = int((path / "task.json").stat().st_mtime)
            return StoredTask(name, task.template, task.prefix, tuple(task.texts), created, version)

        self._tasks[name] = stored = self.engine.call(load).result()
        return stored
