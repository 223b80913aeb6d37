"""uvicorn's server, with limits on slow clients and a shutdown that lets running requests end."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from flamboyance.serving.app import make_app
from flamboyance.serving.service import Service

LINGER = 5.0  # seconds in which a client may send the rest of a body that was refused, to read why
POLL = 0.05


class HttpServer(uvicorn.Server):
    """Serves a service on a socket.

        server = HttpServer(service, listen("127.0.0.1", 0))
        server.run()

    SIGTERM and Ctrl-C drain it: new requests get 503, running ones end; a second one ends it at once.
    """

    def __init__(self, service: Service, listening: socket.socket):
        limits = service.limits

        def protocol(*given: Any, **named: Any) -> H11Protocol:
            return GuardedProtocol(limits.header_seconds, limits.stall_seconds, *given, **named)

        config = uvicorn.Config(
            make_app(service),
            http=protocol,  # ty: ignore[invalid-argument-type]  a factory, as uvicorn calls it
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            limit_concurrency=limits.connections,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=int(limits.seconds) + 5,
        )
        super().__init__(config)
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
        self.service, self.socket = service, listening

    @property
    def url(self) -> str:
        host, port = self.socket.getsockname()[:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    def run(self, sockets: Any = None, ready: Callable[[str], None] = lambda url: None) -> None:
        """Serves until it is stopped. `ready` is called with the URL when connections are accepted."""
        asyncio.run(self._until_stopped(ready))

    async def _until_stopped(self, ready: Callable[[str], None]) -> None:
        self._loop = loop = asyncio.get_running_loop()
        caught = []
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                loop.add_signal_handler(number, self.drain)
                caught.append(number)
            except (ValueError, RuntimeError, NotImplementedError):  # another thread than the main one, or Windows
                break
        try:
            serving = asyncio.create_task(self._serve([self.socket]))
            while not self.started and not serving.done():
                await asyncio.sleep(POLL)
            if self.started:
                ready(self.url)
            await serving
        finally:
            for number in caught:
                loop.remove_signal_handler(number)

    def stop(self) -> None:
        """`drain`, from any thread."""
        self._loop.call_soon_threadsafe(self.drain)

    def drain(self) -> None:
        """Refuses new requests, and stops when the running ones have ended; stops at once the second time. In the
        loop's thread."""
        if self.service.draining:
            self.should_exit = self.force_exit = True
            return
        self.service.draining = True
        self._draining = asyncio.get_running_loop().create_task(self._exit_when_done())

    async def _exit_when_done(self) -> None:
        while self.service.in_flight:
            await asyncio.sleep(POLL)
        self.should_exit = True


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 is any free one.

    Raises:
        OSError: the address cannot be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        made = socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise OSError(f"cannot listen on {host} port {port}: {error.strerror or error}") from error
    made.setblocking(False)
    return made


class GuardedProtocol(H11Protocol):
    """A connection that does not wait forever: for headers, for the rest of a refused body, or for a client that does
    not read its answer.

    Args:
        header_seconds: from the first byte of a request, or the connection's beginning, to the end of its headers.
        stall_seconds: that an answer may wait for its reader.
    """

    def __init__(self, header_seconds: float, stall_seconds: float, *given: Any, **named: Any):
        super().__init__(*given, **named)
        self._header_seconds, self._stall_seconds = header_seconds, stall_seconds
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def _start(self, name: str, seconds: float) -> None:
        if name not in self._timers:
            self._timers[name] = self.loop.call_later(seconds, self.transport.abort)

    def _stop(self, name: str) -> None:
        if (timer := self._timers.pop(name, None)) is not None:
            timer.cancel()

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._start("headers", self._header_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        for name in list(self._timers):
            self._stop(name)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self._start("headers", self._header_seconds)
        else:
            self._stop("headers")
        if self.conn.their_state is not h11.SEND_BODY:
            self._stop("rest")

    def on_response_complete(self) -> None:
        if self.conn.their_state is h11.SEND_BODY:
            self._start("rest", LINGER)
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._start("reader", self._stall_seconds)

    def resume_writing(self) -> None:
        self._stop("reader")
        super().resume_writing()
