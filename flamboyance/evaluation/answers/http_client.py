"""Sends JSON to a server that speaks OpenAI's API, patiently: what is worth repeating is repeated.

A request is repeated if the server is busy (429) or fails (5xx), and if the connection breaks, takes too long, or ends
before the reply does. Between two attempts it waits twice as long as before, a random part of that, so that threads do
not come back together; or as long as the server asks for (Retry-After), and so do all other threads.
"""

from __future__ import annotations

import email.utils
import http.client
import json
import random
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from flamboyance.evaluation.answers.budget import Budget

REPEATED = frozenset((408, 409, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529))
LARGEST_REPLY = 64 << 20  # bytes
LONGEST_WAIT = 60.0  # seconds between two attempts, unless the server asks for more
LONGEST_ASKED = 600.0  # a server that asks for a longer pause has failed
LONGEST_MESSAGE = 300  # characters of a server's own words in an error

Reply = dict[str, Any]


class RefusedError(ValueError):
    """A server's refusal, or its last failure after all attempts.

    Attributes:
        status: HTTP's; None if the server could not be reached or broke off.
        said: the server's own words, shortened, without the key.
        code: the server's name of the error, such as "invalid_api_key".
    """

    def __init__(self, message: str, status: int | None = None, said: str = "", code: str = ""):
        super().__init__(message)
        self.status, self.said, self.code = status, said, code


class Client:
    """A server, by the address to which OpenAI's clients add `/chat/completions`.

    Args:
        url: such as `http://localhost:8000/v1`.
        key: sent with each request; never written anywhere.
        timeout: the most seconds for one attempt, connection and reply together.
        attempts: how often a request is sent before it counts as failed.
        first_wait: the longest wait after the first attempt, in seconds.

    Raises:
        ValueError: the address is no such address, or holds a password.
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        timeout: float = 300.0,
        attempts: int = 8,
        budget: Budget | None = None,
        first_wait: float = 1.0,
    ):
        self.url = checked_url(url)
        self._key = key
        self.timeout, self.attempts, self.first_wait = timeout, attempts, first_wait
        self.budget = budget or Budget()
        self.reached = False  # whether this server has ever answered
        self._not_before = 0.0  # by time.monotonic
        self._closed = threading.Event()
        host = urlsplit(self.url).hostname or ""
        local = host == "localhost" or host.startswith("127.") or host == "::1"
        # A redirect would carry the key to another server.
        handlers: list[urllib.request.BaseHandler] = [_NoRedirects()]
        if local:
            handlers.append(urllib.request.ProxyHandler({}))
        self._opener = urllib.request.build_opener(*handlers)

    @property
    def has_key(self) -> bool:
        return bool(self._key)

    def close(self) -> None:
        """Ends all waiting; requests that are under way are not waited for."""
        self._closed.set()

    def get(self, path: str) -> Reply:
        """What the server says of itself; one attempt.

        Raises:
            RefusedError: it says nothing.
        """
        try:
            return self._once(urllib.request.Request(f"{self.url}/{path}", headers=self._headers()), _any_object)
        except _Again as failure:
            raise failure.error from None

    def post(self, path: str, body: Reply, check: Callable[[Reply], None], attempts: int | None = None) -> Reply:
        """The server's reply.

        Args:
            check: raises ValueError for a reply that is not whole, which is asked for again.
            attempts: instead of the client's.

        Raises:
            RefusedError: the server refuses, or failed in all attempts.
            BudgetSpentError: the budget is spent.
        """
        data = json.dumps(body).encode("ascii")
        whole = attempts or self.attempts
        for attempt in range(whole):
            self._pause()
            request = urllib.request.Request(f"{self.url}/{path}", data, self._headers(), method="POST")
            try:
                return self._counted(request, check)
            except _Again as failure:
                # A server that has never answered is not there; one that has may be starting again.
                hopeless = failure.unreachable and not self.reached
                if hopeless or attempt + 1 == whole or (failure.wait or 0) > LONGEST_ASKED:
                    times = f" (in {attempt + 1} attempts)" if attempt else ""
                    last = failure.error
                    raise RefusedError(f"{last}{times}", last.status, last.said, last.code) from None
                longest = min(LONGEST_WAIT, self.first_wait * 2**attempt)
                wait = longest * random.uniform(0.5, 1.0)
                if failure.wait is not None:  # what the server asks for, which all threads heed
                    wait = failure.wait + 0.1 * longest * random.random()
                    self._not_before = max(self._not_before, time.monotonic() + failure.wait)
                self._sleep(wait)
        raise AssertionError("unreachable")

    # One attempt ---------------------------------------------------------------------------------------------------

    def _counted(self, request: urllib.request.Request, check: Callable[[Reply], None]) -> Reply:
        self.budget.begin()
        tokens: int | None = 0
        try:
            reply = self._once(request, check)
            tokens = _tokens(reply)
            return reply
        finally:
            self.budget.end(tokens)

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "flamboyance"}
        return headers | ({"Authorization": f"Bearer {self._key}"} if self._key else {})

    def _once(self, request: urllib.request.Request, check: Callable[[Reply], None]) -> Reply:
        deadline = time.monotonic() + self.timeout
        try:
            with self._opener.open(request, timeout=self.timeout) as response:
                self.reached = True
                content = _read(response, deadline)
            reply = json.loads(content)
            if not isinstance(reply, dict):
                raise ValueError("it is no object")
            if "error" in reply and "choices" not in reply:  # some servers report errors with status 200
                said, code = self._said(content)
                raise RefusedError(f"{self.url} answers with an error: {said}", 200, said, code)
            check(reply)
            return reply
        except urllib.error.HTTPError as error:
            self.reached = True
            raise self._refusal(error, deadline) from None
        except RefusedError:
            raise
        except ValueError as error:  # cut off, or not JSON
            raise _Again(RefusedError(f"{self.url} sends replies that are not whole: {error}")) from None
        except (OSError, http.client.HTTPException) as error:
            raise self._broken(error) from None

    def _refusal(self, error: urllib.error.HTTPError, deadline: float) -> Exception:
        try:
            with error:
                content = _read(error, deadline)
        except (OSError, ValueError, http.client.HTTPException):
            content = b""
        said, code = self._said(content)
        if 300 <= error.code < 400:
            target = error.headers.get("Location", "elsewhere")
            return RefusedError(f"{self.url} redirects to {target}: give that address", error.code, said, code)
        words = f": {said}" if said else ""
        refused = RefusedError(f"{self.url} answers with HTTP {error.code}{words}", error.code, said, code)
        if error.code not in REPEATED or code in ("insufficient_quota", "billing_hard_limit_reached"):
            return refused
        return _Again(refused, _asked_wait(error.headers))

    def _said(self, content: bytes) -> tuple[str, str]:
        """The message and the code in an error's body."""
        text = content[:100_000].decode("utf-8", "replace")
        code = ""
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            found = text
        while isinstance(found, dict):
            code = str(found.get("code") or found.get("type") or code)
            found = next((found[key] for key in ("error", "message", "detail") if found.get(key)), "")
        said = found if isinstance(found, str) else json.dumps(found)
        if self._key:
            said = said.replace(self._key, "***")
        return " ".join(said.split())[:LONGEST_MESSAGE], code

    def _broken(self, error: Exception) -> Exception:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(reason, ssl.SSLCertVerificationError):
            return RefusedError(f"{self.url} has no valid certificate: {reason.verify_message}")
        if isinstance(reason, TimeoutError):
            late = RefusedError(f"{self.url} took longer than {self.timeout:g} seconds (--timeout)")
            return _Again(late, unreachable=isinstance(error, urllib.error.URLError))
        if isinstance(reason, socket.gaierror):
            host = urlsplit(self.url).hostname
            return _Again(RefusedError(f"{self.url} cannot be reached: no such host {host!r}"), unreachable=True)
        if isinstance(error, urllib.error.URLError) and isinstance(reason, OSError):
            why = getattr(reason, "strerror", None) or str(reason)
            unreachable = not isinstance(reason, ConnectionResetError | BrokenPipeError)
            return _Again(RefusedError(f"{self.url} cannot be reached: {why}"), unreachable=unreachable)
        what = str(reason) or type(reason).__name__
        return _Again(RefusedError(f"{self.url} breaks off its replies: {what}"))

    # Waiting -------------------------------------------------------------------------------------------------------

    def _pause(self) -> None:
        while (wait := self._not_before - time.monotonic()) > 0:
            self._sleep(wait)
        if self._closed.is_set():
            raise RefusedError("the run has ended")

    def _sleep(self, seconds: float) -> None:
        if self._closed.wait(seconds):
            raise RefusedError("the run has ended")


