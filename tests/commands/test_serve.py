"""`flamboyance serve`: its mistakes, and a process that serves until it is told to stop."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flamboyance.cli import main
from flamboyance.commands import serve
from flamboyance.serving.service import served_name

SECONDS = 300


def test_a_missing_library_is_named_with_its_extra(monkeypatch, capsys):
    monkeypatch.setattr(serve, "REQUIRED", {"no_such_module": "no-such-library"})
    assert main(["serve", "--model", "mini"]) == 2
    said = capsys.readouterr().err
    assert "no-such-library" in said and "flamboyance[serve]" in said and said.count("\n") == 1


def test_an_address_that_is_taken(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--model", "mini", "--port", str(port)]) == 2
    assert f"127.0.0.1 port {port}" in capsys.readouterr().err


def test_a_file_without_keys(tmp_path, capsys):
    (tmp_path / "keys").write_text("short\n", encoding="utf-8")
    assert main(["serve", "--model", "mini", "--port", "0", "--api-keys", str(tmp_path / "keys")]) == 2
    said = capsys.readouterr().err
    assert "16 characters" in said and "short\n" not in said


def test_the_name_of_a_directory(tmp_path, monkeypatch):
    (tmp_path / "my-model" / "in").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "my-model")
    for given in (".", "./", "in/..", str(tmp_path / "my-model"), "../my-model/"):
        assert served_name(given) == "my-model"
    assert served_name("mini") == "mini"
    assert served_name("openflamingo/OpenFlamingo-3B-vitl-mpt1b") == "openflamingo/OpenFlamingo-3B-vitl-mpt1b"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_process_serves_and_stops(number, tmp_path):
    key = "a-key-of-this-test-0123456789"
    with served(tmp_path, key) as (process, port):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
        body = json.dumps({"model": "mini", "messages": [{"role": "user", "content": "a large"}], "max_tokens": 3})
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
        connection.request("POST", "/v1/chat/completions", body, headers)
        answer = json.loads(connection.getresponse().read())
        assert answer["choices"][0]["finish_reason"] == "length"
        process.send_signal(number)
        assert process.wait(SECONDS) == 0
        assert key not in process.stdout.read() + process.stderr.read()


@contextmanager
def served(tasks: Path, key: str) -> Generator[tuple[subprocess.Popen, int]]:
    """A server's process and its port. It is killed at the end: a test that fails would wait for it forever."""
    command = [sys.executable, "-m", "flamboyance", "serve", "--model", "mini", "--port", "0", "--tasks", str(tasks)]
    environment = os.environ | {"FLAMBOYANCE_API_KEYS": key}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            line = process.stdout.readline()
            assert line.startswith("serving mini on http://127.0.0.1:"), process.stderr.read()
            yield process, int(line.rpartition(":")[2])
        finally:
            process.kill()
