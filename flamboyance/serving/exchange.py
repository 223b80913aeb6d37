"""One request and its answer over ASGI: the body within its limits, events, errors, and clients that leave."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from flamboyance.serving.errors import ApiError
from flamboyance.serving.service import Service

NO_ANSWER = 499  # the status in the metrics of a request whose client has left


def error_response(error: ApiError) -> JSONResponse:
    return JSONResponse(error.body(), error.status, error.headers())


class Exchange:
    """What an `Action` works with."""

    def __init__(self, service: Service, scope: Scope, receive: Receive, send: Send):
        self.service, self.headers = service, Headers(scope=scope)
        self._scope, self._receive, self._send = scope, receive, send
        self._task: Any = asyncio.current_task()
        self._watch: asyncio.Task[None] | None = None
        self._reserved = 0
        self._started = self._finished = False
        self.gone = False

    async def body(self) -> bytes:
        """The whole body. From then on, the task is cancelled when the client leaves.

        Raises:
            ApiError: 413, too large; 408, not sent in time; 429, too many large bodies at a time.
        """
        limits = self.service.limits
        data = bytearray()
        try:
            if int(self.headers.get("content-length", "0")) > limits.body:
                raise self._too_large()
            async with asyncio.timeout(limits.body_seconds):
                more = True
                while more:
                    message = await self._receive()
                    if message["type"] == "http.disconnect":
                        self._leave()
                        break
                    data += message.get("body", b"")
                    more = message.get("more_body", False)
                    if len(data) > limits.body:
                        raise self._too_large()
                    self._reserve(len(data))
        except TimeoutError:
            seconds = limits.body_seconds
            raise ApiError(408, f"the body was not sent within {seconds:g} seconds", None, "slow_body") from None
        self._watch = asyncio.create_task(self._until_gone())
        return bytes(data)

    def _too_large(self) -> ApiError:
        most = f"{self.service.limits.body / 2**20:g} MiB"
        return ApiError(413, f"the body is larger than {most}", None, "body_too_large")

    def _reserve(self, size: int) -> None:
        self.service.body_bytes += size - self._reserved
        self._reserved = size
        if self.service.body_bytes > self.service.limits.bodies:
            raise ApiError(429, "too many large bodies at a time; try again", None, "busy")

    def release(self) -> None:
        """The body is not needed any more."""
        self._reserve(0)

    async def _until_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if not self._finished:
            self._leave()

    def _leave(self) -> None:
        self.gone = True
        self._task.cancel()

    async def respond(self, response: Response) -> None:
        self._started = self._finished = True
        await response(self._scope, self._receive, self._send)

    async def json(self, content: Any, status: int = 200) -> None:
        await self.respond(JSONResponse(content, status))

    async def events(self, chunks: AsyncGenerator[dict[str, Any]]) -> None:
        """Server-sent events. The status follows from the first chunk: what fails before it is an error response."""
        async with aclosing(chunks):
            async for chunk in chunks:
                if not self._started:
                    self._started = True
                    headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]
                    headers.append((b"x-accel-buffering", b"no"))  # for nginx
                    await self._send({"type": "http.response.start", "status": 200, "headers": headers})
                await self._event(json.dumps(chunk, ensure_ascii=False, separators=(",", ":")))
        await self._event("[DONE]", last=True)

    async def _event(self, data: str, last: bool = False) -> None:
        self._finished = self._finished or last
        body = f"data: {data}\n\n".encode()
        await self._send({"type": "http.response.body", "body": body, "more_body": not last})

    async def fail(self, error: ApiError) -> None:
        if not self._started:
            await self.respond(error_response(error))
        elif not self._finished:
            await self._event(json.dumps(error.body()), last=True)

    def close(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
        self.release()


class Action(Response):
    """A response that reads its request: it is admitted or refused first, ends in time, and is cancelled if the client
    leaves.

    Args:
        work: reads the body and answers.
    """

    def __init__(self, service: Service, work: Callable[[Exchange], Awaitable[None]]):
        super().__init__()
        self.service, self.work = service, work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(self.service, scope, receive, send)
        try:
            async with self.service.admitted():
                await self.work(exchange)
        except ApiError as error:
            await exchange.fail(error)
        except asyncio.CancelledError:
            if not exchange.gone:
                raise
            exchange._task.uncancel()
        finally:
            exchange.close()
