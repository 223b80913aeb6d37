"""What batching brings to `flamboyance serve`: many clients at once, beside one request at a time.

    python -m benchmarks.serving                       # 200 requests from 32 clients, of the embedded model
    python -m benchmarks.serving --json serving.json

Starts the server as a process of its own, uploads a few-shot task, and sends the same requests first one after the
other, then from many clients, in turns. Every answer is compared with the library's own. Prints requests per second,
the median and 99th percentile of a request's time, and the server's resident memory after each round.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import psutil

import flamboyance as fl

TOKENS = 24


@dataclass(frozen=True)
class Round:
    """One pass over all requests."""

    clients: int
    seconds: float
    times: list[float]  # of each request
    wrong: int
    memory: float  # MB, after it

    @property
    def rate(self) -> float:
        return len(self.times) / self.seconds

    @property
    def p99(self) -> float:
        return statistics.quantiles(self.times, n=100)[98]


@contextmanager
def served(model: str, threads: int) -> Iterator[tuple[int, psutil.Process]]:
    """The port and the process of a server."""
    command = [sys.executable, "-m", "flamboyance", "serve", "--model", model, "--port", "0", "--queue", "512"]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise RuntimeError("the server did not start")
        yield int(line.rpartition(":")[2]), psutil.Process(process.pid)
        process.terminate()


def ask(connection: http.client.HTTPConnection, path: str, body: dict[str, Any]) -> dict[str, Any]:
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    content = json.loads(answer.read())
    if answer.status >= 300:
        raise RuntimeError(f"status {answer.status}: {content}")
    return content


def data_url(image: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(image.read_bytes()).decode()}"


def requests(kind: str, number: int) -> list[tuple[Path | str, dict[str, Any]]]:
    """What each request asks: of the task about an image, or to continue a text."""
    if kind == "caption":
        images = [image for image, _ in fl.examples.demonstrations] + fl.examples.queries
        parts = [[{"type": "image_url", "image_url": {"url": data_url(image)}}] for image in images]
        about: list[Any] = list(zip(images, parts, strict=True))
        model = "mini:shapes"
    else:
        words = [
            "a large",
            "the small red",
            "a green",
            "two",
            "a yellow ring and",
            "the blue square",
            "three",
            "a white",
        ]
        about, model = [(text, text) for text in words], "mini"
    chosen = [about[i % len(about)] for i in range(number)]
    return [
        (what, {"model": model, "max_tokens": TOKENS, "messages": [{"role": "user", "content": content}]})
        for what, content in chosen
    ]


def expected(kind: str, model: Any, processor: Any, asked: list[tuple[Path | str, Any]]) -> dict[Any, str]:
    """The library's own answers."""
    different = list(dict.fromkeys(what for what, _ in asked))
    if kind == "caption":
        task = fl.FewShotTask(model, processor, fl.examples.demonstrations)
        return dict(zip(different, task(different, max_new_tokens=TOKENS), strict=True))
    answers = {}
    for text in different:
        inputs = processor(text)
        out = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        answers[text] = processor.decode(out).strip()
    return answers


def measure(port: int, clients: int, asked: list[tuple[Any, dict[str, Any]]], right: dict[Any, str]) -> tuple:
    """Seconds of the whole, of each request, and how many answers were wrong. A client sends its next request when it
    has the answer to the one before."""
    following, times, wrong = count(), [0.0] * len(asked), []

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
        while (number := next(following)) < len(asked):
            what, body = asked[number]
            began = time.perf_counter()
            answer = ask(connection, "/v1/chat/completions", body)
            times[number] = time.perf_counter() - began
            if answer["choices"][0]["message"]["content"] != right[what]:
                wrong.append(number)
        connection.close()

    threads = [threading.Thread(target=client) for _ in range(clients)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - began, times, len(wrong)


def compare(kind: str, port: int, process: psutil.Process, arguments: argparse.Namespace) -> dict[str, list[Round]]:
    asked = requests(kind, arguments.requests)
    right = expected(kind, *fl.load_mini(), asked)
    found: dict[str, list[Round]] = {"one": [], "many": []}
    measure(port, arguments.clients, asked[:64], right)  # warm
    for _ in range(arguments.rounds):
        for name, clients in (("one", 1), ("many", arguments.clients)):
            seconds, times, wrong = measure(port, clients, asked, right)
            found[name].append(Round(clients, seconds, times, wrong, process.memory_info().rss / 1e6))
    return found


def report(kind: str, found: dict[str, list[Round]]) -> dict[str, Any]:
    """Prints a row for each way, and returns their figures: the medians over rounds."""
    rows: dict[str, Any] = {}
    for name, rounds in found.items():
        values = {
            "clients": rounds[0].clients,
            "requests_per_second": statistics.median(one.rate for one in rounds),
            "median_ms": 1000 * statistics.median(statistics.median(one.times) for one in rounds),
            "p99_ms": 1000 * statistics.median(one.p99 for one in rounds),
            "wrong": sum(one.wrong for one in rounds),
            "memory_mb": [round(one.memory) for one in rounds],
        }
        rows[name] = values
        print(
            f"{kind:9} {values['clients']:3} client(s)  {values['requests_per_second']:7.1f} requests/s  "
            f"median {values['median_ms']:6.0f} ms  99 % {values['p99_ms']:6.0f} ms  {values['wrong']} wrong  "
            f"memory {values['memory_mb']} MB"
        )
    ratios = [many.rate / one.rate for one, many in zip(found["one"], found["many"], strict=True)]
    rows["times"] = statistics.median(ratios)
    print(f"{kind:9} {rows['times']:.1f} times as many ({', '.join(f'{ratio:.1f}' for ratio in ratios)})")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of torch in the server")
    parser.add_argument("--json", metavar="FILE", help="write the figures to this file")
    arguments = parser.parse_args()
    figures = {}
    with served("mini", arguments.threads) as (port, process):
        shots = [{"image": data_url(image), "text": text} for image, text in fl.examples.demonstrations]
        ask(http.client.HTTPConnection("127.0.0.1", port), "/v1/tasks", {"name": "shapes", "demonstrations": shots})
        for kind in ("caption", "continue"):
            figures[kind] = report(kind, compare(kind, port, process, arguments))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(figures, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
