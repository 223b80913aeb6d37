"""A server with OpenAI's chat API on a free port, which answers as a test says, and fails as it says."""

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = dict[str, Any]


def by_content(body: Reply) -> str:
    """An answer that depends on all messages."""
    return "answer " + hashlib.sha256(json.dumps(body["messages"]).encode()).hexdigest()[:8]


def chat(text: str, tokens: int = 7, **choice: Any) -> Reply:
    """A whole reply."""
    message = {"role": "assistant", "content": text}
    usage = {"prompt_tokens": 10_000, "completion_tokens": tokens, "total_tokens": 10_000 + tokens}
    return {"choices": [{"index": 0, "message": message, "finish_reason": "stop", **choice}], "usage": usage}


class Scripted(ThreadingHTTPServer):
    """The server of `serving`.

    Attributes:
        answer: request -> text, or a whole reply.
        failures: how the next requests fail, one each: a status, (status, headers, body), "cut off", "hang up",
            "not json", or the seconds that an answer takes.
        requests: what was answered.
        sent: the number of chat requests, failed ones included.
        key: the key that requests must have.
        names: the models it has; others are refused.
        refused: options of a request -> the message that refuses them.
        most_images: of a request; those with more are refused.
        at_once: the most requests that were under way together.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, answer: Callable[[Reply], str | Reply]):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer = answer
        self.failures: list[Any] = []
        self.requests: list[Reply] = []
        self.keys: set[str | None] = set()
        self.sent = self.at_once = self.under_way = 0
        self.key: str | None = None
        self.names = ["tiny"]
        self.refused: dict[str, str] = {}
        self.texts_only = False
        self.most_images: int | None = None
        self.lock = threading.Lock()
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Scripted
    counted = False  # among those under way

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            return self.reply(200, {"object": "list", "data": [{"id": name} for name in self.server.names]})
        return self.reply(404, {"error": {"message": "no such page"}})

    def do_POST(self) -> None:
        of = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != "/v1/chat/completions":
            return self.reply(404, {"detail": "Not Found"})
        with of.lock:
            of.sent += 1
            of.under_way += 1
            of.at_once = max(of.at_once, of.under_way)
            of.keys.add(self.headers.get("Authorization"))
            failure = of.failures.pop(0) if of.failures else None
        self.counted = True
        try:
            return self.respond(body, failure)
        finally:
            self.done()

    def done(self) -> None:
        """The request is no longer under way: called before its reply is sent, after which the client asks again."""
        with self.server.lock:
            self.server.under_way -= int(self.counted)
            self.counted = False

    def respond(self, body: Reply, failure: Any) -> None:
        of = self.server
        if failure == "hang up":
            return self.connection.close()
        if isinstance(failure, float):
            of.closing.wait(failure)
        if failure == "cut off":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b'{"choices": [{"mess')
            self.close_connection = True
            return None
        if failure == "not json":
            return self.reply(200, b"<html>a proxy's page</html>")
        if isinstance(failure, int):
            failure = failure, {}, {"error": {"message": f"failure {failure}", "type": "server_error"}}
        if isinstance(failure, tuple):
            return self.reply(failure[0], failure[2], failure[1])
        if of.key and self.headers.get("Authorization") != f"Bearer {of.key}":
            said = f"Incorrect API key provided: {self.headers.get('Authorization', '')[7:]}"
            return self.reply(401, {"error": {"message": said, "code": "invalid_api_key"}})
        if body["model"] not in of.names:
            return self.reply(404, {"error": {"message": f"The model `{body['model']}` does not exist."}})
        for option, said in of.refused.items():
            if option in body:
                return self.reply(400, {"error": {"message": said, "type": "invalid_request_error"}})
        pictures = [part for one in body["messages"] for part in one["content"] if isinstance(part, dict)]
        if of.texts_only and any(part["type"] == "image_url" for part in pictures):
            return self.reply(400, {"error": {"message": "tiny is not a multimodal model"}})
        if of.most_images is not None and sum(part["type"] == "image_url" for part in pictures) > of.most_images:
            return self.reply(400, {"error": {"message": f"At most {of.most_images} image(s) may be provided"}})
        answer = of.answer(body)
        with of.lock:
            of.requests.append(body)
        return self.reply(200, chat(answer) if isinstance(answer, str) else answer)

    def reply(self, status: int, content: Reply | bytes, headers: dict[str, str] | None = None) -> None:
        self.done()
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Writes nothing."""


@contextmanager
def serving(answer: Callable[[Reply], str | Reply] = by_content) -> Iterator[Scripted]:
    """A server until the end of the block."""
    server = Scripted(answer)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()
