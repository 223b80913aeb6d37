"""`serve`: a server that OpenAI's clients can talk to."""

import argparse
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from flamboyance.commands.arguments import add_model, add_video, at_least
from flamboyance.commands.models import load, model_name, note_default, set_sampling

REQUIRED = {
    "fastapi": "fastapi",
    "uvicorn": "uvicorn",
    "prometheus_client": "prometheus-client",
    "python_multipart": "python-multipart",
}
LOOPBACK = ("127.0.0.1", "localhost", "::1")
EPILOG = """\
routes:
  POST /v1/chat/completions   OpenAI's: images (and videos) as data: URLs, stream, n, logprobs, stop
  GET  /v1/models             the model, and each task as NAME:TASK
  POST /v1/tasks              store a few-shot task; GET lists them, DELETE /v1/tasks/TASK removes one
  GET  /health, /ready, /metrics

docs/serving.md has examples.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = f"{parser.epilog or ''}{EPILOG}"
    add_model(parser)
    add_video(parser.add_argument_group("videos"))
    group = parser.add_argument_group("address")
    group.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1, this machine alone")
    group.add_argument("--port", type=at_least(0), default=8000, metavar="N", help="0: any free one (default: 8000)")
    group = parser.add_argument_group("access")
    group.add_argument(
        "--api-keys", metavar="FILE", help="a key on each line (default: those of FLAMBOYANCE_API_KEYS, or no keys)"
    )
    group.add_argument(
        "--allow-urls",
        action="store_true",
        help="fetch images and videos of http and https URLs, from public addresses alone",
    )
    group = parser.add_argument_group("tasks")
    group.add_argument("--tasks", metavar="DIR", help="keep few-shot tasks in this folder, and load those in it")
    group = parser.add_argument_group("limits")
    group.add_argument("--max-rows", type=at_least(1), metavar="N", help="texts generated together (default: 32)")
    group.add_argument("--queue", type=at_least(0), metavar="N", help="requests that wait, before 429 (default: 128)")
    group.add_argument("--timeout", type=at_least(1), metavar="SECONDS", help="of a request (default: 120)")
    group.add_argument("--max-tokens", type=at_least(1), metavar="N", help="of an answer (default: 512)")
    group.add_argument("--max-images", type=at_least(1), metavar="N", help="of a request or task (default: 64)")
    group.add_argument("--max-body", type=at_least(1), metavar="MIB", help="of a request (default: 32)")
    group.add_argument("--image-cache", type=at_least(0), metavar="MIB", help="of encoded images (default: 1024)")


def serve(arguments: argparse.Namespace) -> int:
    """Serve a model until the process is stopped."""
    _check(arguments)
    from flamboyance.serving.access import Keys
    from flamboyance.serving.batching import Engine
    from flamboyance.serving.http_server import HttpServer, listen
    from flamboyance.serving.limits import MEBI, Limits
    from flamboyance.serving.service import Service, served_name

    keys = Keys.read(arguments.api_keys)
    given = {
        "rows": arguments.max_rows,
        "queue": arguments.queue,
        "seconds": arguments.timeout,
        "tokens": arguments.max_tokens,
        "images": arguments.max_images,
        "body": None if arguments.max_body is None else arguments.max_body * MEBI,
        "media": None if arguments.image_cache is None else arguments.image_cache * MEBI,
    }
    limits = replace(Limits(), **{name: value for name, value in given.items() if value is not None})
    fetch = None
    if arguments.allow_urls:
        from flamboyance.serving.fetching import Fetcher

        fetch = Fetcher(limits).fetch
    listening = listen(arguments.host, arguments.port)  # before the model is read, which may take minutes
    name = model_name(arguments)
    model, processor = load(name, arguments.device, arguments.dtype, quantize=arguments.quantize)
    set_sampling(processor, arguments, name)
    if arguments.model is None:
        note_default()
    loopback = arguments.host in LOOPBACK
    if not loopback and not keys:
        print(
            f"flamboyance: warning: {arguments.host} is not this machine alone, and there are no API keys: whoever "
            "reaches it can use it",
            file=sys.stderr,
        )
    engine = Engine(model, processor, limits.rows, limits.rows + limits.queue, limits.media)
    served = served_name(name)
    tasks = None if arguments.tasks is None else Path(arguments.tasks)
    service = Service(served, engine, limits, keys, fetch, tasks, loopback)
    HttpServer(service, listening).run(ready=lambda url: print(f"serving {served} on {url}", flush=True))
    return 0


def _check(arguments: argparse.Namespace) -> None:
    """
    Raises:
        ImportError: a library of the `serve` extra is missing.
    """
    required = REQUIRED | ({"aiohttp": "aiohttp"} if arguments.allow_urls else {})
    missing = [library for module, library in required.items() if find_spec(module) is None]
    if missing:
        raise ImportError(
            f"serve needs {' and '.join(missing)}: pip install 'flamboyance[serve]', or pip install {' '.join(missing)}"
        )
