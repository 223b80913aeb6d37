"""A benchmark's worker that loads and trains with Flamboyance: the counterpart of reference_worker.py."""

from __future__ import annotations

import time
from typing import Any

import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoTokenizer

from benchmarks.parts import UNCOUNTED, machine_rates
from benchmarks.processes import clocks, peak_memory, serve, watch_memory
from flamboyance.checkpoints import openflamingo
from flamboyance.data.batch import Batch
from flamboyance.data.formats.pairs import Pairs
from flamboyance.flamingo import FlamingoForConditionalGeneration
from flamboyance.images import ImageProcessor
from flamboyance.processes import World
from flamboyance.processing import FlamingoProcessor
from flamboyance.training.config import TrainingConfig
from flamboyance.training.loop import configure_torch
from flamboyance.training.optimizer import make_optimizer
from flamboyance.training.parallel import Parallel, set_precision
from flamboyance.training.step import Stepper

held: dict[str, Any] = {}


def load(paths: dict[str, str], threads: int, cross_attn_every_n_layers: int = 1) -> dict[str, str]:
    """Opens the reference's model, trained parts and all."""
    torch.set_num_threads(threads)
    processor = FlamingoProcessor(None, AutoTokenizer.from_pretrained(paths["tokenizer"]))
    model = FlamingoForConditionalGeneration.from_backbones(
        paths["vision"],
        paths["language"],
        processor,
        cross_attn_every_n_layers=cross_attn_every_n_layers,
        dtype=torch.float32,
    )
    openflamingo.load(model, openflamingo.read(paths["checkpoint"]))
    held.update(model=model, processor=processor)
    return {"torch": torch.__version__, "transformers": transformers.__version__}


def prepare(
    batches: str,
    rate: float,
    weights: dict[str, float],
    checkpoint_activations: bool,
    precision: str = "fp32",
) -> int:
    """Ready to take steps as `flamboyance train` takes them; bytes resident."""
    model = held["model"].train()
    set_precision(model, precision)
    sources = {name: Pairs(shards="", batch_size=1, weight=weight) for name, weight in weights.items()}
    config = TrainingConfig(
        output="", sources=sources, steps=1, precision=precision, checkpoint_activations=checkpoint_activations
    )  # type: ignore[arg-type]
    configure_torch(config, World())
    parallel = Parallel(model, config, World())
    optimizer = make_optimizer(model.trained_parameters(), config)
    normalize = ImageProcessor.clip(model.vision.image_size).normalized
    item = {name: Batch(**fields) for name, fields in torch.load(batches, weights_only=True).items()}
    held.update(stepper=Stepper(parallel, optimizer, config, normalize), item=item, rate=rate)
    return watch_memory()


def step() -> dict[str, Any]:
    """One optimizer step: seconds, those of all cores, and the losses by source."""
    began, used = time.perf_counter(), time.process_time()
    outcome = held["stepper"]([held["item"]], held["rate"])
    seconds, used = time.perf_counter() - began, time.process_time() - used
    return {"seconds": seconds, "processor_seconds": used, "losses": outcome.losses}


def operations() -> int:
    """Floating-point operations of a step's matrix products, recomputation included; takes a step."""
    with FlopCounterMode(display=False, custom_mapping=UNCOUNTED) as counter:
        held["stepper"]([held["item"]], held["rate"])
    return counter.get_total_flops()


def matrix_rate(precision: str, threads: int, clock: str) -> float:
    """Operations a second of a large square product: the machine's ceiling."""
    torch.set_num_threads(threads)
    return machine_rates(precision, clock)["matrix"]


if __name__ == "__main__":
    functions = (load, prepare, step, operations, matrix_rate, clocks, peak_memory, watch_memory)
    serve({function.__name__: function for function in functions})
