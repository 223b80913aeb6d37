"""Hostile requests get the right status, and leave the server healthy."""

import contextlib
import io
import json
import socket
import struct
import threading
import time
import zlib
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from fastapi.testclient import TestClient
from PIL import Image

import flamboyance as fl
from flamboyance.images import ImageProcessor
from flamboyance.serving import fetching
from flamboyance.serving.access import Keys
from flamboyance.serving.app import make_app
from flamboyance.serving.batching import Engine
from flamboyance.serving.fetching import Fetcher, is_public
from flamboyance.serving.limits import Limits
from flamboyance.serving.pictures import PictureReader
from flamboyance.serving.service import Service
from tests.processes import until
from tests.serving.server import SECONDS, data_url, image_part, running, text_part

LIMITS = Limits(
    rows=2,
    queue=3,
    body=300_000,
    images=4,
    image_bytes=100_000,
    pixels=1_000_000,
    tokens=900,
    body_seconds=3,
    header_seconds=3,
    stall_seconds=3,
)
KEY = "a-key-of-this-test-0123456789"
NEW, OUTPUT = fl.examples.queries, text_part("Output:")


@pytest.fixture(scope="module")
def mini():
    return fl.load_mini()


@pytest.fixture(scope="module")
def public():
    """A web site, and a Fetcher to which it has a public address."""

    class Site(BaseHTTPRequestHandler):
        def do_GET(self):
            moved = {"/to-metadata": "http://169.254.169.254/latest/meta-data/", "/to-itself": "/to-itself"}
            moved |= {
                "/to-file": "file:///etc/passwd",
                "/to-loopback": f"http://localhost:{self.server.server_port}/a.png",
            }
            with contextlib.suppress(ConnectionError):
                if self.path in moved:
                    self.send_response(302)
                    self.send_header("Location", moved[self.path])
                    self.end_headers()
                    return
                self.send_response(200 if self.path in ("/a.png", "/endless", "/slow") else 404)
                self.end_headers()
                while self.path == "/endless":
                    self.wfile.write(bytes(65536))
                while self.path == "/slow":
                    self.wfile.write(b"x")
                    time.sleep(0.05)
                self.wfile.write(NEW[0].read_bytes())

        def log_message(self, *_):
            pass

    site = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    site.daemon_threads = True
    thread = threading.Thread(target=site.serve_forever, daemon=True)
    thread.start()
    names = {"site.example": ["127.0.0.1"], "half.example": ["127.0.0.1", "10.0.0.1"], "inside.example": ["10.0.0.1"]}
    asked = []

    async def resolve(host, port):
        asked.append(host)
        return names[host] if host in names else await fetching.resolve(host, port)

    # Loopback is the internet of this test, but only for the site's own name.
    yield site.server_port, resolve, asked
    site.shutdown()
    thread.join(SECONDS)


@pytest.fixture(scope="module")
def server(mini, public):
    _, resolve, asked = public

    def allowed(address):
        return is_public(address) or (address == "127.0.0.1" and asked[-1] == "site.example")

    with running(*mini, LIMITS, fetch=Fetcher(LIMITS, resolve, allowed).fetch) as one:
        yield one


@pytest.fixture(scope="module")
def right(mini):
    return fl.FewShotTask(*mini)([NEW[0]], max_new_tokens=8)


@pytest.fixture(autouse=True)
def healthy(server, right):
    """After every test the server answers rightly and holds nothing."""
    yield
    service = server.service
    until(lambda: not (service.in_flight or service.body_bytes or service.engine.counts.rows), SECONDS)
    assert server.ask("GET", "/health")[0] == 200
    status, _, answer = server.chat(image_part(NEW[0]), OUTPUT, max_tokens=8)
    text = answer["choices"][0]["message"]["content"]
    assert status == 200 and [fl.templates.caption.parse(text)] == right
    assert service.engine.counts.failures == 0


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, data=b"", more=b""):
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + more + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    )


def saved(kind, **options):
    file = io.BytesIO()
    Image.new("RGB", (40, 40), "red").save(file, kind, **options)
    return file.getvalue()


