"""The memory that `flamboyance plan` estimates, and what training steps take on this machine's CPU in float32.

    python -m benchmarks.plan_memory [--json FILE] [--case NAME …]

Each case runs in a process of its own: the base is its resident memory before the model is built (Python, torch,
transformers, this package), the peak is the kernel's high-water mark (VmHWM) over two optimizer steps of the loop's own
Stepper. The estimate is the base plus what `plan` computes without building anything.

glibc's malloc keeps freed blocks of up to 32 MiB. Each case is measured twice: with MALLOC_MMAP_THRESHOLD_, which
makes malloc return them, so that resident memory is that of tensors; and without it, where the estimate has `plan`'s
allowance.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from typing import Any

from benchmarks.processes import peak_memory, resident_memory, watch_memory
from benchmarks.results import machine
from flamboyance.files import write_json

MMAP_THRESHOLD = 64 * 1024
STEPS = 2  # optimizer moments are made in the first


def cases() -> dict[str, dict[str, Any]]:
    """Name -> model configuration, batch sizes, and whether activations are checkpointed."""
    from transformers import LlamaConfig, OPTConfig

    from flamboyance.configuration import FlamingoConfig
    from flamboyance.model.vision import tower_spec
    from flamboyance.planning.cost import BatchSizes

    def flamingo(tower: str, width: int, text: Any, base: int, every: int) -> FlamingoConfig:
        ids = {"eoc_token_id": base, "image_token_id": base + 1, "pad_token_id": base + 2}
        spec = tower_spec(tower, "openai")
        return FlamingoConfig(
            vision=spec,
            vision_width=width,
            text_config=text,
            base_vocab_size=base,
            cross_attn_every_n_layers=every,
            **ids,
        )

    opt = flamingo("ViT-B-32", 768, OPTConfig(), 50265, 1)
    llama = LlamaConfig(
        hidden_size=512, intermediate_size=1536, num_hidden_layers=16, num_attention_heads=8, num_key_value_heads=2,
        vocab_size=32000, max_position_embeddings=2048, tie_word_embeddings=False,
    )  # fmt: skip
    small = flamingo("ViT-B-16", 768, llama, 32000, 4)
    pairs, documents = BatchSizes(8, 32, 8, 8 * 31), BatchSizes(4, 256, 12, 4 * 256 - 12)
    wide = BatchSizes(12, 256, 36, 12 * 256 - 36)
    return {
        "OPT-125M + ViT-B/32": {"config": opt, "batches": [pairs, documents], "checkpoint": False},
        "OPT-125M + ViT-B/32, activations checkpointed": {
            "config": opt, "batches": [pairs, documents], "checkpoint": True,
        },
        "Llama 16 x 512, untied, interval 4 + ViT-B/16": {"config": small, "batches": [wide], "checkpoint": False},
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", metavar="FILE", help="also write the figures there")
    parser.add_argument("--case", action="append", help="only this one (default: all)")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measured(**cases()[arguments.measure])))
        return 0
    wanted = {name: case for name, case in cases().items() if not arguments.case or name in arguments.case}
    rows = [row(name, case, keeping) for name, case in wanted.items() for keeping in (False, True)]
    print(f"{'':47}{'malloc':>8}{'base':>6}{'estimate':>10}{'measured':>10}{'error':>8}{'s a step':>10}")
    for r in rows:
        base, estimated, found = (r[key] / 1e9 for key in ("base", "estimate", "measured"))
        print(
            f"{r['case']:47}{'as it is' if r['keeping'] else '':>8}{base:6.2f}{estimated:10.2f}{found:10.2f}"
            f"{r['error']:+8.1%}{r['step_s']:10.1f}"
        )
    print("GB of 1e9 bytes; estimate and measured include the base.")
    if arguments.json:
        write_json(arguments.json, {"machine": machine(), "rows": rows})
    return 0


def row(name: str, case: dict[str, Any], keeping: bool) -> dict[str, Any]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    if not keeping:
        environment["MALLOC_MMAP_THRESHOLD_"] = str(MMAP_THRESHOLD)
    command = [sys.executable, "-m", "benchmarks.plan_memory", "--measure", name]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    parts = estimate(**case, keeping=keeping)
    total = found["base"] + sum(parts.values())
    error = total / found["measured"] - 1
    return {"case": name, "keeping": keeping, **found, "estimate": total, "error": error, "parts": parts}


def estimate(config: Any, batches: list[Any], checkpoint: bool, keeping: bool) -> dict[str, float]:
    """Bytes by part, beside what the process had before."""
    from flamboyance.planning import cost, memory
    from flamboyance.training.hardware import this_machine

    traced = cost.trace(config, batches, device="cpu", checkpoint_activations=checkpoint)
    model = cost.meta_model(config)
    machine = dataclasses.replace(this_machine(), reserve=0.0)
    whole = memory.memory(
        memory.parts(model),
        memory.units(model, "fp32"),
        traced,
        memory.Devices("single", 1, 1),
        passes=len(batches),
        micro_steps=1,
        hardware=machine if keeping else dataclasses.replace(machine, fragments=0.0),
    )
    return dataclasses.asdict(whole)


def measured(config: Any, batches: list[Any], checkpoint: bool) -> dict[str, float]:
    import torch

    from flamboyance.data.formats.pairs import Pairs
    from flamboyance.flamingo import FlamingoForConditionalGeneration
    from flamboyance.images import ImageProcessor
    from flamboyance.planning.cost import batch_of
    from flamboyance.processes import World
    from flamboyance.training.config import TrainingConfig
    from flamboyance.training.optimizer import make_optimizer
    from flamboyance.training.parallel import Parallel
    from flamboyance.training.step import Stepper

    sources = {str(i): Pairs(shards="", batch_size=b.rows) for i, b in enumerate(batches)}
    training = TrainingConfig(output="", sources=sources, steps=STEPS, checkpoint_activations=checkpoint)
    torch.ones(512, 512) @ torch.ones(512, 512)  # threads and the matrix library's own memory
    base = resident_memory()
    model = FlamingoForConditionalGeneration(config).train()
    parallel = Parallel(model, training, World())
    stepper = Stepper(
        parallel,
        make_optimizer(model.trained_parameters(), training),
        training,
        ImageProcessor.clip(model.vision.image_size).normalized,
    )
    item = {}
    for name, sizes in zip(sources, batches, strict=True):
        batch = batch_of(sizes, model)
        item[name] = dataclasses.replace(batch, images=torch.zeros(batch.images.shape, dtype=torch.uint8))
    built = watch_memory()
    began = time.perf_counter()
    for _ in range(STEPS):
        stepper([item], 1e-4)
    seconds = (time.perf_counter() - began) / STEPS
    return {"base": base, "built": built, "measured": peak_memory(), "step_s": seconds}


if __name__ == "__main__":
    sys.exit(main())
