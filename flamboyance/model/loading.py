"""Making, opening and saving a Flamingo: backbones by name, and what trained as safetensors."""

import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import flamboyance.model.mosaic_gpt  # noqa: F401  registers the family with transformers' Auto classes
from flamboyance.configuration import FlamingoConfig
from flamboyance.model.vision import VisionTower

WEIGHTS = "model.safetensors"
HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "vision/*", "language/*"]


class Checkpointing:
    """`from_backbones`, `from_pretrained` and `save_pretrained` of FlamingoForConditionalGeneration."""

    @classmethod
    def from_backbones(
        cls,
        vision: str,
        language: str,
        processor: Any,
        *,
        vision_pretrained: str | None = None,
        interval: int = 1,
        decoder_layers: str | None = None,
        resampler: dict[str, Any] | None = None,
        cross_attention: dict[str, Any] | None = None,
        dtype: torch.dtype | str = "auto",
        cache_dir: str | None = None,
        local_files_only: bool = False,
        **language_options: Any,
    ) -> Any:
        """A new Flamingo around pretrained backbones; its gates are shut, so at first it is the language model.

        Args:
            vision, vision_pretrained: a hub id or directory; or an OpenCLIP name and its tag; or `timm/<name>`.
            language: hub id or directory of any causal language model.
            processor: the FlamingoProcessor around that language model's tokenizer; gives the ids of added tokens.
            interval, decoder_layers, resampler, cross_attention: as in FlamingoConfig.
            dtype: of all parts; "auto": the one that the language model is stored in.
            language_options: handed to the language model's from_pretrained (device_map, quantization_config, …).
        """
        hub = {"cache_dir": cache_dir, "local_files_only": local_files_only}
        language_model = AutoModelForCausalLM.from_pretrained(language, dtype=dtype, **hub, **language_options)
        tower = VisionTower.from_pretrained(vision, pretrained=vision_pretrained, dtype=language_model.dtype, **hub)
        config = FlamingoConfig(
            vision=tower.spec,
            vision_width=tower.width,
            language=language,
            text_config=language_model.config.get_text_config(decoder=True),
            interval=interval,
            decoder_layers=decoder_layers,
            resampler=resampler,
            cross_attention=cross_attention,
            base_vocab_size=processor.base_vocab_size,
            added_tokens=processor.added_tokens,
            image_token_id=processor.image_token_id,
            eoc_token_id=processor.eoc_token_id,
            pad_token_id=processor.pad_token_id,
        )
        model = cls(config, vision=tower, language_model=language_model)
        model.tokenizer = processor.tokenizer
        return place(model)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *,
        config: FlamingoConfig | None = None,
        dtype: torch.dtype | str = "auto",
        cache_dir: str | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        token: str | None = None,
        **language_options: Any,
    ) -> Any:
        """Opens a released OpenFlamingo model by name, or a Flamboyance checkpoint from a directory or the hub.

        Args:
            pretrained_model_name_or_path: e.g. "openflamingo/OpenFlamingo-3B-vitl-mpt1b", or a directory.
            dtype: of all parts; "auto": the one that the language model is stored in.
            language_options: handed to the language model's from_pretrained (device_map, quantization_config, …).

        Raises:
            ValueError: the checkpoint is not a Flamingo, or does not fit the backbones that it names.
        """
        name = str(pretrained_model_name_or_path)
        hub = {"cache_dir": cache_dir, "local_files_only": local_files_only}
        if not Path(name).is_dir():
            from flamboyance.checkpoints import released  # knows the published models; imports this package

            if released.is_released(name):
                return released.load(cls, name, dtype=dtype, token=token, revision=revision, **hub, **language_options)
        directory = local_directory(name, revision=revision, token=token, **hub)
        if config is None:
            config = read_config(directory)
        vision = dict(config.vision, name=resolve(config.vision["name"], directory))
        language_options = {
            k: v for k, v in language_options.items() if not k.startswith("_") and k != "adapter_kwargs"
        }
        language_model = AutoModelForCausalLM.from_pretrained(
            resolve(config.language, directory), dtype=dtype, **hub, **language_options
        )
        check_language_model(config, language_model)
        tower = VisionTower.from_pretrained(
            vision["name"], vision["pretrained"], vision["library"], dtype=language_model.dtype, **hub
        )
        model = cls(config, vision=tower, language_model=language_model)
        load_trained(model, read_weights(directory / WEIGHTS), directory / WEIGHTS)
        if (directory / "tokenizer_config.json").is_file():
            model.tokenizer = AutoTokenizer.from_pretrained(directory)
        return place(model)

    def save_pretrained(
        self, save_directory: str | os.PathLike, include_backbones: bool = False, max_shard_size: Any = None
    ) -> None:
        """Writes what trained, and a configuration that names the backbones.

        Args:
            save_directory: made if missing. Each file is complete or absent, whenever the process dies.
            include_backbones: also the frozen tower and language model, under vision/ and language/, so that the
                directory stands alone.
            max_shard_size: accepted for `push_to_hub`; what trains is one file.
        """
        directory = Path(save_directory)
        if directory.is_file():
            raise ValueError(f"{directory} is a file; expected a directory to save the model in.")
        directory.mkdir(parents=True, exist_ok=True)
        config = FlamingoConfig.from_dict(self.config.to_dict())
        config.architectures = ["FlamingoForConditionalGeneration"]
        if include_backbones:
            self.language_model.save_pretrained(directory / "language")
            self.vision.save_pretrained(directory / "vision")
            config.language = "./language"
            config.vision = dict(self.vision.spec, name="./vision", pretrained=None)
        tensors = {name: p.detach().contiguous() for name, p in self.trained_parameters().items()}
        with replacing(directory / WEIGHTS) as part:
            save_file(tensors, part, metadata={"format": "pt"})
        with replacing(directory / "config.json") as part:
            Path(part).write_text(config.to_json_string(use_diff=False))
        self.generation_config.save_pretrained(directory)


