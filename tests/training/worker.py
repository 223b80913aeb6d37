"""Run by torchrun: trains a tiny model for some steps, and rank 0 writes losses, norms and parameters.

    torchrun --nproc-per-node 2 -m tests.training.worker ddp opt 50 out.pt [precision] [checkpointed]
"""

import sys

import torch

from flamboyance.training.optimizer import make_optimizer, rate_at
from flamboyance.training.parallel import Parallel, set_precision, world
from flamboyance.training.step import Stepper
from tests.model.families import make
from tests.training.batches import item, normalized, training


def run(kind: str, family: str, steps: int, processes: int, **options) -> dict:
    """Trains on `processes` batches of each source a step, however many processes there are."""
    with world() as here:
        torch.set_num_threads(1)
        config = training(parallel=kind, accumulate=processes // here.size, **options)
        model = make(family).train()
        set_precision(model, config.precision)
        parallel = Parallel(model, config, here)
        stepper = Stepper(parallel, make_optimizer(model.trained_parameters(), config), config, normalized)
        found = {"loss": [], "norm": []}
        for step in range(steps):
            numbers = range(step * processes + here.rank, (step + 1) * processes, here.size)
            outcome = stepper([item(n) for n in numbers], rate_at(step, config))
            found["loss"].append(outcome.loss)
            found["norm"].append(outcome.gradient_norm)
        found["parameters"] = {n: parallel.whole(p.detach()) for n, p in model.trained_parameters().items()}
        found["sharded"] = {type(p).__name__ for p in model.parameters()}
        found["rank"] = here.rank
        return found


if __name__ == "__main__":
    kind, family, steps, path, precision, checkpointed = [*sys.argv[1:], "fp32", ""][:6]
    found = run(kind, family, int(steps), 2, precision=precision, checkpoint_activations=bool(checkpointed))
    if found["rank"] == 0:
        torch.save(found, path)
