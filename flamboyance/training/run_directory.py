"""The settings and the exported model of a run."""

from __future__ import annotations

import dataclasses
import errno
import shlex
from collections.abc import Generator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from flamboyance.checkpoints import openflamingo
from flamboyance.files import replacing, write_json
from flamboyance.hub import PACKAGE
from flamboyance.model import linear
from flamboyance.training.config import TrainingConfig
from flamboyance.training.parallel import Parallel
from flamboyance.training.run import TrainingRun

EXPORT = "model"  # of the run's directory: what from_pretrained opens
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SMALL = 1e9  # bytes of backbones that are exported together with the trained parameters


def write_settings(output: Path, run: TrainingRun, command: list[str] | None) -> None:
    """Writes training.json: every resolved setting, the command, and versions."""
    settings = dataclasses.asdict(run.training)
    for name, source in run.training.sources.items():
        settings["sources"][name] = {"format": type(source).__name__, **settings["sources"][name]}
    versions = {name: version(name) for name in ("flamboyance", "torch", "transformers")}
    write_json(output / "training.json", {"command": command, "versions": versions, "training": settings}, indent=2)


def identity(model: Any) -> dict[str, Any]:
    """Identifies the model that a checkpoint belongs to, wherever its backbones are on the disk."""
    config = model.config
    names = {"language": config.language, "vision": config.vision["name"]}
    backbones: dict[str, Any] = {part: name and Path(name).name for part, name in names.items()}
    kinds = {"model_type": config.text_config.model_type, "added_tokens": list(config.added_tokens)}
    return {**backbones, **kinds, "frozen": model.frozen_digest()}


@contextmanager
def explaining_full_disk(output: Path) -> Generator[None]:
    """Makes the error of a full disk name the file and say what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise OSError(
            f"{error.filename or output}: {error.strerror}; free space there and start the same command again to resume"
        ) from error


def export(parallel: Parallel, processor: Any, config: TrainingConfig, step: int | None = None) -> Path:
    """Writes the trained model for `from_pretrained`, together with its backbones if they are small. Every rank must
    call this; the first one writes.

    Args:
        step: the number of steps taken, for a model in the middle of a run.
    """
    name = EXPORT if step is None else f"{EXPORT}s/step-{step:08d}"
    directory, model = Path(config.output) / name, parallel.model
    trained = {}
    for name, tensor in model.kept_tensors().items():
        whole = parallel.whole(linear.plain(tensor).detach())
        if parallel.world.first:
            trained[name] = whole
    reference = openflamingo.export(model, parallel.whole) if config.export_openflamingo else None
    if not parallel.world.first:
        return directory
    frozen = sum(p.numel() * p.element_size() for name, p in model.named_parameters() if name not in trained)
    small = frozen < SMALL and not parallel.sharded and model.vision.spec["library"] != "openclip"
    # A sharded backbone is only named. Of the others, large ones that are local directories are copied too.
    # A package's language model is on the machine of everyone who installs the package.
    packaged = str(model.config.language).startswith(PACKAGE)
    include = False if parallel.sharded else (small and not packaged) or None
    model.save_pretrained(directory, include_backbones=include, state_dict=trained)
    processor.save_pretrained(directory)
    if reference is not None:
        with replacing(directory / "checkpoint.pt") as part, open(part, "wb") as file:
            torch.save(reference, file)
    return directory


def usage(directory: Path) -> str:
    """Says where the model of a run is, and which commands use it."""
    model = shlex.quote(str(directory))
    return (
        f"the model is in {directory}; use it with, e.g.:\n"
        f"  flamboyance caption IMAGES --model {model}\n"
        f'  flamboyance ask IMAGES --question "…" --model {model}'
    )