class replacing:
    """Writes to a temporary file beside the target and puts it in place once it is complete."""

    def __init__(self, target: Path):
        self.target = target

    def __enter__(self) -> str:
        handle, self.part = tempfile.mkstemp(dir=self.target.parent, prefix=f".{self.target.name}.")
        os.close(handle)
        return self.part

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is None:
            shutil.copymode(self.target, self.part) if self.target.exists() else os.chmod(self.part, 0o644)
            os.replace(self.part, self.target)
        else:
            os.unlink(self.part)


def place(model: Any) -> Any:
    """Every part in the language model's precision; blocks on the devices of the layers that they stand before."""
    dtype = model.language_model.dtype
    for part in (model.vision, model.resampler, model.cross_attention, model.added_tokens):
        part.to(dtype)
    devices = [p.device for p in model.language_model.parameters()]
    if devices and any(d.type not in ("cpu", "meta") for d in devices):
        from flamboyance.model.language import find_decoder_layers

        _, layers = find_decoder_layers(model.language_model, model.config.decoder_layers)
        for index, block in zip(model.spliced_layers, model.cross_attention, strict=True):
            block.to(next(layers[index].parameters()).device)
        home = model.language_model.get_input_embeddings().weight.device
        for part in (model.vision, model.resampler, model.added_tokens):
            part.to(home)
    return model


def warn_if_shut(model: Any, source: Any) -> None:
    """Warns when every gate of a loaded checkpoint is zero: such a model looks at no image."""
    gates = [p for name, p in model.named_parameters() if name.endswith("_gate")]
    if not any(p.is_meta or torch.count_nonzero(p) for p in gates):
        warnings.warn(
            f"All {len(gates)} gates in {source} are zero: the model ignores its images. "
            "Is this checkpoint from before training?",
            stacklevel=3,
        )


def local_directory(name: str, **hub: Any) -> Path:
    if Path(name).is_dir():
        return Path(name)
    if Path(name).is_file():
        raise ValueError(
            f"{name} is a file; expected a directory or a hub id. To open OpenFlamingo's checkpoint.pt, convert it: "
            f"flamboyance convert {name} DIRECTORY"
        )
    if name.startswith((".", "/", "~")):
        raise ValueError(f"There is no directory {name}.")
    return Path(snapshot_download(name, allow_patterns=HUB_FILES, **hub))


def read_config(directory: Path) -> FlamingoConfig:
    file = directory / "config.json"
    if not file.is_file():
        raise ValueError(
            f"{directory} has no config.json, so it is no Flamboyance checkpoint. "
            "It should hold config.json and model.safetensors, as save_pretrained writes them."
        )
    try:
        values = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON ({error}). Restore it from the original checkpoint.") from None
    if values.get("model_type") != FlamingoConfig.model_type:
        raise ValueError(
            f"{file} describes a model of type {values.get('model_type')!r}; expected 'flamingo'. To build a Flamingo "
            "around it, use FlamingoForConditionalGeneration.from_backbones."
        )
    return FlamingoConfig.from_dict(values)


def resolve(name: str | None, directory: Path) -> str:
    """A backbone's name: relative paths start at the checkpoint's directory."""
    if not name:
        raise ValueError(
            f"The configuration in {directory} does not name its backbones. Set `language` and `vision.name` in its "
            "config.json to a hub id or a directory."
        )
    return str(directory / name) if name.startswith("./") else name


def check_language_model(config: FlamingoConfig, language_model: PreTrainedModel) -> None:
    found, wanted = language_model.config.get_text_config(decoder=True), config.text_config
    for size in ("model_type", "hidden_size", "num_hidden_layers"):
        if getattr(found, size) != getattr(wanted, size):
            raise ValueError(
                f"The checkpoint was trained for a language model with {size}={getattr(wanted, size)}, but "
                f"{config.language} has {size}={getattr(found, size)}. Name the right one as `language` in config.json."
            )


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


def load_trained(model: Any, tensors: Mapping[str, Tensor], source: Any) -> None:
    """Puts what trained into the model; every tensor must be there, in its shape, and nothing else.

    Raises:
        ValueError: names the first tensor that is missing, unknown or of another shape.
    """
    wanted = model.trained_parameters()
    for problem, names in (
        ("lacks", wanted.keys() - tensors.keys()),
        ("has, beyond what this model trains,", tensors.keys() - wanted.keys()),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ValueError(
                f"{source} {problem} {min(names)}{more}. This model has blocks before layers {model.spliced_layers} "
                f"(interval {model.config.interval}): is the checkpoint for another interval or language model?"
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
    warn_if_shut(model, source)
