"""The folders of a run's pictures: from these, and from the results directory, a report copies pictures into its page.

`run.json` names them. A results directory may come from somebody else, and its files may name any picture of this disk;
so the list counts only with a seal that the user's own evaluations make, by a key in the user's cache folder. A report
on a run from elsewhere copies pictures out of the results directory alone, or out of folders that the user names.
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

MOST = 64  # folders of a run that are named one by one; of more, the folder that holds them all


def user_cache() -> Path:
    """What this package keeps for the user: `flamboyance` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "flamboyance"


def of_tasks(tasks: Sequence[Task]) -> list[str]:
    """The folders that hold the tasks' pictures, resolved, without those inside of others."""
    parents = {os.path.dirname(one.image) for task in tasks for one in (*task.support, *task.queries)}
    found = sorted({os.path.realpath(parent) for parent in parents})
    if len(found) > MOST:
        whole = os.path.commonpath(found)
        # Folders all over the disk have nothing in common but its root.
        found = [whole] if len(Path(whole).parts) > 2 else found
    return [one for one in found if not any(one != other and Path(one).is_relative_to(other) for other in found)]


def sealed(folders: Iterable[str]) -> dict[str, Any]:
    """What run.json says of them."""
    named = sorted(set(folders))
    return {"folders": named, "seal": _seal(named)}


def believed(about: dict[str, Any]) -> list[str]:
    """The folders that a run.json names, if an evaluation of this user wrote it; else none."""
    told = about.get("data")
    told = told if isinstance(told, dict) else {}
    folders = told.get("folders")
    if not isinstance(folders, list) or not all(isinstance(one, str) for one in folders):
        return []
    seal, own = told.get("seal"), _seal(folders)
    return folders if isinstance(seal, str) and own and hmac.compare_digest(seal.encode(), own.encode()) else []


def inside(path: Path, folders: Iterable[Path]) -> Path | None:
    """The file that a path leads to, if it is a regular one in these folders, links followed; else None.

    Args:
        folders: resolved.
    """
    try:
        real = path.resolve()
        return real if real.is_file() and any(real.is_relative_to(folder) for folder in folders) else None
    except (OSError, ValueError, RuntimeError):  # no such name: too long, a NUL, a loop of links
        return None


def _seal(folders: list[str]) -> str | None:
    key = _key()
    return hmac.digest(key, json.dumps(folders).encode(), "sha256").hex() if key else None


def _key() -> bytes | None:
    """The user's; made at the first call. None where no folder can hold it."""
    file = user_cache() / "seal"
    try:
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            part = file.with_name(f".seal.{os.getpid()}.{secrets.token_hex(4)}")
            with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as opened:
                opened.write(secrets.token_bytes(32))
            try:
                os.link(part, file)  # of two processes at once, the first one's stays
            except FileExistsError:
                pass
            finally:
                part.unlink()
        found = file.read_bytes()
    except OSError:
        return None
    return found if len(found) == 32 else None
