"""What batching brings to `flamboyance serve`: many clients at once, beside one request at a time.

    python -m benchmarks.serving                       # 200 requests from 32 clients, of the embedded model
    python -m benchmarks.serving --json serving.json
    python -m benchmarks.serving --memory 2000         # instead, resident memory after every 200 of 2,000 requests

Starts the server as a process of its own, uploads a few-shot task, and sends the same requests first one after the
other, then from many clients, in turns. Every answer is compared with the library's own. Prints requests per second,
the median and 99th percentile of a request's time, the server's processor time per request, which does not depend on
what else the machine does, and the server's resident memory after each round.
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
from flamboyance.files import write_json

TOKENS = 24
EVERY = 200  # requests between looks at the server's memory


@dataclass(frozen=True)
class Round:
    """One pass over all requests."""

    clients: int
    seconds: float
    times: list[float]  # of each request
    wrong: int
    processor: float  # seconds of the server's processor time
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
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise RuntimeError("the server did not start")
            yield int(line.rpartition(":")[2]), psutil.Process(process.pid)
        finally:
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


def requests(number: int) -> list[tuple[Path, dict[str, Any]]]:
    """The image of each request, and its body: a query of the task."""
    images = [image for image, _ in fl.examples.demonstrations] + fl.examples.queries
    bodies = [
        {
            "model": "mini:shapes",
            "max_tokens": TOKENS,
            "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": data_url(image)}}]},
            ],
        }
        for image in images
    ]
    about = list(zip(images, bodies, strict=True))
    return [about[i % len(about)] for i in range(number)]


def expected(asked: list[tuple[Path, dict[str, Any]]]) -> dict[Path, str]:
    """The library's own answers."""
    different = list(dict.fromkeys(image for image, _ in asked))
    task = fl.FewShotTask(*fl.load_mini(), fl.examples.demonstrations)
    return dict(zip(different, task(different, max_new_tokens=TOKENS), strict=True))


def measure(port: int, clients: int, asked: list[tuple[Path, dict[str, Any]]], right: dict[Path, str]) -> tuple:
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


def compare(port: int, process: psutil.Process, arguments: argparse.Namespace) -> dict[str, list[Round]]:
    """The rounds with one client and with many, in turns."""
    asked = requests(arguments.requests)
    right = expected(asked)
    found: dict[str, list[Round]] = {"one": [], "many": []}
    measure(port, arguments.clients, asked, right)  # warm
    for _ in range(arguments.rounds):
        for name, clients in (("one", 1), ("many", arguments.clients)):
            before = sum(process.cpu_times()[:2])
            seconds, times, wrong = measure(port, clients, asked, right)
            processor = sum(process.cpu_times()[:2]) - before
            found[name].append(Round(clients, seconds, times, wrong, processor, process.memory_info().rss / 1e6))
    return found


def memory(port: int, process: psutil.Process, arguments: argparse.Namespace) -> dict[str, Any]:
    """Prints the server's resident memory in MB after every part of the requests, and returns the figures."""
    asked = requests(EVERY)
    right = expected(asked)
    figures: list[float] = []
    wrong = 0
    for done in range(0, arguments.memory, EVERY):
        wrong += measure(port, arguments.clients, asked, right)[2]
        figures.append(round(process.memory_info().rss / 1e6, 1))
        print(f"{done + EVERY:6} requests  {figures[-1]:7.1f} MB  {wrong} wrong", flush=True)
    return {"every": EVERY, "memory_mb": figures, "wrong": wrong}


def report(found: dict[str, list[Round]]) -> dict[str, Any]:
    """Prints a row for each way, and returns their figures: the medians over rounds."""
    rows: dict[str, Any] = {}
    for name, rounds in found.items():
        values = {
            "clients": rounds[0].clients,
            "requests_per_second": statistics.median(one.rate for one in rounds),
            "median_ms": 1000 * statistics.median(statistics.median(one.times) for one in rounds),
            "p99_ms": 1000 * statistics.median(one.p99 for one in rounds),
            "processor_ms": 1000 * statistics.median(one.processor / len(one.times) for one in rounds),
            "wrong": sum(one.wrong for one in rounds),
            "memory_mb": [round(one.memory) for one in rounds],
        }
        rows[name] = values
        print(
            f"{values['clients']:3} client(s)  {values['requests_per_second']:7.1f} requests/s  "
            f"median {values['median_ms']:6.0f} ms  99 % {values['p99_ms']:6.0f} ms  "
            f"processor {values['processor_ms']:.0f} ms a request  {values['wrong']} wrong  "
            f"memory {values['memory_mb']} MB"
        )
    ratios = [many.rate / one.rate for one, many in zip(found["one"], found["many"], strict=True)]
    rows["times"] = statistics.median(ratios)
    print(f"{rows['times']:.1f} times as many ({', '.join(f'{ratio:.1f}' for ratio in ratios)})")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of torch in the server")
    parser.add_argument("--memory", type=int, metavar="N", help=f"memory after every {EVERY} of N requests, alone")
    parser.add_argument("--json", metavar="FILE", help="write the figures to this file")
    arguments = parser.parse_args()
    with served("mini", arguments.threads) as (port, process):
        shots = [{"image": data_url(image), "text": text} for image, text in fl.examples.demonstrations]
        ask(http.client.HTTPConnection("127.0.0.1", port), "/v1/tasks", {"name": "shapes", "demonstrations": shots})
        if arguments.memory:
            figures = memory(port, process, arguments)
        else:
            figures = report(compare(port, process, arguments))
    if arguments.json:
        write_json(arguments.json, figures)


if __name__ == "__main__":
    main()
