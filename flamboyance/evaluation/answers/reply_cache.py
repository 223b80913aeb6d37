"""Keeps a server's replies on disk by the content of the request, so that nothing is asked twice."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from flamboyance.files import replacing

FOLDER = ".replies"
"""The folder of the replies in a results directory. No task has such a name."""


class ReplyCache:
    """Replies by request, a file each: `ab/abcd….json`.

    A file is written whole or not at all, so a killed run leaves no half of one; a damaged file counts as none. The
    request, with its images, is part of the file's name by its SHA-256 only.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    @staticmethod
    def key(body: dict[str, Any]) -> str:
        """The name of a request, by all that is in it."""
        text = json.dumps(body, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(text.encode("ascii")).hexdigest()

    def get(self, key: str) -> dict[str, Any] | None:
        """The reply to an earlier request; None if there is none."""
        try:
            found = json.loads(self._file(key).read_bytes())
        except (OSError, ValueError, RecursionError):
            return None
        return found if isinstance(found, dict) else None

    def put(self, key: str, reply: dict[str, Any]) -> None:
        """Keeps a reply."""
        file = self._file(key)
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as part:
            Path(part).write_text(json.dumps(reply), encoding="utf-8")  # ASCII, so no text is refused

    def _file(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"