IMAGES = {
    "a header of 50,000 x 50,000 pixels": png(50_000, 50_000, bytes(1000)),
    "a bomb: 9 million pixels in 26 kB": png(3000, 3000, bytes(9001 * 3000)),
    "a bomb of text: 60 MB in 60 kB": png(
        8, 8, bytes(200), chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(60_000_000)))
    ),
    "more than 100,000 bytes": saved("PNG") + bytes(100_000),
    "no pixels": png(0, 0),
    "an animation": saved("GIF", save_all=True, append_images=[Image.new("RGB", (40, 40), "blue")]),
    "half a JPEG": saved("JPEG")[:300],
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run\n",
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "a pickle": b"\x80\x04cos\nsystem\n(S'true'\ntR.",
    "text": b"not an image",
    "nothing": b"",
}


def test_images_that_are_none(server):
    for name, image in IMAGES.items():
        status, _, answer = server.chat(image_part(image), OUTPUT)
        assert status == 400 and answer["error"]["param"].startswith("messages.0.content.0"), (name, answer)


def test_an_image_that_preprocessing_refuses(mini):
    """Its shortest edge would become 64 pixels, and the other 3,840,000."""
    model, processor = mini
    crops = fl.FlamingoProcessor(ImageProcessor.clip(64), processor.tokenizer)
    with running(model, crops, LIMITS) as other:
        status, _, answer = other.chat(image_part(png(60_000, 1, bytes(180_001))), OUTPUT)
    assert (status, answer["error"]["code"]) == (400, "invalid_image")
    assert "60000 x 1" in answer["error"]["message"]


URLS = [
    *("/etc/passwd", "../../etc/passwd", "file:///etc/passwd", "~/.ssh/id_rsa", "", "captioned/large-red-ring.png"),
    *("ftp://site.example/a.png", "gopher://site.example/", "data:image/png,abc", "data:text/html;base64,PGI+"),
    *("data:image/png;base64,@@@@", "data:image/png;base64," + "A" * 200_001, "data:image/png;base64,AAA", "\x00"),
]


def test_paths_and_damaged_urls_as_images(server):
    codes = ("invalid_image_url", "invalid_base64", "image_too_large", "invalid_image")
    for url in URLS:
        status, _, answer = server.chat({"type": "image_url", "image_url": {"url": url}}, OUTPUT)
        assert status == 400 and answer["error"]["code"] in codes, (url[:50], answer)


PRIVATE = [
    *("http://127.0.0.1:{port}/a.png", "http://localhost:{port}/a.png", "http://[::1]:{port}/a.png"),
    *("http://2130706433:{port}/a.png", "http://0x7f.1:{port}/a.png", "http://0.0.0.0:{port}/a.png"),
    *("http://169.254.169.254/latest/meta-data/", "http://10.0.0.1/", "http://192.168.1.1/", "http://[fd00::1]/"),
    *("http://[::ffff:127.0.0.1]:{port}/a.png", "http://[64:ff9b::7f00:1]/", "http://inside.example/a.png"),
    *("http://half.example:{port}/a.png", "http://site.example:{port}/to-metadata"),
    "http://site.example:{port}/to-loopback",
]


def test_private_addresses_are_not_fetched(server, public):
    for url in PRIVATE:
        part = {"type": "image_url", "image_url": {"url": url.format(port=public[0])}}
        status, _, answer = server.chat(part, OUTPUT)
        assert status == 400 and answer["error"]["code"] == "forbidden_url", (url, answer)
        assert "169.254" not in answer["error"]["message"]


@pytest.mark.parametrize("path", ["/to-itself", "/to-file", "/missing", "/endless", "/slow"])
def test_a_site_that_does_not_send_an_image(server, public, path, monkeypatch):
    monkeypatch.setattr(fetching, "SECONDS", 1.0 if path == "/slow" else 20.0)
    part = {"type": "image_url", "image_url": {"url": f"http://site.example:{public[0]}{path}"}}
    status, _, answer = server.chat(part, OUTPUT)
    assert status == 400 and answer["error"]["code"] in ("image_not_fetched", "image_too_large"), answer
    status, _, answer = server.chat({"type": "image_url", "image_url": {"url": "http://u:p@site.example/a"}}, OUTPUT)
    assert status == 400 and "p@" not in answer["error"]["message"]


