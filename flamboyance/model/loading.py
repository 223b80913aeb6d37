"""Making and opening a Flamingo: backbones by name, and what trained as safetensors."""

import copy
import os
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel

import flamboyance.model.mosaic_gpt  # noqa: F401  registers the family with transformers' Auto classes
from flamboyance import names
from flamboyance.configuration import FlamingoConfig
from flamboyance.hub import options as reachable
from flamboyance.model import adapters
from flamboyance.model.files import (
    WEIGHTS,
    absolute,
    check_finite,
    local_directory,
    read_config,
    read_weights,
    resolve,
)
from flamboyance.model.preprocessing import follow_tower
from flamboyance.model.trainable import OWN
from flamboyance.model.vision import VisionTower


class Checkpointing:
    """`from_backbones` and `from_pretrained` of FlamingoForConditionalGeneration."""

    config: FlamingoConfig
    generation_config: GenerationConfig
    vision: VisionTower
    language_model: PreTrainedModel
    processor: Any = None  # what the model was made or opened with, written again when it is saved
    source: Path | None = None  # the directory that it was opened from

    @classmethod
    def from_backbones(
        cls: Any,
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
        trained_dtype: torch.dtype | None = None,
        cache_dir: str | None = None,
        local_files_only: bool = False,
        **language_options: Any,
    ) -> Any:
        """A new Flamingo around pretrained backbones; its gates are shut, so at first it is the language model.

        Args:
            vision, vision_pretrained: a hub id or directory; or an OpenCLIP name and its tag; or `timm/<name>`.
            language: hub id or directory of any causal language model.
            processor: the FlamingoProcessor around that language model's tokenizer; gives the ids of added tokens. Made
                without an image processor, it gets the tower's.
            interval, decoder_layers, resampler, cross_attention: as in FlamingoConfig.
            dtype: of all parts; "auto": the one that the language model is stored in.
            trained_dtype: of what trains, if not that; float32 to train further.
            language_options: handed to the language model's from_pretrained (device_map, quantization_config, …).
        """
        vision, language = absolute(vision), absolute(language)
        hub: dict[str, Any] = {"cache_dir": cache_dir, "local_files_only": local_files_only}
        with opening("language", language):
            options = adapters_too(reachable(language, hub)) | language_options
            language_model = open_language_model(language, dtype=dtype, **options)
        with opening("vision", vision):
            hub = reachable(vision, hub) | {"dtype": language_model.dtype}
            tower = VisionTower.from_pretrained(vision, pretrained=vision_pretrained, **hub)
        follow_tower(processor, tower.spec)
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
        check_backbones(tower, language_model)
        model = cls(config, vision=tower, language_model=language_model)
        model.tokenizer, model.processor = processor.tokenizer, processor
        return place(model, trained_dtype)

    @classmethod
    def from_pretrained(
        cls: Any,
        pretrained_model_name_or_path: str | os.PathLike,
        *,
        config: FlamingoConfig | None = None,
        checkpoint: str | None = None,
        language: str | None = None,
        vision: str | None = None,
        tokenizer: str | None = None,
        dtype: torch.dtype | str = "auto",
        trained_dtype: torch.dtype | None = None,
        cache_dir: str | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        token: str | None = None,
        **language_options: Any,
    ) -> Any:
        """Opens a released OpenFlamingo model by name, or a Flamboyance checkpoint from a directory or the hub.

        Args:
            pretrained_model_name_or_path: e.g. "openflamingo/OpenFlamingo-3B-vitl-mpt1b", or a directory.
            checkpoint, tokenizer: of a released model, if not to come from the hub: its checkpoint.pt, and a directory.
            language, vision: where the backbones are, if not where the checkpoint says: hub ids or directories.
            dtype: of all parts; "auto": the one that the language model is stored in.
            trained_dtype: of what trains, if not that; float32 to train further.
            language_options: handed to the language model's from_pretrained (device_map, quantization_config, …).

        Raises:
            ValueError: the checkpoint is not a Flamingo, or does not fit the backbones that it names.
        """
        name = str(pretrained_model_name_or_path)
        hub: dict[str, Any] = {"cache_dir": cache_dir, "local_files_only": local_files_only}
        if not names.embedded(name) and not Path(name).expanduser().is_dir():
            from flamboyance.checkpoints import released  # knows the published models; imports this package

            if released.is_released(name):
                hub |= {"token": token, "revision": revision}
                own: dict[str, Any] = {"checkpoint": checkpoint, "tokenizer": tokenizer}
                own |= {"language": language, "vision": vision}
                return released.load(
                    cls, name, dtype=dtype, trained_dtype=trained_dtype, **own, **hub, **language_options
                )
        if checkpoint or tokenizer:
            raise ValueError(f"checkpoint= and tokenizer= are for released OpenFlamingo models; {name} has its own.")
        directory = local_directory(name, revision=revision, token=token, **hub)
        if config is not None and dtype == "auto" and config.dtype is not None:
            dtype = config.dtype  # where older transformers' Auto classes put the dtype that they were asked for
        config = read_config(directory) if config is None else copy.deepcopy(config)
        tensors, about = read_weights(directory / WEIGHTS)
        stored = dtype == "auto"
        if stored and about.get("dtype"):
            dtype = about["dtype"]
        config.language = absolute(language) if language else resolve(config.language, directory)
        vision = absolute(vision) if vision else resolve(config.vision["name"], directory)
        config.vision = dict(config.vision, name=vision)
        language_options = {
            k: v for k, v in language_options.items() if not k.startswith("_") and k != "adapter_kwargs"
        }
        if token is not None:
            language_options["token"] = token
        with opening("language", language := config.language):
            options = adapters_too(reachable(language, hub)) | language_options
            language_model = open_language_model(language, dtype=dtype, **options)
        check_language_model(config, language_model)
        pretrained, library = config.vision["pretrained"], config.vision["library"]
        with opening("vision", vision):
            hub = reachable(vision, hub) | {"dtype": language_model.dtype}
            tower = VisionTower.from_pretrained(vision, pretrained, library, **hub)
        if tower.width != config.vision_width:
            raise ValueError(
                f"The checkpoint was trained for a vision tower of width {config.vision_width}, but {vision} has width "
                f"{tower.width}. Name the right one: vision=, or `vision` in config.json."
            )
        check_backbones(tower, language_model)
        model = cls(config, vision=tower, language_model=language_model)
        if about.get("adapters"):
            adapters.rebuild(model, about["adapters"], directory)
        load_trained(model, tensors, directory / WEIGHTS)
        _find_processor(model, directory)
        model.source = directory
        if (directory / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(directory)
        place(model, trained_dtype)
        settle_adapters(model, tensors if stored and trained_dtype is None else {}, trained_dtype)
        restore_trainable(model, about)
        return model


def open_language_model(name: str, **options: Any) -> PreTrainedModel:
    """A language model all of whose weights are stored.

    Raises:
        ValueError: some are not, as in a directory that was copied in part; they would be random.
    """
    options.setdefault("trust_remote_code", False)  # else transformers asks, on the terminal, whether to run the code
    loaded: Any = AutoModelForCausalLM.from_pretrained(name, output_loading_info=True, **options)
    model, report = loaded
    parameters = {parameter for parameter, _ in model.named_parameters()}
    if lacking := sorted(parameters & set(report["missing_keys"])):
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise ValueError(
            f"the weights of {name} lack {lacking[0]}{more}, which would be random; is the directory complete, and is "
            "its config.json that of these weights?"
        )
    return model


@contextmanager
def opening(part: str, name: str) -> Generator[None]:
    """Says which backbone it was that could not be opened; libraries often do not."""
    try:
        yield
    except OSError as error:
        reason = " ".join(str(error).split())
        raise OSError(
            f"Cannot open {name}, given as {part}: it is no directory with a model, nor on the hub within reach. "
            f"Give one as {part}=DIRECTORY. ({reason})"
        ) from error


def place(model: Any, trained_dtype: torch.dtype | None = None) -> Any:
    """Every part in the language model's precision; blocks on the devices of the layers that they stand before."""
    dtype = model.language_model.dtype
    model.vision.to(dtype)
    for part in (model.resampler, model.cross_attention, model.added_tokens):
        part.to(trained_dtype or dtype)
    devices = [p.device for p in model.language_model.parameters()]
    if devices and any(d.type not in ("cpu", "meta") for d in devices):
        from flamboyance.model.language import find_decoder_layers

        _, layers = find_decoder_layers(model.language_model, model.config.decoder_layers)
        for index, block in zip(model.spliced_layers, model.cross_attention, strict=True):
            block.to(_device(layers[index]))
        home = _device(model.language_model.get_input_embeddings())
        for part in (model.vision, model.resampler, model.added_tokens):
            part.to(home)
    return model


def _device(layer: nn.Module) -> torch.device:
    """Where a layer computes. The weights of an offloaded one are on the meta device between calls."""
    device = getattr(getattr(layer, "_hf_hook", None), "execution_device", None)
    return next(layer.parameters()).device if device is None else torch.device(device)


def warn_if_shut(trained: Mapping[str, Tensor], source: Any) -> None:
    """Warns when every gate of a loaded checkpoint is zero: such a model looks at no image."""
    gates = [p for name, p in trained.items() if name.endswith("_gate")]
    if not any(p.is_meta or torch.count_nonzero(p) for p in gates):
        warnings.warn(
            f"All {len(gates)} gates in {source} are zero: the model ignores its images. "
            "Is this checkpoint from before training?",
            stacklevel=3,
        )


def check_language_model(config: FlamingoConfig, language_model: PreTrainedModel) -> None:
    found, wanted = language_model.config.get_text_config(decoder=True), config.text_config
    for size in ("model_type", "hidden_size", "num_hidden_layers"):
        if getattr(found, size) != getattr(wanted, size):
            raise ValueError(
                f"The checkpoint was trained for a language model with {size}={getattr(wanted, size)}, but "
                f"{config.language} has {size}={getattr(found, size)}. Name the right one: language=, or `language` in "
                "config.json."
            )


def check_backbones(*backbones: nn.Module) -> None:
    """
    Raises:
        ValueError: names the first tensor of a backbone that holds NaN or infinity.
    """
    for backbone in backbones:
        name = getattr(getattr(backbone, "config", None), "name_or_path", None) or type(backbone).__name__
        check_finite(dict(backbone.named_parameters()), name)


def load_trained(model: Any, tensors: Mapping[str, Tensor], source: Any) -> None:
    """Puts what was kept into the model. The model's own parts and its adapters must all be there, whatever is there
    must have its place, and shapes must agree.

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
                f"{source} {problem} {min(keys)}{more}. This model has blocks before layers {model.spliced_layers} "
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
    warn_if_shut(model.own_parameters(), source)


def settle_adapters(model: Any, tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> None:
    """Adapters in the precision that they were saved in (PEFT's is often higher than that of the weights beneath)."""
    theirs = adapters.names(model)
    for name, parameter in model.named_parameters():
        if name in theirs and name in tensors:
            parameter.data = tensors[name].to(parameter.device)
        elif name in theirs and dtype is not None:
            parameter.data = parameter.data.to(dtype)


def restore_trainable(model: Any, about: Mapping[str, Any]) -> None:
    """What trained when the model was saved trains again. Where nothing did (a copy for answering alone), the model
    is as any new one."""
    names = set(about.get("trainable", ()))
    for name, parameter in model.named_parameters() if names else ():
        if parameter.is_floating_point():
            parameter.requires_grad_(name in names)


def _find_processor(model: Any, directory: Path) -> None:
    """The processor of a directory, as far as there is one: saved again with the model."""
    if not (directory / "tokenizer_config.json").is_file():
        return
    from flamboyance.processing import FlamingoProcessor  # is above the model

    try:
        model.processor = FlamingoProcessor.from_pretrained(directory, local_files_only=True)
        model.tokenizer = model.processor.tokenizer
    except (OSError, ValueError):  # no preprocessing beside the tokenizer
        model.tokenizer = AutoTokenizer.from_pretrained(directory)


def adapters_too(options: dict[str, Any]) -> dict[str, Any]:
    """The options of `AutoModelForCausalLM.from_pretrained`, which looks for an adapter on the hub, with retries, even
    where it was told to look at local files only."""
    return options | {"adapter_kwargs": {"local_files_only": True}} if options.get("local_files_only") else options
