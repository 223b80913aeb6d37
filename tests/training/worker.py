"""Run by torchrun: trains tiny models for some steps, every way, and rank 0 writes losses, norms and parameters.

torchrun --nproc-per-node 2 -m tests.training.worker 50 out.pt ddp:opt fsdp:opt fsdp:llama:checkpointed:short
"""

import sys
from contextlib import contextmanager

import torch

from flamboyance.training import parallel as parallelism
from flamboyance.training.optimizer import make_optimizer, rate_at
from flamboyance.training.parallel import Parallel, World, set_precision
from flamboyance.training.step import Stepper
from tests.model.families import make
from tests.training.batches import item, normalized, training

BATCHES = 2  # of each source a step, however many processes there are


def run(here: World, kind: str, family: str, steps: int, **options) -> dict:
    config = training(parallel=kind, accumulate=BATCHES // here.size, **options)
    model = make(family).train()
    set_precision(model, config.precision)
    parallel = Parallel(model, config, here)
    stepper = Stepper(parallel, make_optimizer(model.trained_parameters(), config), config, normalized)
    found: dict = {"loss": [], "norm": []}
    for step in range(steps):
        numbers = range(step * BATCHES + here.rank, (step + 1) * BATCHES, here.size)
        outcome = stepper([item(n) for n in numbers], rate_at(step, config))
        found["loss"].append(outcome.loss)
        found["norm"].append(outcome.gradient_norm)
    found["parameters"] = {n: parallel.whole(p.detach()) for n, p in model.trained_parameters().items()}
    found["kinds"] = {n: type(p).__name__ for n, p in model.named_parameters()}
    return found


@contextmanager
def one_thread():
    torch.set_num_threads(1)
    with parallelism.world() as here:
        yield here


if __name__ == "__main__":
    steps, path, *ways = sys.argv[1:]
    with one_thread() as here:
        found = {}
        for way in ways:
            kind, family, *flags = way.split(":")
            options = {"checkpoint_activations": "checkpointed" in flags, "compile": "compiled" in flags}
            options["precision"] = "bf16" if "bf16" in flags else "fp32"
            found[way] = run(here, kind, family, 8 if "short" in flags else int(steps), **options)
        if here.first:
            torch.save(found, path)
