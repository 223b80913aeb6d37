"""Run by every rank: trains tiny models for some steps, every way, and rank 0 writes losses, norms and parameters.

torchrun --nproc-per-node 2 -m tests.training.worker 50 out.pt ddp:opt fsdp:opt fsdp:llama:checkpointed:short
"""

import sys
import warnings
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from flamboyance.model import vision
from flamboyance.processes import World, world
from flamboyance.training import parallel as parallelism
from flamboyance.training.checkpoint import Checkpoints
from flamboyance.training.optimizer import make_optimizer
from flamboyance.training.parallel import Parallel, set_precision
from flamboyance.training.schedule import learning_rate_at
from flamboyance.training.step import Stepper
from flamboyance.training.trained_parts import TrainedParts
from tests.model.families import images, make, pad_left, prompt
from tests.training.batches import item, normalized, training

BATCHES = 2  # of each source a step, however many processes there are


class Int8Linear(nn.Module):
    """A linear layer whose weight is kept in 8 bits, as quantising libraries keep it."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        scale = layer.weight.abs().amax(1, keepdim=True) / 127
        self.register_buffer("scale", scale.detach())
        self.weight = nn.Parameter((layer.weight / scale).round().to(torch.int8), requires_grad=False)
        self.bias = layer.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight * self.scale.to(x.dtype), self.bias)


def quantize(model) -> None:
    """In place: the linear layers of the language model's decoder layers."""
    for layer in parallelism.decoder_layers(model):
        for module in list(layer.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(module, name, Int8Linear(child))


def run(
    here: World,
    kind: str,
    family: str,
    steps: int,
    packed: bool = False,
    evaluated: bool = False,
    unfrozen: bool = False,
    folder=None,
    **options,
) -> dict:
    vision.TOGETHER = 16  # images of a tiny tower: several turns, did it not know of the other processes
    config = training(parallel=kind, gradient_accumulation_steps=BATCHES // here.size, **options)
    model = make(family).train()
    if packed:
        quantize(model)
    TrainedParts(vision=unfrozen, language=unfrozen).apply(model)
    set_precision(model, config.precision)
    parallel = Parallel(model, config, here)
    stepper = Stepper(parallel, make_optimizer(model.trained_parameters(), config), config, normalized)
    found: dict = {"loss": [], "norm": []}
    if evaluated:  # before any forward pass
        with parallel.readable() as readable, torch.no_grad():
            inputs = pad_left([prompt(3, 4)])
            pixels = images(2).to(next(model.vision.parameters()).dtype)
            found["said"] = readable.generate(**inputs, pixel_values=pixels, max_new_tokens=4, do_sample=False).tolist()
    for step in range(steps):
        numbers = range(step * BATCHES + here.rank, (step + 1) * BATCHES, here.size)
        outcome = stepper([item(n) for n in numbers], learning_rate_at(step, config))
        found["loss"].append(outcome.loss)
        found["norm"].append(outcome.gradient_norm)
    if folder:
        found["resumed"] = resumed(here, model.trained_parameters(), stepper.optimizer, parallel, folder)
    found["parameters"] = {n: parallel.whole(p.detach()) for n, p in model.trained_parameters().items()}
    found["kinds"] = {n: type(p).__name__ for n, p in model.named_parameters()}
    return found


def resumed(here: World, trained: dict, optimizer, parallel: Parallel, folder: Path) -> dict:
    """Saves twice, damages what the last rank wrote the second time, and loads: which step each rank has then, and the
    gradients' running mean as it was saved the first time and as it is now."""
    checkpoints = Checkpoints(folder, here, keep=2, identity={})
    means = {n: optimizer.state[p]["exp_avg"] for n, p in trained.items()}
    first = {n: parallel.whole(mean).clone() for n, mean in means.items()}
    checkpoints.save(1, trained, optimizer, {"from": here.rank})
    checkpoints.wait()
    for mean in means.values():
        mean.fill_(7)
    checkpoints.save(2, trained, optimizer, {"from": here.rank})
    checkpoints.wait()
    if here.first:
        file = folder / "step-00000002" / f"rank-{here.size - 1}.safetensors"
        file.write_bytes(file.read_bytes()[:-1] + b"?")
    here.wait()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        states = checkpoints.load(trained, optimizer)
    now = {n: parallel.whole(mean).clone() for n, mean in means.items()}
    own = {"step": [state["step"] for state in states], "from": [state["from"] for state in states]}
    return {
        "every": here.gather(own),
        "first": first,
        "now": now,
        "warned": here.gather([str(w.message) for w in warned]),
    }


@contextmanager
def one_thread():
    torch.set_num_threads(1)
    with world() as here:
        yield here


def main(arguments: list[str]) -> None:
    steps, path, *ways = arguments
    with one_thread() as here:
        found = {}
        for way in ways:
            kind, family, *flags = way.split(":")
            options: dict = {"checkpoint_activations": "checkpointed" in flags, "compile": "compiled" in flags}
            options["evaluated"] = "evaluated" in flags
            options["unfrozen"] = "unfrozen" in flags
            options["packed"] = "quantized" in flags
            options["folder"] = Path(path).parent / f"{kind}-{family}" if "saved" in flags else None
            options["precision"] = "bf16" if "bf16" in flags else "fp32"
            found[way] = run(here, kind, family, 8 if "short" in flags else int(steps), **options)
        if here.first:
            torch.save(found, path)


if __name__ == "__main__":
    main(sys.argv[1:])
