"""One server's state, and how it answers: what does not depend on the web framework."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

from torch import Tensor

from flamboyance.files import is_web_url
from flamboyance.serving import protocol
from flamboyance.serving.access import Keys
from flamboyance.serving.batching import Busy, Engine, Picture, Piece, Request, Stopped
from flamboyance.serving.errors import ApiError, bad
from flamboyance.serving.limits import Limits
from flamboyance.serving.metrics import Metrics
from flamboyance.serving.pictures import PictureReader
from flamboyance.serving.prompts import media_urls, model_and_task, request_of
from flamboyance.serving.protocol import ChatBody, TaskBody, read_body
from flamboyance.serving.tasks import StoredTask, TaskStore, read_template

READERS = 2  # threads that read bodies and decode images
BUSY = "the server has as many requests as it takes on; try again"
Value = TypeVar("Value")


def served_name(model: str) -> str:
    """The name that clients give for a model: that of its directory, also of ".", or the model's own."""
    return Path(os.path.abspath(model)).name if Path(model).is_dir() else model


class Service:
    """A model that is served under a name.

    Args:
        fetch: fetches a remote image or video, (URL, place in the request) -> content; None: remote URLs are refused.
        tasks: the folder of few-shot tasks.
        loopback: the server listens on this machine's own address only.

    Attributes:
        draining: the server is shutting down: new requests are refused, running ones end.
    """

    def __init__(
        self,
        name: str,
        engine: Engine,
        limits: Limits,
        keys: Keys | None = None,
        fetch: Callable[[str, str], Any] | None = None,
        tasks: Path | None = None,
        loopback: bool = False,
    ):
        self.name, self.engine, self.limits = name, engine, limits
        self.keys, self.loopback = keys or Keys(), loopback
        self.tasks = TaskStore(engine, limits.tasks, tasks)
        self.pictures = PictureReader(engine, engine.processor, limits)
        self.metrics = Metrics(lambda: engine.counts, lambda: self.in_flight)
        self.created = int(time.time())
        self.draining = False
        self.in_flight = 0
        self.body_bytes = 0
        self._fetch = fetch
        self._pool = ThreadPoolExecutor(READERS, "flamboyance-reader")
        # One video at a time, which does not keep bodies and images waiting.
        self._video_pool = ThreadPoolExecutor(1, "flamboyance-videos")

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._video_pool.shutdown(wait=False, cancel_futures=True)
        self.pictures.close()
        self.engine.close()

    # Admission --------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def admitted(self) -> AsyncGenerator[None]:
        """A request that counts as being worked on, within its time.

        Raises:
            ApiError: 503 while the server shuts down, 429 if it is busy, 504 if the time is over.
        """
        if self.draining:
            raise ApiError(503, "the server is shutting down", None, "shutting_down")
        if self.in_flight >= self.limits.rows + self.limits.queue:
            raise ApiError(429, BUSY, None, "busy")
        self.in_flight += 1
        try:
            async with asyncio.timeout(self.limits.seconds):
                yield
        except TimeoutError:
            raise ApiError(
                504, f"the request took longer than {self.limits.seconds:g} seconds", None, "timeout"
            ) from None
        finally:
            self.in_flight -= 1

    async def in_pool(self, function: Callable[..., Value], *given: Any) -> Value:
        """Runs a function in a reader's thread."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, partial(function, *given))

    # Requests ---------------------------------------------------------------------------------------------------

    async def read_chat(self, data: bytes) -> tuple[ChatBody, Request]:
        """
        Raises:
            ApiError: what is wrong with the request.
        """
        body: ChatBody = await self.in_pool(read_body, ChatBody, data)
        task = model_and_task(body.model, self.name)
        places = media_urls(body, self.limits, self.pictures.takes_videos)
        stored = None if task is None else await self.in_pool(self.tasks.find, task)
        pictures = await self._pictures(places)
        return body, await self.in_pool(request_of, body, pictures, stored, self.engine, self.limits)

    async def _pictures(self, sources: Sequence[tuple[str, str | bytes]]) -> list[Picture]:
        """
        Args:
            sources: the place in the request and the URL, or the content, of each image and video.

        Raises:
            ApiError: one of them cannot be used, or the videos have too many frames together.
        """
        remote = [place for place, source in sources if _is_remote(source)]
        if remote and self._fetch is None:
            raise bad(remote[0], f"{remote[0]}: remote files are not fetched; send a data: URL", "remote_url")
        found, frames = [], 0
        for place, source in sources:
            picture, decoded = await self._picture(source, place)
            frames += decoded
            if frames > self.limits.frames:
                most = f"{self.limits.frames} frames together"
                raise bad(place, f"{place}: the videos have more than {most}; send fewer", "too_many_frames")
            found.append(picture)
        return found

    async def _picture(self, source: str | bytes, place: str) -> tuple[Picture, int]:
        """One image or video, and the frames of a video that had to be decoded. What was fetched is not held longer:
        a request may name many large files."""
        if self._fetch is not None and _is_remote(source):
            source = await self._fetch(source, place)
        picture = await self.in_pool(self.pictures.read, source, place)
        if not isinstance(picture, bytes):
            return picture, 0
        loop = asyncio.get_running_loop()
        video = await loop.run_in_executor(self._video_pool, self.pictures.read_video, picture, place)
        return video, len(video.pixels) if isinstance(video.pixels, Tensor) else 0

    async def pieces(self, request: Request) -> AsyncGenerator[Piece]:
        """The pieces of an answer as they come. Leaving the iteration cancels the request.

        Raises:
            ApiError: 429, 503, or 500 if the computation fails.
        """
        loop = asyncio.get_running_loop()
        news: asyncio.Queue[Piece | Exception] = asyncio.Queue()
        try:
            ticket = self.engine.submit(request, lambda piece: _deliver(loop, news, piece))
        except Busy:
            raise ApiError(429, BUSY, None, "busy") from None
        except Stopped as error:
            raise ApiError(503, str(error), None, "shutting_down") from None
        began, running = time.perf_counter(), request.choices
        try:
            while running:
                piece = await news.get()
                if isinstance(piece, Exception):
                    raise _as_api_error(piece)
                if began:
                    self.metrics.first.observe(time.perf_counter() - began)
                    began = 0.0
                running -= piece.ended is not None
                yield piece
        finally:
            ticket.cancel()

    async def complete(self, request: Request, model: str) -> dict[str, Any]:
        """The whole answer."""
        async with aclosing(self.pieces(request)) as news:
            pieces = [piece async for piece in news if piece.ended is not None]
        used = self._usage(request, sum(piece.count for piece in pieces))
        return protocol.completion(protocol.new_id(), model, pieces, used, partial(self._logprobs, request))

    async def stream(self, request: Request, model: str, with_usage: bool) -> AsyncGenerator[dict[str, Any]]:
        """The chunks of a streamed answer."""
        name, created = protocol.new_id(), int(time.time())
        counts = dict.fromkeys(range(request.choices), 0)
        begun: set[int] = set()
        async with aclosing(self.pieces(request)) as pieces:
            async for piece in pieces:
                counts[piece.choice] = piece.count
                choice = protocol.delta(piece, partial(self._logprobs, request), piece.choice not in begun)
                begun.add(piece.choice)
                yield protocol.chunk(name, model, created, [choice])
        if with_usage:
            yield protocol.chunk(name, model, created, [], self._usage(request, sum(counts.values())))

    def _usage(self, request: Request, generated: int) -> dict[str, Any]:
        return protocol.usage(len(request.ids), request.computed, generated)

    def _logprobs(self, request: Request, piece: Piece) -> dict[str, Any] | None:
        if request.sampling.logprobs is None:
            return None
        return protocol.token_logprobs(piece.tokens, self.engine.processor.decode)

    # Tasks and models -------------------------------------------------------------------------------------------

    async def add_task(self, body: TaskBody, images: Sequence[bytes] | None = None) -> StoredTask:
        """
        Args:
            images: the files' contents, if they came beside the body; otherwise each demonstration has an `image`.

        Raises:
            ApiError: what is wrong with the request.
        """
        if len(body.demonstrations) > self.limits.images:
            count = len(body.demonstrations)
            raise bad("demonstrations", f"the task has {count} demonstrations; this server takes {self.limits.images}")
        if images is not None:
            return await self._add_task(body, [("image", image) for image in images])
        if missing := [place for place, shot in enumerate(body.demonstrations) if "image" not in shot]:
            place = f"demonstrations.{missing[0]}"
            raise bad(place, f"{place} has no image; expected a data: URL as 'image'")
        places = [(f"demonstrations.{i}.image", shot["image"]) for i, shot in enumerate(body.demonstrations)]
        return await self._add_task(body, places)

    async def _add_task(self, body: TaskBody, sources: Sequence[tuple[str, str | bytes]]) -> StoredTask:
        template = read_template(body.template)
        values = []
        for place, shot in enumerate(body.demonstrations):
            given = [name for name in shot if name != "image"]
            if set(given) != set(template.fields):
                raise bad(
                    f"demonstrations.{place}",
                    f"demonstrations.{place} has {', '.join(given) or 'no text'} beside its image; expected "
                    f"{', '.join(template.fields)}, the fields of {template.pattern!r}",
                )
            values.append(tuple(shot[field] for field in template.fields))
        pictures = await self._pictures(sources)
        made = self._pool.submit(self.tasks.add, body.name, template, list(zip(pictures, values, strict=True)))
        try:
            return await asyncio.wrap_future(made)
        except asyncio.CancelledError:  # out of time, or the client has left: its next try must find the name free
            made.add_done_callback(self._forget)
            raise

    def _forget(self, made: Future[StoredTask]) -> None:
        """Deletes a task that was stored after its request had ended."""
        if not made.cancelled() and made.exception() is None:
            with suppress(ApiError):
                self.tasks.delete(made.result().name)

    def models(self) -> list[dict[str, Any]]:
        """The model, and each task as a model of its own. In a reader's thread."""
        about: dict[str, Any] = {"object": "model", "owned_by": "flamboyance"}
        tasks = [{"id": f"{self.name}:{task.name}", "created": task.created} | about for task in self.tasks.all()]
        return [{"id": self.name, "created": self.created} | about, *tasks]


def _is_remote(source: str | bytes) -> TypeGuard[str]:
    return isinstance(source, str) and is_web_url(source)


def _deliver(loop: asyncio.AbstractEventLoop, news: asyncio.Queue[Any], piece: Any) -> None:
    try:
        loop.call_soon_threadsafe(news.put_nowait, piece)
    except RuntimeError:  # the loop is closed: nobody waits for the answer
        return


def _as_api_error(error: Exception) -> ApiError:
    if isinstance(error, Stopped):
        return ApiError(503, str(error), None, "shutting_down")
    if isinstance(error, ValueError):
        return bad("messages", str(error))
    return ApiError(500, "the computation failed; the server's log has the error", None, "internal_error")
