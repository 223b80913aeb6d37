"""The routes of the server."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.datastructures import Headers, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flamboyance.serving.access import check
from flamboyance.serving.errors import ApiError, bad
from flamboyance.serving.exchange import NO_ANSWER, Action, Exchange, error_response
from flamboyance.serving.metrics import CONTENT_TYPE
from flamboyance.serving.protocol import ChatBody, TaskBody, read_body
from flamboyance.serving.service import Service

JSON, FORM = "application/json", "multipart/form-data"


def make_app(service: Service) -> FastAPI:
    """The ASGI application of a service. It closes the service at its end."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        yield
        await asyncio.to_thread(service.close)

    app = FastAPI(title="Flamboyance", lifespan=lifespan, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.add_middleware(Gate, service=service)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    _add_routes(app, service)
    return app


def _add_routes(app: FastAPI, service: Service) -> None:
    @app.post("/v1/chat/completions", openapi_extra=_described(ChatBody))
    async def chat() -> Response:
        """A chat completion, as OpenAI defines it."""
        return Action(service, _chat)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The model, and each few-shot task as a model of its own."""
        return {"object": "list", "data": await service.in_pool(service.models)}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        """One model or task."""
        found = next((one for one in await service.in_pool(service.models) if one["id"] == name), None)
        if found is None:
            raise ApiError(404, f"there is no model {name!r}", "model", "model_not_found")
        return found

    @app.post("/v1/tasks", status_code=201, openapi_extra=_described(TaskBody))
    async def add_task() -> Response:
        """Stores a few-shot task: JSON with images as data URLs, or a form with files."""
        return Action(service, _add_task)

    @app.get("/v1/tasks")
    async def tasks() -> dict[str, Any]:
        """All few-shot tasks."""
        found = await service.in_pool(service.tasks.all)
        return {"object": "list", "data": [task.described(service.name) for task in found]}

    @app.get("/v1/tasks/{name}")
    async def task(name: str) -> dict[str, Any]:
        """One few-shot task."""
        return (await service.in_pool(service.tasks.find, name)).described(service.name)

    @app.delete("/v1/tasks/{name}")
    async def delete_task(name: str) -> dict[str, Any]:
        """Deletes a few-shot task. Requests that use it already are not affected."""
        await service.in_pool(service.tasks.delete, name)
        return {"id": name, "object": "task", "deleted": True}

    @app.get("/health")
    async def health() -> Response:
        """Whether the server works: 200, or 503 if its computing thread has ended."""
        return JSONResponse({"status": "ok"}) if service.engine.alive else JSONResponse({"status": "failed"}, 503)

    @app.get("/ready")
    async def ready() -> Response:
        """Whether new requests should be sent here: 503 while the server shuts down."""
        if service.draining or not service.engine.alive:
            return JSONResponse({"status": "draining" if service.draining else "failed"}, 503)
        return JSONResponse({"status": "ready"})

    @app.get("/metrics")
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)


def _described(body: Any) -> dict[str, Any]:
    """The body's schema, for /openapi.json."""
    return {"requestBody": {"required": True, "content": {JSON: {"schema": body.model_json_schema()}}}}


# What the routes that read a body do ----------------------------------------------------------------------------------


async def _chat(exchange: Exchange) -> None:
    _expect(exchange, JSON)
    service = exchange.service
    body, request = await service.read_chat(await exchange.body())
    exchange.release()
    if body.stream:
        with_usage = body.stream_options is not None and body.stream_options.include_usage
        await exchange.events(service.stream(request, body.model, with_usage))
    else:
        if body.stream_options is not None:
            raise bad("stream_options", "stream_options is given without stream; set stream to true")
        await exchange.json(await service.complete(request, body.model))


async def _add_task(exchange: Exchange) -> None:
    kind = _expect(exchange, JSON, FORM)
    service = exchange.service
    data = await exchange.body()
    if kind == FORM:
        body, images = await service.in_pool(_read_form, exchange.headers, data)
        task = await service.add_task(body, images)
    else:
        task = await service.add_task(await service.in_pool(read_body, TaskBody, data))
    await exchange.json(task.described(service.name), 201)


def _expect(exchange: Exchange, *kinds: str) -> str:
    """The content type of the request. (Browsers ask before they send JSON to other sites, but not for text.)"""
    given = exchange.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given not in kinds:
        raise ApiError(415, f"content-type is {given!r:.100}; expected {' or '.join(kinds)}", None, "content_type")
    return given


def _read_form(headers: Headers, data: bytes) -> tuple[TaskBody, list[bytes]]:
    """A form with `name`, `template`, and for each demonstration a file `image` and its texts, in the same order."""

    async def whole() -> AsyncGenerator[bytes, None]:
        yield data

    async def parsed() -> list[tuple[str, str | bytes]]:
        parser = MultiPartParser(headers, whole(), max_files=1000, max_fields=1000, max_part_size=2**20)
        form = await parser.parse()
        try:
            fields = form.multi_items()
            return [(key, await one.read() if isinstance(one, UploadFile) else one) for key, one in fields]
        finally:
            await form.close()

    try:
        fields = asyncio.run(parsed())  # in a reader's thread, which has no loop
    except (MultiPartException, KeyError) as error:
        raise bad(None, f"the form cannot be read: {getattr(error, 'message', error)}") from None
    by_name: dict[str, list[Any]] = {}
    for key, value in fields:
        by_name.setdefault(key, []).append(value)
    images = by_name.pop("image", [])
    if not all(isinstance(image, bytes) for image in images):
        raise bad("image", "image is a text; expected a file, as curl -F image=@cat.jpg sends it")
    single = {name: by_name.pop(name)[-1] for name in ("name", "template") if name in by_name}
    for name, values in by_name.items():
        if len(values) != len(images):
            raise bad(name, f"the form has {len(images)} image(s) and {len(values)} of {name!r}; expected one each")
    shots = [{name: values[i] for name, values in by_name.items()} for i in range(len(images))]
    if any(isinstance(value, bytes) for shot in [single, *shots] for value in shot.values()):
        raise bad(None, "a field other than image is a file; expected a text")
    # As JSON, so that a form and a JSON body get the same checks.
    return read_body(TaskBody, json.dumps(single | {"demonstrations": shots}).encode()), images


# Errors and access ----------------------------------------------------------------------------------------------------


async def _api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(error)


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return error_response(ApiError(error.status_code, str(error.detail).lower()))


OPEN = ("/health", "/ready", "/metrics", "/openapi.json")  # need no key


class Gate:
    """Checks who asks, counts and times requests, and answers what fails unexpectedly."""

    def __init__(self, app: ASGIApp, service: Service):
        self.app, self.service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), NO_ANSWER

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            # The path includes the prefix under which a proxy or Ray Serve mounts the app.
            if scope["path"].removeprefix(scope.get("root_path", "").rstrip("/")) not in OPEN:
                check(Headers(scope=scope), self.service.keys, self.service.loopback)
            await self.app(scope, receive, noted)
        except ApiError as error:
            await error_response(error)(scope, receive, noted)
        except Exception:
            if status == NO_ANSWER:
                failed = ApiError(500, "the server failed; its log has the error", None, "internal_error")
                await error_response(failed)(scope, receive, noted)
            raise
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self.service.metrics.requests.labels(route, str(status)).inc()
            self.service.metrics.seconds.labels(route).observe(time.perf_counter() - began)
