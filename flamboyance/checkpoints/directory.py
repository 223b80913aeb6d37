"""The files of a checkpoint: config.json, which names the backbones, and model.safetensors with the trained tensors."""

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from flamboyance.checkpoints.save_backbones import without_paths
from flamboyance.configuration import FlamingoConfig
from flamboyance.files import read_json, replacing
from flamboyance.model import adapters
from flamboyance.model.finite import check_finite
from flamboyance.model.trainable import OWN

WEIGHTS = "model.safetensors"
ABOUT = "flamboyance"  # the metadata key of that file under which the values that belong to its tensors are


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
    """The name that opens a backbone: relative paths in the configuration start at the checkpoint's directory."""
    if not name:
        raise ValueError(
            f"The configuration in {directory} does not name its backbones. Set `language` and `vision.name` in its "
            "config.json to a hub id or a directory."
        )
    return os.path.abspath(directory / name) if name.startswith("./") else name


def absolute(name: str) -> str:
    """A hub id or a package's name unchanged, a directory or a file as its absolute path, since a checkpoint may be
    opened from another folder."""
    return os.path.abspath(name) if os.path.isdir(name) or name.endswith(".gguf") else name


def portable(name: str | None, directory: Path) -> str | None:
    """The name of a backbone in the configuration of `directory`: paths inside the directory become relative to it."""
    home = os.path.abspath(directory)
    if name is None or not Path(name).is_relative_to(home):
        return name
    return f"./{Path(name).relative_to(home)}"


def write_checkpoint(
    directory: Path, config: FlamingoConfig, tensors: Mapping[str, Tensor], about: Mapping[str, Any] | None = None
) -> None:
    """Writes the trained tensors and the configuration. If the process dies, each file is complete, old or new.

    Args:
        about: plain values kept in the tensors' file: adapters, names of trainable parameters, precision.
    """
    config = FlamingoConfig.from_dict(config.to_dict())
    config.architectures = ["FlamingoForConditionalGeneration"]
    config.language = portable(config.language, directory)
    config.vision = dict(config.vision, name=portable(config.vision["name"], directory))
    directory.mkdir(parents=True, exist_ok=True)
    metadata = {"format": "pt"} | ({} if about is None else {ABOUT: json.dumps(about)})
    values = without_paths(json.loads(config.to_json_string(use_diff=False)))
    text = json.dumps(values, indent=2, sort_keys=True) + "\n"
    # Both are written before either is put in place: on a full disk the old pair remains.
    with replacing(directory / WEIGHTS) as weights, replacing(directory / "config.json") as part:
        save_file({name: t.detach().contiguous() for name, t in tensors.items()}, weights, metadata=metadata)
        Path(part).write_bytes(text.encode())


def read_weights(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors, and the `about` that was passed to `write_checkpoint` (empty in older files).

    Raises:
        ValueError: no such file, a damaged one, or a tensor with values that are not finite.
    """
    if not file.is_file():
        raise ValueError(
            f"there is no {file.name} in {file.parent}: expected the trained tensors, as save_pretrained writes them"
        )
    try:
        with safe_open(file, "pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  not a mapping
            about = json.loads((opened.metadata() or {}).get(ABOUT, "{}"))
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{file} is not a complete safetensors file ({error}). Copy or download it again.") from None
    check_finite(tensors, file)
    return tensors, about


def load_trained(model: Any, tensors: Mapping[str, Tensor], source: Any) -> None:
    """Copies the tensors into the model. All of the model's own parts and adapters must be among them, each tensor must
    belong to the model, and shapes must agree.

    Raises:
        ValueError: names the first tensor that is missing, unknown or of another shape.
    """
    wanted, theirs = adapters.tensors(model), adapters.names(model)
    needed = {n for n in wanted if n in theirs or adapters.canonical(n).startswith(OWN)}
    for problem, keys in (
        ("lacks", needed - tensors.keys()),
        ("has, beyond what this model trains,", tensors.keys() - wanted.keys()),
    ):
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise ValueError(
                f"{source} {problem} {min(keys)}{more}. This model has blocks before layers "
                f"{model.cross_attention_layers} ({model.config.placement}), and its backbones are "
                f"{'not quantized' if model.config.quantize is None else f'quantized to {model.config.quantize}'}: is "
                f"the checkpoint for another {model.config.placement.partition('=')[0]} or language model, or not to "
                "be quantized?"
            )
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape:
            raise ValueError(
                f"{name} in {source} has shape {tuple(tensor.shape)}; this model has {tuple(wanted[name].shape)}. "
                "The checkpoint belongs to a vision tower or language model of another width."
            )
    with torch.no_grad():
        for name, tensor in tensors.items():
            wanted[name].copy_(tensor)
    model.mark_as_learned(tensors)
    warn_if_shut(model.own_parameters(), source)


def settle_adapters(model: Any, tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> None:
    """Casts adapters to the precision that they were saved in, often higher than that of their base weights."""
    theirs = adapters.names(model)
    for name, parameter in model.named_parameters():
        if name in theirs and name in tensors:
            parameter.data = tensors[name].to(parameter.device)
        elif name in theirs and dtype is not None:
            parameter.data = parameter.data.to(dtype)


def restore_trainable(model: Any, about: Mapping[str, Any]) -> None:
    """Makes the parameters trainable that were trainable when the model was saved. If none was, as in a copy for
    inference, the model stays as a new one."""
    names = set(about.get("trainable", ()))
    for name, parameter in model.named_parameters() if names else ():
        if parameter.is_floating_point():
            parameter.requires_grad_(name in names)


def cast_trainable(model: Any, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Casts the trainable parameters: from the stored tensors where there are any, which the model may have rounded."""
    for name, parameter in model.trained_parameters().items():
        if parameter.is_floating_point():
            parameter.data = tensors.get(name, parameter.data).to(parameter.device, dtype)


def warn_if_shut(trained: Mapping[str, Tensor], source: Any) -> None:
    """Warns if every gate of a loaded checkpoint is zero: such a model ignores images."""
    gates = [p for name, p in trained.items() if name.endswith("_gate")]
    if not any(p.is_meta or torch.count_nonzero(p) for p in gates):
        warnings.warn(
            f"All {len(gates)} gates in {source} are zero: the model ignores its images. "
            "Is this checkpoint from before training?",
            stacklevel=3,
        )
