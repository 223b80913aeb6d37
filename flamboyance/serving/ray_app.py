"""Replicas of the server on Ray Serve: several GPUs of a machine, or several machines, behind one address.

    pip install 'flamboyance[serve,ray]'
    serve run flamboyance.serving.ray_app:build model=openflamingo/OpenFlamingo-9B-vitl-mpt7b replicas=4 gpus=1

Each replica has the model, and batches its own requests. Ray sends each request to one of them, and starts a new
replica for one that has died. See docs/serving.md.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.serve import Application

from flamboyance import catalog
from flamboyance.serving.access import Keys
from flamboyance.serving.app import make_app
from flamboyance.serving.batching import Engine
from flamboyance.serving.limits import Limits
from flamboyance.serving.service import Service, served_name


class Arguments(BaseModel):
    """What `serve run flamboyance.serving.ray_app:build key=value …` takes.

    Attributes:
        model: as `flamboyance serve --model`.
        replicas: number of copies of the model.
        gpus: of each replica; 0: on the CPU.
        cpus: of each replica.
        tasks: a folder that all replicas reach: a task that is uploaded to one is used by all. Without it, tasks cannot
            be uploaded, because each replica would have its own.
        rows, queue: as `--max-rows` and `--queue`, of each replica.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: str = catalog.MINI
    replicas: int = 1
    gpus: float = 0.0
    cpus: float = 1.0
    tasks: str | None = None
    rows: int = Limits.rows
    queue: int = Limits.queue


def build(arguments: Arguments) -> Application:
    """The application that Ray runs."""
    limits = replace(Limits(), rows=arguments.rows, queue=arguments.queue)
    if arguments.tasks is None:
        limits = replace(limits, tasks=0)

    def replica() -> Any:  # Ray calls a function in the replica's process, but takes any other callable for the app
        return _open(arguments, limits)

    server: Any = serve.ingress(replica)
    deployment = serve.deployment(
        name="flamboyance",
        num_replicas=arguments.replicas,
        max_ongoing_requests=limits.rows + limits.queue,
        graceful_shutdown_timeout_s=limits.seconds,
        health_check_period_s=5,
        ray_actor_options={"num_cpus": arguments.cpus, "num_gpus": arguments.gpus},
    )
    return deployment(server()).bind()


def _open(arguments: Arguments, limits: Limits) -> Any:
    """The ASGI application of one replica, in its process."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind = torch.bfloat16 if device.type == "cuda" else torch.float32
    model, processor = catalog.resolve(arguments.model).open(dtype=kind)
    model = model.to(device).eval().pack()
    engine = Engine(model, processor, limits.rows, limits.rows + limits.queue, limits.media)
    folder = None if arguments.tasks is None else Path(arguments.tasks)
    return make_app(Service(served_name(arguments.model), engine, limits, Keys.read(None), tasks=folder))
