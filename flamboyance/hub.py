"""The Hugging Face hub: whether it is within reach, asked once and quickly, and what it has under a name.

Libraries that look for a file retry each request for half a minute when there is no network. Here one short request
comes first; without an answer, only what this machine already has is looked at.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from flamboyance import names

TIMEOUT = 5.0  # seconds for the one request
KEPT = {True: 300.0, False: 5.0}  # seconds that its outcome is believed

_last: dict[str, tuple[bool, float]] = {}


class UnknownModelError(OSError, ValueError):
    """No model is found under a name; the message says where it was looked for, and what may have been meant."""


def within_reach() -> bool:
    """Whether the hub answers, through the proxies and at the endpoint that huggingface_hub is set up for."""
    from huggingface_hub import constants
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
    return hub | {"local_files_only": not within_reach()}


def missing(name: str, reason: str = "") -> UnknownModelError:
    """The error for a name that is neither a directory nor on the hub, as far as it can be asked."""
    where = "on the hub" if within_reach() else "in the hub's cache on this machine, and the hub is not within reach"
    return UnknownModelError(
        f"cannot open the model '{name}': there is no such directory{names.suggestion(name)}, and nothing of that name "
        f"{where}; give a directory, 'mini', or a released name such as openflamingo/{names.RELEASED[0]}"
        + (f" ({' '.join(reason.split())[:300]})" if reason else "")
    )


def check(name: str) -> None:
    """Refuses what cannot be the id of a repository: a path to nothing, a file, or malformed text.

    Raises:
        UnknownModelError: no such directory, or a file.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    path = Path(name).expanduser()
    if path.is_file():
        raise UnknownModelError(
            f"{name} is a file; expected a directory or a hub id. To open OpenFlamingo's checkpoint.pt, convert it: "
            f"flamboyance convert {name} DIRECTORY"
        )
    if not name.startswith((".", "/", "~")) and "\\" not in name:
        try:
            return validate_repo_id(name)
        except HFValidationError:
            pass
    raise UnknownModelError(
        f"no such directory: '{name}'{names.suggestion(name)} (looked in {Path.cwd()}); give a model's directory, "
        f"'mini', or a released name such as openflamingo/{names.RELEASED[0]}"
    )


def snapshot(name: str, patterns: list[str], **hub: Any) -> Path:
    """The files of a repository that match `patterns`, downloaded or from the cache.

    Raises:
        UnknownModelError: there is no such repository, or it cannot be reached and is not in the cache.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    check(name)
    hub = options(name, hub)
    try:
        return Path(snapshot_download(name, allow_patterns=patterns, **hub))
    except LocalEntryNotFoundError:
        raise missing(name) from None
    except HfHubHTTPError as error:
        raise missing(name, str(error)) from error
