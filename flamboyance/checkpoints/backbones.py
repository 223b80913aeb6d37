"""Opening the frozen backbones by name, checking them, and placing the parts around them."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from flamboyance.configuration import FlamingoConfig
from flamboyance.model.finite import check_finite
from flamboyance.model.language import find_decoder_layers


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
        _, layers = find_decoder_layers(model.language_model, model.config.decoder_layers)
        for index, block in zip(model.cross_attention_layers, model.cross_attention, strict=True):
            block.to(_device(layers[index]))
        home = _device(model.language_model.get_input_embeddings())
        for part in (model.vision, model.resampler, model.added_tokens):
            part.to(home)
    return model


def _device(layer: nn.Module) -> torch.device:
    """Where a layer computes. The weights of an offloaded one are on the meta device between calls."""
    device = getattr(getattr(layer, "_hf_hook", None), "execution_device", None)
    return next(layer.parameters()).device if device is None else torch.device(device)


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


def adapters_too(options: dict[str, Any]) -> dict[str, Any]:
    """The options of `AutoModelForCausalLM.from_pretrained`, which looks for an adapter on the hub, with retries, even
    where it was told to look at local files only."""
    return options | {"adapter_kwargs": {"local_files_only": True}} if options.get("local_files_only") else options
