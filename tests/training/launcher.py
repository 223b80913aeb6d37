"""torchrun's agent with two ranks that are born with everything imported: see `tests/processes.py`."""

import multiprocessing
import os
import uuid
from pathlib import Path

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from tests.training import tiny_run


def launch(arguments: list[str], restarts: int) -> None:
    """`torchrun --nproc-per-node 2 --max-restarts RESTARTS -m tests.training.tiny_run ARGUMENTS`; the ranks write what
    they print below OUTPUT.ranks/."""
    multiprocessing.set_forkserver_preload(["tests.preloaded"])
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=restarts,
        start_method="forkserver",
        logs_specs=DefaultLogsSpecs(log_dir=f"{arguments[0]}.ranks", redirects=Std.ALL),
    )
    elastic_launch(config, rank)(arguments)


def rank(arguments: list[str]) -> None:
    output = Path(arguments[0])
    output.mkdir(parents=True, exist_ok=True)
    (output / f"rank-{os.environ['RANK']}.pid").write_text(str(os.getpid()), encoding="utf-8")
    tiny_run.main(arguments)
