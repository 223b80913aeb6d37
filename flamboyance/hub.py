"""Whether the Hugging Face hub is within reach, asked once and quickly.

Libraries that look for a file retry each request for half a minute when there is no network. Here one short request
comes first. Without an answer, only the files that are already on this machine are used.
"""

from __future__ import annotations

import os
import time
from typing import Any

PACKAGE = "package:"  # begins the name of a model whose weights are files of an installed Python package
TIMEOUT = 5.0  # seconds for the one request
KEPT = {True: 300.0, False: 5.0}  # seconds for which its outcome is kept

_last: dict[str, tuple[bool, float]] = {}


def within_reach() -> bool:
    """Whether the hub answers, through the proxies and at the endpoint that huggingface_hub is set up for."""
    from huggingface_hub import constants  # imported late for start-up time
    from huggingface_hub.utils import get_session

    if constants.is_offline_mode():
        return False
    reached, when = _last.get(constants.ENDPOINT, (False, -1e9))
    if time.monotonic() - when > KEPT[reached]:
        try:
            get_session().head(constants.ENDPOINT, timeout=TIMEOUT)
            reached = True
        except Exception:  # noqa: BLE001  of whichever HTTP library huggingface_hub uses
            reached = False
        _last[constants.ENDPOINT] = reached, time.monotonic()
    return reached


def options(name: str | os.PathLike[str] | None, hub: dict[str, Any]) -> dict[str, Any]:
    """`hub` with local_files_only=True if `name` is no local file and the hub is out of reach."""
    if hub.get("local_files_only") or name is None or os.path.exists(os.path.expanduser(name)):
        return hub
    if os.fspath(name).startswith(PACKAGE):
        return hub
    return hub | {"local_files_only": not within_reach()}