def test_an_allowed_url_is_resolved_once_and_read(server, public, mini):
    port, _, asked = public
    before = len(asked)
    part = {"type": "image_url", "image_url": {"url": f"http://site.example:{port}/a.png"}}
    status, _, answer = server.chat(part, OUTPUT, max_tokens=8)
    assert status == 200 and asked[before:] == ["site.example"]
    assert answer["choices"] == server.chat(image_part(NEW[0]), OUTPUT, max_tokens=8)[2]["choices"]


def test_a_file_is_read_before_the_next_one_is_fetched(mini, monkeypatch):
    """So a request holds one file at a time, however many it names."""
    steps = []

    async def fetch(url, place):
        steps.append("fetch")
        return NEW[int(url[-1])].read_bytes()

    def read(content, place):
        steps.append("read")
        return PictureReader.read(other.service.pictures, content, place)

    parts = [{"type": "image_url", "image_url": {"url": f"http://site.example/{number}"}} for number in range(3)]
    with running(*mini, LIMITS, fetch=fetch) as other:
        monkeypatch.setattr(other.service.pictures, "read", read)
        assert other.chat(*parts, OUTPUT, max_tokens=2)[0] == 200
        task = {"name": "far", "demonstrations": [{"image": "http://site.example/0", "text": "a"}] * 2}
        assert other.ask("POST", "/v1/tasks", task)[0] == 201
    assert steps == ["fetch", "read"] * 5


def test_public_addresses():
    assert is_public("93.184.216.34") and is_public("2606:4700::1111")
    for address in ("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.0.1", "169.254.1.1", "100.64.0.1", "0.0.0.0"):
        assert not is_public(address), address
        assert not is_public(f"::ffff:{address}") and not is_public(f"64:ff9b::{address}")
    for address in ("224.0.0.1", "240.0.0.1", "255.255.255.255", "::", "::1", "fe80::1%eth0", "fc00::1", "ff02::1"):
        assert not is_public(address), address
    for address in ("168.63.129.16", "::ffff:168.63.129.16", "64:ff9b::a83f:8110", "192.88.99.1"):
        assert not is_public(address), address
    for address in ("fec0::1", "fec0::3%eth0", "64:ff9b:1::7f00:1", "3fff::1"):
        assert not is_public(address), address
    assert not is_public("2002:7f00:1::") and not is_public("2001:0:1:2:3:4:80ff:fffe")


