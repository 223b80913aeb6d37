"""Writing the frozen parts of a model, each as a directory that its own library opens."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from flamboyance.files import read_json, replacing, write_json
from flamboyance.model import adapters
from flamboyance.model.vision import VisionTower
from flamboyance.model.vision_libraries import TIMM_WEIGHTS


def write_backbone(save: Callable[[Path], None], directory: Path) -> None:
    """Calls `save` on a temporary directory, moves its files here once all are complete, and removes weights of earlier
    saves."""
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}.") as temporary:
        save(Path(temporary))
        for file in Path(temporary).glob("config.json"):
            write_json(file, without_paths(read_json(file)), indent=2)
        new = {file.name for file in Path(temporary).iterdir()}
        # Older weights would be read instead of the new ones, or mixed with them.
        for pattern in ("*.safetensors", "*.bin", "*.index.json", "adapter_*"):
            for file in directory.glob(pattern):
                if file.name not in new:
                    file.unlink()
        for name in sorted(new):
            with replacing(directory / name) as part:  # gives it the umask's mode
                os.replace(Path(temporary) / name, part)


def without_paths(values: Any) -> Any:
    """A configuration without the paths that its parts were read from."""
    if isinstance(values, dict):
        return {k: "" if k == "_name_or_path" else without_paths(v) for k, v in values.items()}
    return [without_paths(v) for v in values] if isinstance(values, list) else values


def save_transformers(model: Any, directory: Path) -> None:
    """`save_pretrained` of a transformers model with its current weights, without adapters."""
    theirs = adapters.names(model)
    if not theirs and adapters.base(model) is model:
        model.save_pretrained(directory)
        return
    state = {adapters.canonical(name): t for name, t in model.state_dict().items() if name not in theirs}
    whole = adapters.base(model)
    flag = vars(whole).pop("_hf_peft_config_loaded", None)  # else transformers writes only adapters
    try:
        whole.save_pretrained(directory, state_dict=state)
    finally:
        if flag is not None:
            whole._hf_peft_config_loaded = flag


def save_tower(tower: VisionTower, directory: Path) -> None:
    """Writes a tower as a directory of its library, without adapters.

    Raises:
        ValueError: OpenCLIP's towers are opened by name.
    """
    if tower.spec["library"] == "openclip":
        raise ValueError(
            f"vision tower {tower.spec['name']} is from openclip, which has no directory format for it; save with "
            "include_backbones=False, so that the tower is opened by its name"
        )
    if tower.spec["library"] == "timm":
        save_timm(tower.model, directory, tower.image_size)
    else:
        save_transformers(tower.model, directory)


def save_timm(model: Any, directory: Path, image_size: int | None = None) -> None:
    """Writes the model as timm's `local-dir:` opens it: config.json and model.safetensors.

    Args:
        image_size: the side of the images that it was trained for, if not the one that timm states.
    """
    directory.mkdir(parents=True, exist_ok=True)
    inner = getattr(model, "model", model)  # of FeatureGetterNet
    known = model.pretrained_cfg
    preprocessing = {key: known[key] for key in ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")}
    if image_size is not None:
        preprocessing["input_size"] = (known["input_size"][0], image_size, image_size)
    preprocessing |= {"fixed_input_size": known.get("fixed_input_size", False), "num_classes": 0}
    about = {"architecture": known["architecture"], "num_classes": 0, "pretrained_cfg": preprocessing}
    write_json(directory / "config.json", about, indent=2)
    tensors = {name: tensor.contiguous() for name, tensor in inner.state_dict().items()}
    with replacing(directory / TIMM_WEIGHTS) as part:
        save_file(tensors, part, metadata={"format": "pt"})