class _Again(Exception):
    """A failure that may pass.

    Attributes:
        wait: how long the server asks to wait, in seconds.
        unreachable: no connection was made.
    """

    def __init__(self, error: RefusedError, wait: float | None = None, unreachable: bool = False):
        super().__init__(str(error))
        self.error, self.wait, self.unreachable = error, wait, unreachable


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def is_address(model: str) -> bool:
    """Whether a model's name is a server's address."""
    return model.startswith(("http://", "https://"))


def checked_url(url: str) -> str:
    """The address without a slash at its end, and without `/chat/completions`.

    Raises:
        ValueError: it is not `http://…` or `https://…`, or holds a password or a query.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"{url!r} is no address: {error}; expected one such as http://localhost:8000/v1") from None
    if parts.scheme not in ("http", "https") or not host:
        raise ValueError(f"{url!r} is no address; expected one such as http://localhost:8000/v1")
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError(
            f"the address of {host} holds a user's name or a query, which would be written to run.json; put the key in "
            "the environment (OPENAI_API_KEY, or the variable of --key-variable)"
        )
    return url.rstrip("/").removesuffix("/chat/completions")


def _read(response: Any, deadline: float) -> bytes:
    """The body of a reply.

    Raises:
        ValueError: it ends too early, or is too large.
        TimeoutError: it is not complete by the deadline.
    """
    parts, size = [], 0
    while part := response.read1(1 << 16):
        parts.append(part)
        size += len(part)
        if size > LARGEST_REPLY:
            raise ValueError(f"more than {LARGEST_REPLY:,} bytes")
        if time.monotonic() > deadline:
            raise TimeoutError
    if getattr(response, "length", None):  # bytes that were announced and have not come
        raise ValueError(f"cut off after {size:,} bytes")
    return b"".join(parts)


def _any_object(_: Reply) -> None:
    """Every reply is whole."""


def _tokens(reply: Reply) -> int | None:
    usage = reply.get("usage")
    if not isinstance(usage, dict):
        return None
    whole, asked, answered = (usage.get(f"{name}_tokens") for name in ("total", "prompt", "completion"))
    if isinstance(whole, int):
        return whole
    return asked + answered if isinstance(asked, int) and isinstance(answered, int) else None


def _asked_wait(headers: Any) -> float | None:
    """The pause that a server asks for, in seconds: Retry-After, as a number or a date."""
    text = (headers.get("retry-after-ms") or "").strip()
    try:
        if text:
            return max(0.0, float(text) / 1000)
        text = (headers.get("Retry-After") or "").strip()
        if not text:
            return None
        if text.replace(".", "", 1).isdecimal():
            return float(text)
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None
