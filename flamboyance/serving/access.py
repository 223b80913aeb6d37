"""Who may use the server: API keys, and no pages of other sites in a visitor's browser."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterable, Mapping

from flamboyance.files import read_text
from flamboyance.serving.errors import ApiError

VARIABLE = "FLAMBOYANCE_API_KEYS"
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


class Keys:
    """API keys. Their hashes are kept, so that no log or traceback shows them."""

    def __init__(self, keys: Iterable[str] = ()):
        self._hashes = [_hash(key) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._hashes)

    def __contains__(self, key: str) -> bool:
        given = _hash(key)
        return sum(hmac.compare_digest(given, known) for known in self._hashes) > 0  # in the same time for any key

    def __repr__(self) -> str:
        return f"Keys({len(self._hashes)})"

    @classmethod
    def read(cls, file: str | None) -> Keys:
        """The keys of a file, one on each line, or else of the environment variable, separated by commas or lines.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is no text, or holds no key, or one of fewer than 16 characters.
        """
        if file is not None:
            text, source = read_text(file), file
        elif VARIABLE in os.environ:
            text, source = os.environ[VARIABLE].replace(",", "\n"), VARIABLE
        else:
            return cls()
        lines = (line.strip() for line in text.splitlines())
        keys = [line for line in lines if line and not line.startswith("#")]
        if not keys:
            raise ValueError(f"{source} holds no API key; expected one on each line")
        if short := sum(len(key) < 16 for key in keys):
            raise ValueError(
                f"{short} of the {len(keys)} keys of {source} are shorter than 16 characters; make them with "
                "python -c 'import secrets; print(secrets.token_urlsafe(32))'"
            )
        return cls(keys)


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def check(headers: Mapping[str, str], keys: Keys, loopback: bool) -> None:
    """
    Args:
        loopback: the server listens on this machine's own address only.

    Raises:
        ApiError: 401, no valid key; 403, a request that a page of another site makes in a browser: cross-site ones name
            it in Origin, and those of a name that was turned to this address (DNS rebinding) in Host.
    """
    host = headers.get("host", "")
    name = host if host.endswith("]") else host.rpartition(":")[0] or host
    if loopback and name not in LOOPBACK:
        raise ApiError(403, f"the server listens on loopback; it is not {host!r:.100}", None, "wrong_host")
    origin = headers.get("origin")
    if origin is not None and origin.partition("://")[2] != host:
        raise ApiError(403, "requests from the pages of other sites are refused", None, "wrong_origin")
    if not keys:
        return
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not key:
        raise ApiError(401, "no API key; give one as 'Authorization: Bearer KEY'", None, "missing_api_key")
    if key.strip() not in keys:
        raise ApiError(401, "the API key is not valid", None, "invalid_api_key")
