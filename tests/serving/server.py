"""A real server on a free port of loopback, in a thread."""

import base64
import contextlib
import http.client
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flamboyance.serving.batching import Engine
from flamboyance.serving.http_server import HttpServer, listen
from flamboyance.serving.limits import Limits
from flamboyance.serving.service import Service

SECONDS = 60


@dataclass(frozen=True)
class Running:
    server: HttpServer
    thread: threading.Thread

    @property
    def service(self) -> Service:
        return self.server.service

    @property
    def url(self) -> str:
        return self.server.url

    @property
    def port(self) -> int:
        return self.server.socket.getsockname()[1]

    def ask(self, method: str, path: str, body: Any = None, headers: Any = (), kind: str = "application/json") -> Any:
        """The status, the headers and the content of an answer: JSON as values, other content as a text."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)
        with contextlib.closing(connection):
            data = body if isinstance(body, bytes | type(None)) else json.dumps(body).encode()
            sent = {} if data is None else {"Content-Type": kind}
            connection.request(method, path, data, sent | dict(headers))
            answer = connection.getresponse()
            text = answer.read().decode()
            is_json = answer.headers.get_content_type() == "application/json"
            return answer.status, dict(answer.headers), json.loads(text) if is_json else text

    def chat(self, *content: Any, headers: Any = (), model: str = "mini", **settings: Any) -> Any:
        """Status, headers and content for one message of the user."""
        body = {"model": model, "messages": [{"role": "user", "content": list(content)}], **settings}
        return self.ask("POST", "/v1/chat/completions", body, headers)


@contextlib.contextmanager
def running(model: Any, processor: Any, limits: Limits | None = None, **options: Any) -> Iterator[Running]:
    limits = limits or Limits()
    engine = Engine(model, processor, limits.rows, limits.rows + limits.queue, limits.media)
    server = HttpServer(Service("mini", engine, limits, loopback=True, **options), listen("127.0.0.1", 0))
    ready = threading.Event()
    thread = threading.Thread(target=lambda: server.run(ready=lambda url: ready.set()))
    thread.start()
    assert ready.wait(SECONDS)
    try:
        yield Running(server, thread)
    finally:
        if thread.is_alive():
            server.stop()
        thread.join(SECONDS)
        assert not thread.is_alive()


def data_url(image: Path | bytes) -> str:
    data = image if isinstance(image, bytes) else image.read_bytes()
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def image_part(image: Path | bytes) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_url(image)}}


def text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}
