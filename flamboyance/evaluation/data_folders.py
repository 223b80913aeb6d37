"""The folders from which a report may copy images into its page: those of the evaluation's data.

`run.json` lists them. But a results directory may come from somebody else, and its files may name any image on this
disk. So the list is trusted only with a seal, which the user's own evaluations write with a key in the user's cache
folder. A report on a run from elsewhere copies images only out of the results directory, or out of folders that the
user names.
"""

from __future__ import annotations

import hmac
import json
import os
import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from flamboyance.evaluation.task import Task
from flamboyance.files import local

MOST = 64  # if a run has more folders, their common parent is listed instead


def user_cache() -> Path:
    """The folder of this package in the user's cache folder."""
    return local(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "flamboyance"


def of_tasks(tasks: Sequence[Task]) -> list[str]:
    """The folders of the tasks' images, resolved; none is inside another."""
    examples = (one for task in tasks for one in (*task.support, *task.queries))
    parents = {os.path.dirname(image) for one in examples for image in one.images}
    found = sorted({os.path.realpath(parent) for parent in parents})
    if len(found) > MOST:
        whole = os.path.commonpath(found)
        # The common parent of folders all over the disk is its root.
        found = [whole] if len(Path(whole).parts) > 2 else found
    return [one for one in found if not any(one != other and Path(one).is_relative_to(other) for other in found)]


def sealed(folders: Iterable[str]) -> dict[str, Any]:
    """The entry of run.json for these folders."""
    listed = sorted(set(folders))
    return {"folders": listed, "seal": _seal(listed)}


def trusted(about: dict[str, Any]) -> list[str]:
    """The folders that a run.json lists, if this user's evaluation wrote it; else none."""
    entry = about.get("data")
    entry = entry if isinstance(entry, dict) else {}
    folders = entry.get("folders")
    if not isinstance(folders, list) or not all(isinstance(one, str) for one in folders):
        return []
    seal, expected = entry.get("seal"), _seal(folders)
    valid = isinstance(seal, str) and expected and hmac.compare_digest(seal.encode(), expected.encode())
    return folders if valid else []


def inside(path: Path, folders: Iterable[Path]) -> Path | None:
    """The regular file that a path leads to, links followed, if it is in one of the folders; else None.

    Args:
        folders: resolved.
    """
    try:
        real = path.resolve()
        return real if real.is_file() and any(real.is_relative_to(folder) for folder in folders) else None
    except (OSError, ValueError, RuntimeError):  # an invalid name: too long, with a NUL, a loop of links
        return None


def _seal(folders: list[str]) -> str | None:
    key = _key()
    return hmac.digest(key, json.dumps(folders).encode(), "sha256").hex() if key else None


def _key() -> bytes | None:
    """The user's key, made at the first call; None if it cannot be written."""
    file = user_cache() / "seal"
    try:
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            part = file.with_name(f".seal.{os.getpid()}.{secrets.token_hex(4)}")
            with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as opened:
                opened.write(secrets.token_bytes(32))
            try:
                os.link(part, file)
            except FileExistsError:
                pass  # another process was first
            finally:
                part.unlink()
        found = file.read_bytes()
    except OSError:
        return None
    return found if len(found) == 32 else None