def test_remote_images_are_refused_by_default(mini):
    with running(*mini, LIMITS) as other:
        status, _, answer = other.chat({"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}, OUTPUT)
        assert status == 400 and answer["error"]["code"] == "remote_url"


BODIES = {
    "no JSON": (b"{", 400),
    "another value": (b"[1]", 400),
    "nothing": (b"", 400),
    "no text": (b"\xff\xfe\x00", 400),
    "half a surrogate pair": (b'{"model":"mini","messages":[{"role":"user","content":"\\ud800"}]}', 400),
    "100,000 lists in each other": (b"[" * 100_000, 400),
    "types": (b'{"model":["mini"],"messages":{"role":"user"}}', 400),
    "a number as text": (b'{"model":"mini","messages":[{"role":"user","content":[{"type":"text","text":1}]}]}', 400),
    "NaN": (b'{"model":"mini","messages":[{"role":"user","content":"a"}],"temperature":NaN}', 400),
    "a huge seed": (b'{"model":"mini","messages":[{"role":"user","content":"a"}],"seed":1e400}', 400),
    "a huge number of choices": (b'{"model":"mini","messages":[{"role":"user","content":"a"}],"n":999999999}', 400),
    "a hidden image": (b'{"model":"mini","messages":[{"role":"user","content":"a<image>"}]}', 400),
    "too long": (b'{"model":"mini","messages":[{"role":"user","content":"%s"}]}' % (b"a " * 100_000), 400),
    "another part": (
        b'{"model":"mini","messages":[{"role":"user","content":[{"type":"image","path":"/etc/passwd"}]}]}',
        400,
    ),
    "too large": (b'{"model":"mini","messages":[]}' + b" " * 300_000, 413),
}


def test_bodies_that_are_none(server):
    for name, (data, expected) in BODIES.items():
        status, _, answer = server.ask("POST", "/v1/chat/completions", data)
        assert status == expected and answer["error"]["type"] == "invalid_request_error", (name, answer)


def test_too_many_images(server):
    status, _, answer = server.chat(*[image_part(NEW[0])] * 5)
    assert status == 400 and "5 images" in answer["error"]["message"]


def test_other_content_types(server):
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        assert server.ask("POST", "/v1/chat/completions", b"{}", kind=kind)[0] == 415


FIELD = b"--x\r\nContent-Disposition: form-data; name="
FORMS = {
    "no boundary": ("", b"--x\r\n"),
    "no form": ("; boundary=x", b"hello"),
    "a file as name": ("; boundary=x", FIELD + b'"name"; filename="/etc/passwd"\r\n\r\nx\r\n--x--\r\n'),
    "a text as image": ("; boundary=x", FIELD + b'"image"\r\n\r\n/etc/passwd\r\n--x--\r\n'),
    "1,500 fields": ("; boundary=x", (FIELD + b'"text"\r\n\r\na\r\n') * 1500 + b"--x--\r\n"),
}


def test_forms_that_are_none(server):
    for name, (boundary, data) in FORMS.items():
        status, _, answer = server.ask("POST", "/v1/tasks", data, kind=f"multipart/form-data{boundary}")
        assert status == 400, (name, answer)


def test_other_routes(server):
    for method, path, expected in (
        ("GET", "/v1/tasks/..%2F..%2Fetc", 404),
        ("DELETE", "/v1/tasks/..", 404),
        ("GET", "/../../etc/passwd", 404),
        ("GET", "/v1/chat/completions", 405),
        ("TRACE", "/health", 405),
        ("PUT", "/v1/tasks", 405),
        ("GET", "/docs", 404),
    ):
        assert server.ask(method, path)[0] == expected, path


def test_pages_of_other_sites_are_refused(server):
    for headers in (
        {"Origin": "https://evil.example"},
        {"Host": "evil.example:80"},
        {"Host": "127.0.0.1.evil.example"},
    ):
        assert server.chat(OUTPUT, headers=headers)[0] == 403
    assert server.chat(OUTPUT, headers={"Origin": server.url}, max_tokens=1)[0] == 200
    assert server.chat(OUTPUT, headers={"Host": f"localhost:{server.port}"}, max_tokens=1)[0] == 200


def test_keys(mini, capfd):
    with running(*mini, LIMITS, keys=Keys([KEY, KEY * 2])) as locked:
        ask = lambda value: locked.ask("GET", "/v1/models", headers={"Authorization": value} if value else {})  # noqa: E731
        wrong = [None, "Bearer ", "Bearer wrong", f"Basic {KEY}", f"Bearer {KEY}x", "Bearer \xe9", KEY]
        for value in wrong:
            status, headers, answer = ask(value)
            assert status == 401 and answer["error"]["type"] == "authentication_error", value
            assert headers["www-authenticate"] == "Bearer"
        assert ask(f"Bearer {KEY}")[0] == ask(f"bearer {KEY * 2}")[0] == 200
        assert locked.ask("GET", "/v1/nothing")[0] == 401
        assert locked.ask("GET", "/health")[0] == locked.ask("GET", "/metrics")[0] == 200
        assert KEY not in repr(vars(locked.service)) and KEY not in locked.ask("GET", "/metrics")[2]
    assert KEY not in "".join(capfd.readouterr())


def test_keys_are_asked_for_under_a_prefix_too(mini):
    """Ray Serve and proxies mount the app so: the path begins with the prefix."""
    for prefix in ("", "/app"):
        engine = Engine(*mini, LIMITS.rows, LIMITS.rows, LIMITS.media)
        service = Service("mini", engine, LIMITS, loopback=False, keys=Keys([KEY]))
        with TestClient(make_app(service), root_path=prefix) as client:  # closes the service at its end
            assert client.get(f"{prefix}/v1/models").status_code == 401, prefix
            good = client.get(f"{prefix}/v1/models", headers={"Authorization": f"Bearer {KEY}"})
            assert good.status_code == 200, prefix
            assert client.get(f"{prefix}/health").status_code == 200, prefix


def test_keys_are_read_from_a_file_or_the_environment(tmp_path, monkeypatch):
    file = tmp_path / "keys"
    file.write_text(f"# ours\n{KEY}\n\n{KEY}2\n")
    assert KEY in Keys.read(str(file)) and f"{KEY}2" in Keys.read(str(file)) and "# ours" not in Keys.read(str(file))
    monkeypatch.setenv("FLAMBOYANCE_API_KEYS", f"{KEY},{KEY}3")
    assert f"{KEY}3" in Keys.read(None) and KEY not in repr(Keys.read(None))
    file.write_bytes(f"\ufeff{KEY}\r\n{KEY},{KEY}\r\n".encode())
    keys = Keys.read(str(file))
    assert KEY in keys and f"{KEY},{KEY}" in keys and len(keys._hashes) == 2, "a comma is part of a key"
    for text in ("", "# none", "short"):
        file.write_text(text)
        with pytest.raises(ValueError, match="keys"):
            Keys.read(str(file))


# Clients that do not behave -------------------------------------------------------------------------------------------


def connect(server, receive=None):
    client = socket.socket()
    if receive is not None:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
    client.settimeout(SECONDS)
    client.connect(("127.0.0.1", server.port))
    return contextlib.closing(client)


def head(length=None, path="/v1/chat/completions", **headers):
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json"]
    lines += ["Transfer-Encoding: chunked"] if length is None else [f"Content-Length: {length}"]
    return "\r\n".join([*lines, *(f"{name}: {value}" for name, value in headers.items()), "", ""]).encode()


def body(**settings):
    return json.dumps({"model": "mini", "messages": [{"role": "user", "content": "a"}], **settings}).encode()


def rest(client):
    """All that the server still sends, until it closes the connection."""
    parts = []
    with contextlib.suppress(ConnectionError):
        while data := client.recv(65536):
            parts.append(data)
    return b"".join(parts)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"400"),
        (b"GET HTTP/1.1\r\n\r\n", b"400"),
        (b"GET /health HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 300_000, b"400"),
        (head(-5), b"400"),
        (head("5, 7"), b"400"),
        (head(5, **{"Transfer-Encoding": "chunked"}) + b"zz\r\n", b"400"),
        (head() + b"FFFFFFFFFFFFFFFFFFFFFFFFF\r\n", b"400"),
    ],
)
def test_what_is_not_http(server, sent, status):
    with connect(server) as client:
        with contextlib.suppress(ConnectionError):
            client.sendall(sent)
        assert rest(client).split(b" ")[1] == status


