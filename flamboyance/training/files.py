"""What a run leaves beside its log and checkpoints: its settings, and at the end the model."""

from __future__ import annotations

import dataclasses
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from flamboyance.checkpoints import openflamingo
from flamboyance.model.files import replacing
from flamboyance.training.config import Training
from flamboyance.training.parallel import Parallel
from flamboyance.training.run import Run

EXPORT = "model"  # of the run's directory: what from_pretrained opens
SMALL = 1e9  # bytes of backbones that are exported together with what trained


def write_settings(output: Path, run: Run, command: list[str] | None) -> None:
    """training.json: every setting as it was resolved, the command, and versions."""
    settings = dataclasses.asdict(run.training)
    for name, source in run.training.sources.items():
        settings["sources"][name] = {"format": type(source).__name__, **settings["sources"][name]}
    versions = {name: version(name) for name in ("flamboyance", "torch", "transformers")}
    with replacing(output / "training.json") as part, open(part, "w") as file:
        json.dump({"command": command, "versions": versions, "training": settings}, file, indent=2)


def export(parallel: Parallel, processor: Any, config: Training) -> Path:
    """Writes the trained model for `from_pretrained`; small backbones with it, so that it stands alone. Every rank
    must ask; the first one writes."""
    directory, model = Path(config.output) / EXPORT, parallel.model
    trained = {name: parallel.whole(p.detach()) for name, p in model.trained_parameters().items()}
    reference = openflamingo.export(model, parallel.whole) if config.export_openflamingo else None
    if not parallel.world.first:
        return directory
    frozen = sum(p.numel() * p.element_size() for name, p in model.named_parameters() if name not in trained)
    small = frozen < SMALL and not parallel.sharded and model.vision.spec["library"] == "transformers"
    model.save_pretrained(directory, include_backbones=small, state_dict=trained)
    processor.save_pretrained(directory)
    if reference is not None:
        with replacing(directory / "checkpoint.pt") as part:
            torch.save(reference, part)
    return directory
