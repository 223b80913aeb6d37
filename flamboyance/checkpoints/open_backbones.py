"""Opens the frozen backbones by name, checks them, and places the other parts on their devices."""

from collections.abc import Generator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from flamboyance import checks, names
from flamboyance.checkpoints import gguf
from flamboyance.configuration import FlamingoConfig, check_text_config
from flamboyance.files import read_json
from flamboyance.model import quantization, quantized_linear
from flamboyance.model.finite import check_finite
from flamboyance.model.language import find_decoder_layers


def open_language_model(
    name: str, quantize: str | None = None, known: PreTrainedConfig | None = None, **options: Any
) -> PreTrainedModel:
    """A language model, with all of its weights. Those of a GGUF file are dequantized here, once.

    Args:
        name: as `names.language_model` takes it.
        quantize: the scheme of its linear layers. Each weight is quantized as it is read.
        known: its configuration, with which a GGUF file opens faster.
        options: of `AutoModelForCausalLM.from_pretrained`. dtype "auto" is float32 for a GGUF file.

    Raises:
        ValueError: the language model is quantized otherwise; or the files lack weights, as in a directory that was
            copied in part, which would be random; or they are damaged, or state sizes that no model has.
        ImportError: a GGUF file, and the packages that read it are not installed.
    """
    options.setdefault("trust_remote_code", False)  # else transformers asks, on the terminal, whether to run the code
    place = _place(name)
    if place.gguf is not None:
        made, report = gguf.open_model(Path(place.name, place.gguf), known, **options)
        _check_complete(made, report, place.gguf)
        if checks.scheme(quantize):
            quantization.quantize_layers(made, str(quantize))
        return made
    check_json(Path(place.name))
    try:
        config = _config(place, options)
    except OSError:  # reported below, or a directory with an adapter alone
        pass
    else:
        check_text_config(config.get_text_config(decoder=True))
        stored = getattr(config, "quantization_config", None)
        quantization.check_again(quantize, stored, name)
        if checks.scheme(quantize) and not stored:
            if "quantization_config" in options:
                raise ValueError(f"quantize={quantize!r} and quantization_config are both given; give one of them")
            options["quantization_config"] = quantization.QuantizationConfig(str(quantize))
    loaded: Any = AutoModelForCausalLM.from_pretrained(place.name, output_loading_info=True, **options)
    model, report = loaded
    _check_complete(model, report, name)
    return model


def _check_complete(model: PreTrainedModel, report: dict[str, Any], name: str) -> None:
    """Refuses a model whose files lacked weights: those would be random."""
    parameters = {parameter for parameter, _ in model.named_parameters()}
    parameters |= {
        f"{path}.{tensor}" for path, _ in quantized_linear.layers(model) for tensor in quantized_linear.TENSORS
    }
    if lacking := sorted(parameters & set(report["missing_keys"])):
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise ValueError(
            f"the weights of {name} lack {lacking[0]}{more}, which would be random; is the directory complete, and is "
            "its config.json that of these weights?"
        )


def language_config(name: str, **options: Any) -> PreTrainedConfig:
    """The configuration of a language model's decoder, without its weights."""
    return _config(_place(name), options).get_text_config(decoder=True)


def _config(place: names.Place, options: dict[str, Any]) -> PreTrainedConfig:
    if place.gguf is not None:
        return gguf.read_config(Path(place.name, place.gguf))
    shared = ("cache_dir", "local_files_only", "revision", "token", "subfolder", "trust_remote_code")
    return AutoConfig.from_pretrained(place.name, **{key: options[key] for key in shared if key in options})


def open_tokenizer(name: str, **options: Any) -> PreTrainedTokenizerBase:
    """The tokenizer of a language model. `options`: of `AutoTokenizer.from_pretrained`."""
    place = _place(name)
    if place.gguf is not None:
        options["gguf_file"] = place.gguf
    tokenizer: Any = AutoTokenizer.from_pretrained(place.name, **options)
    if place.gguf is not None:
        gguf.drop_foreign_tokens(tokenizer)
    return cast(PreTrainedTokenizerBase, tokenizer)


def _place(name: str) -> names.Place:
    """Where a language model is, if it can be read here."""
    place = names.language_model(name)
    lacking = [package for package in names.GGUF_READERS if not find_spec(package)] if place.gguf else []
    if lacking:
        raise ImportError(
            f"{name} is a GGUF file, which needs {' and '.join(lacking)}: pip install {' '.join(lacking)}"
        )
    return place


def check_json(directory: Path) -> None:
    """Checks the JSON files of a directory that transformers opens without naming them in its errors.

    Raises:
        ValueError: one of them is no JSON object.
    """
    for name in ("generation_config.json", "tokenizer_config.json", "processor_config.json"):
        file = directory / name
        if not file.is_file():
            continue
        values = read_json(file)
        if not isinstance(values, dict):
            raise ValueError(f"{file} holds a JSON {type(values).__name__}; expected an object")


@contextmanager
def opening(part: str, name: str) -> Generator[None]:
    """Names the part that could not be opened, which libraries often do not."""
    try:
        yield
    except names.UnknownModelError:
        raise
    except OSError as error:
        reason = " ".join(str(error).split())
        raise OSError(
            f"cannot open {name}, given as {part}: expected a directory with a model, or a repository on the hub, "
            f"within reach. Give one as {part}=DIRECTORY. ({reason})"
        ) from error


def place(model: Any, trained_dtype: torch.dtype | None = None) -> Any:
    """Moves every part to the language model's precision, and each block to the device of the layer after it."""
    dtype = model.language_model.dtype
    model.vision.to(dtype)
    for part in (model.resampler, model.cross_attention, model.added_tokens):
        part.to(trained_dtype or dtype)
    devices = [p.device for p in model.language_model.parameters()]
    if devices and any(d.type not in ("cpu", "meta") for d in devices):
        _, layers = find_decoder_layers(model.language_model, model.config.decoder_layers)
        for index, block in zip(model.cross_attention_layers, model.cross_attention, strict=True):
            block.to(_device(layers[index]))
        home = _device(model.language_model.get_input_embeddings())
        for part in (model.vision, model.resampler, model.added_tokens):
            part.to(home)
    return model


def _device(layer: nn.Module) -> torch.device:
    """The device on which a layer computes. The weights of an offloaded layer are on the meta device between calls."""
    device = getattr(getattr(layer, "_hf_hook", None), "execution_device", None)
    return next(layer.parameters()).device if device is None else torch.device(device)


def check_language_model(config: FlamingoConfig, language_model: PreTrainedModel) -> None:
    """
    Raises:
        ValueError: the language model is of another kind or size than the one in the configuration.
    """
    given, expected = language_model.config.get_text_config(decoder=True), config.text_config
    for size in ("model_type", "hidden_size", "num_hidden_layers"):
        if getattr(given, size) != getattr(expected, size):
            raise ValueError(
                f"The checkpoint was trained for a language model with {size}={getattr(expected, size)}, but "
                f"{config.language} has {size}={getattr(given, size)}. Name the right one: language=, or `language` in "
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


def adapters_too(options: dict[str, Any]) -> dict[str, Any]:
    """The options of `AutoModelForCausalLM.from_pretrained`, which otherwise looks for an adapter on the hub even with
    local_files_only=True."""
    return options | {"adapter_kwargs": {"local_files_only": True}} if options.get("local_files_only") else options
