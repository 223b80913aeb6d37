"""Opens the frozen backbones by name, checks them, and places the other parts on their devices."""

import copy
import json
from collections.abc import Generator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import Tokenizer
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
from flamboyance.configuration import FlamingoConfig, check_text_config
from flamboyance.files import read_json
from flamboyance.model import quantization, quantized_linear
from flamboyance.model.finite import check_finite
from flamboyance.model.language import find_decoder_layers


def open_language_model(name: str, quantize: str | None = None, **options: Any) -> PreTrainedModel:
    """A language model, with all of its weights. Those of a GGUF file are dequantised here, once.

    Args:
        name: as `names.language_model` takes it.
        quantize: the scheme of its linear layers. Each weight is quantized as it is read.
        options: of `AutoModelForCausalLM.from_pretrained`. dtype "auto" is float32 for a GGUF file.

    Raises:
        ValueError: the language model is quantized otherwise; or the files lack weights, as in a directory that was
            copied in part, which would be random; or they are damaged, or state sizes that no model has.
        ImportError: a GGUF file, and the packages that read it are not installed.
    """
    options.setdefault("trust_remote_code", False)  # else transformers asks, on the terminal, whether to run the code
    place = _place(name)
    if place.gguf is not None:
        return _open_gguf(place, quantize, options)
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
    shared = ("cache_dir", "local_files_only", "revision", "token", "subfolder", "trust_remote_code")
    given = {key: options[key] for key in shared if key in options} | _gguf(place)
    return AutoConfig.from_pretrained(place.name, **given)


def open_tokenizer(name: str, **options: Any) -> PreTrainedTokenizerBase:
    """The tokenizer of a language model. `options`: of `AutoTokenizer.from_pretrained`."""
    place = _place(name)
    tokenizer: Any = AutoTokenizer.from_pretrained(place.name, **_gguf(place), **options)
    if place.gguf is not None:
        # transformers gives the tokenizer of every GGUF file the special tokens of some family; those that the file
        # does not have would get ids beyond the model's table.
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        own = [token for token in state["added_tokens"] if token["id"] < len(state["model"]["vocab"])]
        if len(own) < len(state["added_tokens"]):
            tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state | {"added_tokens": own}))
    return cast(PreTrainedTokenizerBase, tokenizer)


def _place(name: str) -> names.Place:
    """Where a language model is, if it can be read here."""
    place = names.language_model(name)
    lacking = [package for package in ("gguf", "accelerate") if not find_spec(package)] if place.gguf else []
    if lacking:
        raise ImportError(
            f"{name} is a GGUF file, which needs {' and '.join(lacking)}: pip install {' '.join(lacking)}"
        )
    return place


def _gguf(place: names.Place) -> dict[str, Any]:
    return {} if place.gguf is None else {"gguf_file": place.gguf}


def _open_gguf(place: names.Place, quantize: str | None, options: dict[str, Any]) -> PreTrainedModel:
    """The model of a GGUF file. Quantized again by our scheme, if one is given."""
    dtype = options.get("dtype")
    options = options | {"gguf_file": place.gguf, "dtype": torch.float32 if dtype in (None, "auto") else dtype}
    loaded: Any = AutoModelForCausalLM.from_pretrained(place.name, output_loading_info=True, **options)
    model, report = loaded
    _check_complete(model, report, str(place.gguf))
    made = _plain(model)
    if checks.scheme(quantize):
        quantization.quantize_layers(made, str(quantize))
    return made


def _plain(model: PreTrainedModel) -> PreTrainedModel:
    """The same model, as if its weights had never been quantised: transformers refuses to save the other one."""
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        made = type(model)(config)
    made.load_state_dict(model.state_dict(), assign=True)
    for name, buffer in model.named_buffers():  # also those that no state has
        owner, _, leaf = name.rpartition(".")
        made.get_submodule(owner).register_buffer(leaf, buffer, persistent=name in model.state_dict())
    made.tie_weights()
    made.generation_config = model.generation_config
    return made.eval()


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
