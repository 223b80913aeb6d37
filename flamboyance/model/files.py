"""The files of a checkpoint: config.json, which names the backbones, and model.safetensors, what trained."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from flamboyance import hub, names
from flamboyance.configuration import FlamingoConfig
from flamboyance.files import read_json, replacing, write_text

WEIGHTS = "model.safetensors"
HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "vision/*", "language/*"]


def local_directory(name: str, **options: Any) -> Path:
    """A model's directory: the embedded model's, one on this machine, or the snapshot of a hub repository.

    Raises:
        UnknownModelError: there is none.
    """
    if own := names.embedded(name):
        return own
    directory = Path(name).expanduser()
    return directory if directory.is_dir() else hub.snapshot(name, HUB_FILES, **options)


def read_config(directory: Path) -> FlamingoConfig:
    file = directory / "config.json"
    if not file.is_file():
        raise ValueError(
            f"{directory} has no config.json, so it is no Flamboyance checkpoint. "
            "It should hold config.json and model.safetensors, as save_pretrained writes them."
        )
    try:
        values = read_json(file)
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON ({error}). Restore it from the original checkpoint.") from None
    if not isinstance(values, dict):
        raise ValueError(f"{file} holds a JSON {type(values).__name__}; expected an object with model_type 'flamingo'.")
    if values.get("model_type") != FlamingoConfig.model_type:
        raise ValueError(
            f"{file} describes a model of type {values.get('model_type')!r}; expected 'flamingo'. To build a Flamingo "
            "around it, use FlamingoForConditionalGeneration.from_backbones."
        )
    if not values.get("text_config"):
        raise ValueError(f"{file} has no text_config, the configuration of the language model. Restore it.")
    return FlamingoConfig.from_dict(values)


def resolve(name: str | None, directory: Path) -> str:
    """A backbone's name in the configuration, for loading: relative paths start at the checkpoint's directory."""
    if not name:
        raise ValueError(
            f"The configuration in {directory} does not name its backbones. Set `language` and `vision.name` in its "
            "config.json to a hub id or a directory."
        )
    return os.path.abspath(directory / name) if name.startswith("./") else name


def absolute(name: str) -> str:
    """A hub id as it is, a directory by its absolute path: a checkpoint may be opened from elsewhere."""
    return os.path.abspath(name) if os.path.isdir(name) else name


def portable(name: str | None, directory: Path) -> str | None:
    """A backbone's name for the configuration in `directory`: paths inside it become relative to it."""
    home = os.path.abspath(directory)
    if name is None or not Path(name).is_relative_to(home):
        return name
    return f"./{Path(name).relative_to(home)}"


def write_checkpoint(directory: Path, config: FlamingoConfig, tensors: Mapping[str, Tensor]) -> None:
    """Writes what trained and its configuration. Each file is whole, old or new, whenever the process dies."""
    config = FlamingoConfig.from_dict(config.to_dict())
    config.architectures = ["FlamingoForConditionalGeneration"]
    config.language = portable(config.language, directory)
    config.vision = dict(config.vision, name=portable(config.vision["name"], directory))
    directory.mkdir(parents=True, exist_ok=True)
    with replacing(directory / WEIGHTS) as part:
        save_file({name: t.detach().contiguous() for name, t in tensors.items()}, part, metadata={"format": "pt"})
    write_text(directory / "config.json", config.to_json_string(use_diff=False))


def write_backbone(backbone: Any, directory: Path) -> None:
    """`backbone.save_pretrained(directory)`, with files put in place once all are complete."""
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}.") as temporary:
        backbone.save_pretrained(temporary)
        for file in Path(temporary).iterdir():
            os.replace(file, directory / file.name)


def read_weights(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise ValueError(
            f"There is no {file.name} in {file.parent}: expected what trained, as save_pretrained writes it."
        )
    try:
        with safe_open(file, "pt") as tensors:
            return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118  not a mapping
    except SafetensorError as error:
        raise ValueError(f"{file} is not a complete safetensors file ({error}). Copy or download it again.") from None