def test_headers_that_do_not_come(server):
    with connect(server) as silent, connect(server) as slow:
        slow.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost:")
        assert rest(silent) == rest(slow) == b""


def test_a_body_that_does_not_come(server):
    with connect(server) as client:
        client.sendall(head(1000) + b"{")
        assert client.recv(65536).startswith(b"HTTP/1.1 408")
        assert rest(client) is not None, "and the connection is closed"


def test_an_endless_body(server):
    received = b""
    with connect(server) as client:
        client.sendall(head())
        with contextlib.suppress(ConnectionError):
            while True:  # until the server closes the connection
                client.sendall(b"ffff\r\n" + b" " * 0xFFFF + b"\r\n")
                client.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    received += client.recv(65536)  # head and body may come apart
                client.settimeout(SECONDS)
    assert received == b"" or received.startswith(b"HTTP/1.1 413")


def test_a_client_that_leaves_cancels_its_request(server, monkeypatch):
    engine = server.service.engine
    monkeypatch.setattr(engine, "_ends", frozenset())  # else an answer of this model has some ten tokens
    for stream in (False, True):
        before = engine.counts.tokens
        with connect(server) as client:
            data = body(max_tokens=900, temperature=2.0, seed=1, stream=stream, n=2)
            client.sendall(head(len(data)) + data)
            until(lambda: engine.counts.tokens >= before + 4, SECONDS)  # noqa: B023
        until(lambda: not engine.counts.rows, SECONDS)
        assert engine.counts.tokens - before < 2 * 900, "the rest was not generated"


def test_a_client_that_does_not_read(server):
    with connect(server, receive=2048) as client:
        data = body(max_tokens=900, temperature=2.0, seed=1, n=2, stream=True, logprobs=True, top_logprobs=20)
        client.sendall(head(len(data)) + data)
        until(lambda: server.service.in_flight > 0, SECONDS)
        until(lambda: not server.service.in_flight, SECONDS)  # the server has given it up


