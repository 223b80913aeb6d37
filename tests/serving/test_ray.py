"""Two replicas on Ray Serve: one is killed under load, and only what it was computing is lost."""

import json
import os
import signal
import socket
import threading
import time
import urllib.error
import urllib.request

import psutil
import pytest

import flamboyance as fl
from tests.serving.server import image_part, text_part

SECONDS = 600
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",  # writes no token into the home directory
    "RAY_worker_niceness": "0",  # its default, 15, starves replicas on a busy machine
    # However busy the machine is:
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "300",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "300",
    "OMP_NUM_THREADS": "1",
}


def ask(port, content, timeout=SECONDS):
    body = {"model": "mini", "messages": [{"role": "user", "content": content}], "max_tokens": 8}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def replicas():
    """The processes of the replicas."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any("ServeReplica" in word for word in process.info["cmdline"] or ()):
            found.append(process.pid)
    return sorted(found)


@pytest.fixture
def port(monkeypatch):
    for name, value in ENVIRONMENT.items():  # before ray is imported, and for its processes
        monkeypatch.setenv(name, value)
    ray = pytest.importorskip("ray")
    from ray import serve

    from flamboyance.serving.ray_app import Arguments, build

    monkeypatch.setattr("ray.serve._private.api.HTTP_PROXY_TIMEOUT", SECONDS)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]
    ray.init(
        _node_ip_address="127.0.0.1",
        num_cpus=3,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=100_000_000,
    )
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": number})
        serve.run(build(Arguments(model="mini", replicas=2)))
        yield number
    finally:
        serve.shutdown()
        ray.shutdown()


@pytest.mark.slow
def test_a_killed_replica_loses_only_what_it_was_computing(port):
    queries = fl.examples.queries
    content = [[image_part(query), text_part("Output:")] for query in queries]
    right = fl.FewShotTask(*fl.load_mini())(queries, max_new_tokens=8)
    before = replicas()
    assert len(before) == 2
    found, lock, killed = [], threading.Lock(), threading.Event()

    def client(number):
        for turn in range(12):
            place = (number + turn) % len(queries)
            began = killed.is_set()
            status, answer = ask(port, content[place])
            with lock:
                found.append((place, status, answer, began))
                if len(found) == 24:
                    os.kill(before[0], signal.SIGKILL)
                    killed.set()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert len(found) == 96 and killed.is_set()
    assert found[0][1] == 200, found[0]
    lost = [(status, answer, began) for _, status, answer, began in found if status != 200]
    assert len(lost) <= 8, "at most what its clients were waiting for"
    assert all(status in (500, 503) for status, _, _ in lost), lost
    for place, status, answer, _ in found:
        if status == 200:
            text = answer["choices"][0]["message"]["content"]
            assert fl.templates.caption.parse(text) == right[place]
    # Ray starts another one.
    until = time.monotonic() + SECONDS
    while len(set(replicas()) - set(before)) < 1 and time.monotonic() < until:
        time.sleep(0.2)
    assert len(set(replicas()) - set(before)) == 1
    assert ask(port, content[0])[0] == 200