def test_a_flood_gets_429_and_those_taken_on_are_answered(server):
    begun, hold = threading.Event(), threading.Event()
    server.service.engine.call(lambda: begun.set() or hold.wait(SECONDS))
    assert begun.wait(SECONDS)
    most = LIMITS.rows + LIMITS.queue
    found = []

    def ask():
        found.append(server.chat(text_part("a"), max_tokens=2))

    threads = [threading.Thread(target=ask) for _ in range(most)]
    for thread in threads:
        thread.start()
    until(lambda: server.service.in_flight == most, SECONDS)
    for _ in range(3):
        status, headers, answer = server.chat(text_part("a"))
        assert status == 429 and answer["error"]["type"] == "rate_limit_error" and int(headers["retry-after"]) >= 1
    assert server.ask("GET", "/health")[0] == 200
    hold.set()
    for thread in threads:
        thread.join(SECONDS)
    assert [status for status, *_ in found] == [200] * most


def test_a_request_that_takes_too_long(server, monkeypatch):
    begun, hold = threading.Event(), threading.Event()
    server.service.engine.call(lambda: begun.set() or hold.wait(SECONDS))
    assert begun.wait(SECONDS)
    monkeypatch.setattr(server.service, "limits", replace(LIMITS, seconds=0.3))
    status, _, answer = server.chat(text_part("a"))
    hold.set()
    assert status == 504 and answer["error"]["type"] == "timeout_error"


def test_a_task_that_takes_too_long_is_not_stored(server, monkeypatch):
    task = {"name": "late", "demonstrations": [{"image": data_url(NEW[0]), "text": "a"}]}
    begun, hold = threading.Event(), threading.Event()
    server.service.engine.call(lambda: begun.set() or hold.wait(SECONDS))
    assert begun.wait(SECONDS)
    with monkeypatch.context() as patched:
        patched.setattr(server.service, "limits", replace(LIMITS, seconds=0.5))
        assert server.ask("POST", "/v1/tasks", task)[0] == 504
    hold.set()
    # When it is done it is in the list for a moment, until it is thrown away.
    until(lambda: not server.service.tasks._adding and server.ask("GET", "/v1/tasks")[2]["data"] == [], SECONDS)
    assert server.ask("POST", "/v1/tasks", task)[0] == 201, "the retry"
    assert server.ask("DELETE", "/v1/tasks/late")[0] == 200


def test_many_large_bodies_at_a_time(server, monkeypatch):
    monkeypatch.setattr(server.service, "limits", replace(LIMITS, bodies=100_000))
    assert server.chat(text_part("a" * 150_000))[0] == 429


def test_shutting_down_ends_what_runs_and_refuses_what_comes(mini):
    found = {}
    with running(*mini, LIMITS) as other:
        begun, hold = threading.Event(), threading.Event()
        other.service.engine.call(lambda: begun.set() or hold.wait(SECONDS))
        assert begun.wait(SECONDS)
        thread = threading.Thread(target=lambda: found.update(answer=other.chat(text_part("a"), max_tokens=2)))
        thread.start()
        until(lambda: other.service.in_flight > 0, SECONDS)
        other.server.stop()
        until(lambda: other.service.draining, SECONDS)
        status, headers, answer = other.chat(text_part("a"))
        assert status == 503 and answer["error"]["code"] == "shutting_down" and headers["retry-after"]
        assert other.ask("GET", "/ready")[0] == 503 and other.ask("GET", "/health")[0] == 200
        hold.set()
        thread.join(SECONDS)
        other.thread.join(SECONDS)
        assert not other.thread.is_alive()
    assert found["answer"][0] == 200


def test_a_failure_is_not_shown_to_the_client(server, monkeypatch, caplog):
    monkeypatch.setattr(server.service.engine, "_read", lambda *_: 1 / 0)
    status, _, answer = server.chat(text_part("a"))
    assert status == 500 and "division" not in json.dumps(answer) and answer["error"]["type"] == "server_error"
    assert "division" in caplog.text
    server.service.engine.counts.failures = 0
    assert data_url(NEW[0])[:22] == "data:image/png;base64,"
