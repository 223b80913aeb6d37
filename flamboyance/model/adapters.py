"""PEFT's adapters on any part of a model: the names of their tensors, their description, and how to rebuild them.

PEFT is imported only to rebuild adapters. If it has not been imported, a model has none.
"""

import json
import sys
from collections.abc import Iterator
from itertools import chain
from typing import Any

from torch import Tensor, nn

# Parts that PEFT adds to the names of modules that it wraps.
INSERTED = ("base_layer", "original_module")
TOKENS = "token_adapter.base_layer."  # around a table with some trainable rows


def base(module: Any) -> Any:
    """The module inside PEFT's wrappers; any other module itself."""
    while callable(getattr(type(module), "get_base_model", None)):
        module = module.get_base_model()
    return module


def called(module: Any) -> Any:
    """The module of a language model to call: the one inside PEFT's wrapper, which has the adapters. (The wrapper of
    some families takes no embeddings.)

    Raises:
        ValueError: the wrapper adds tokens to the prompt.
    """
    if callable(getattr(type(module), "get_base_model", None)):
        if getattr(module, "_is_prompt_learning", False):
            raise ValueError(
                "the language model has a PEFT adapter that adds tokens to its prompts, which would shift its images; "
                "use an adapter of weights, such as LoRA"
            )
        return called(module.get_base_model())
    return module


def canonical(name: str) -> str:
    """A parameter's name before PEFT wrapped modules: without `base_model.model`, `base_layer`, …"""
    name = name.replace(f".{TOKENS}", ".")
    parts = [part for part in name.split(".") if part not in INSERTED]
    kept: list[str] = []
    skip = False
    for part, following in zip(parts, [*parts[1:], ""], strict=True):
        if skip:
            skip = False
        elif part == "base_model" and following == "model":
            skip = True
        else:
            kept.append(part)
    return ".".join(kept)


def names(model: nn.Module) -> set[str]:
    """Names of the parameters and buffers of adapters."""
    found: set[str] = set()
    for path, module, beneath in _wrappers(model):
        parameters = module.named_parameters(remove_duplicate=False)  # a shared one has two names
        for name, _ in chain(parameters, module.named_buffers(remove_duplicate=False)):
            if not name.startswith(beneath):
                found.add(f"{path}.{name}" if path else name)
    return found


def layers(model: nn.Module) -> list[tuple[str, Any]]:
    """The adapted layers and their paths."""
    if sys.modules.get("peft") is None:
        return []
    kinds = _kinds()
    return [(path, module) for path, module in model.named_modules() if isinstance(module, kinds.switched)]


def own_children(module: nn.Module) -> list[nn.Module] | None:
    """The children of an adapted layer that belong to the adapter; None for other modules."""
    if sys.modules.get("peft") is None:
        return None
    kinds = _kinds()
    if not isinstance(module, (*kinds.layers, *kinds.auxiliary)):
        return None
    return [child for name, child in module.named_children() if name not in INSERTED]


def describe(model: nn.Module) -> list[dict[str, Any]]:
    """All adapters of a model as plain values, from which `rebuild` makes them again, without their tensors.

    Raises:
        ValueError: an adapter cannot be rebuilt, or is merged into the weights.
    """
    if sys.modules.get("peft") is None:
        return []
    kinds, roots, covered = _kinds(), [], set()
    for path, module in model.named_modules():
        if isinstance(module, kinds.models):
            if module.peft_config and next(iter(module.peft_config.values())).is_prompt_learning:
                raise ValueError(
                    f"cannot save the adapter on {path or 'the model'}: prompt tuning is not supported in a Flamingo; "
                    "use an adapter of weights, such as LoRA"
                )
            roots.append(_root(path, module, module.peft_config, wrapped=True))
            covered |= {id(module.base_model), id(module.get_base_model())}
        elif isinstance(module, kinds.tuners) and id(module) not in covered:
            raise ValueError(
                f"cannot save the adapter on {path or 'the model'}: it is a {type(module).__name__}; make it with "
                "peft.get_peft_model (not mixed) or peft.inject_adapter_in_model"
            )
        elif vars(module).get("peft_config") and id(module) not in covered:
            roots.append(_root(path, module, vars(module)["peft_config"], wrapped=False))
    for path, module in model.named_modules():
        if not isinstance(module, kinds.layers):
            continue
        if not any(not root["module"] or path.startswith(f"{root['module']}.") for root in roots):
            raise ValueError(
                f"cannot save the adapter on {path}: no parent module has its configuration; make it with "
                "peft.get_peft_model or peft.inject_adapter_in_model"
            )
        if getattr(module, "merged", False):
            raise ValueError(
                f"cannot save: the adapter on {path} is merged into its weights; call unmerge_adapter() to save it as "
                "an adapter, or merge_and_unload() to save the merged weights"
            )
    return roots


def rebuild(model: nn.Module, described: list[dict[str, Any]], source: Any) -> None:
    """Creates the described adapters, with initial weights.

    Raises:
        ImportError: PEFT is not installed.
        ValueError: PEFT cannot create one of them.
    """
    try:
        import peft
    except ImportError:
        raise ImportError(f"{source} has PEFT adapters, but peft is not installed: pip install peft") from None
    for root in sorted(described, key=lambda root: -root["module"].count(".") - bool(root["module"])):
        path = root["module"]
        try:
            module: Any = model.get_submodule(path)
            for name, values in root["adapters"].items():
                config, start = peft.PeftConfig.from_peft_type(**_sets(values)), values.get("init_lora_weights")
                if start is not None and not isinstance(start, bool):
                    config.init_lora_weights = True  # PiSSA and others change the adapted weights, which were saved
                if not root["wrapped"]:
                    peft.inject_adapter_in_model(config, module, name)
                elif isinstance(module, peft.PeftModel):
                    module.add_adapter(name, config, autocast_adapter_dtype=False)
                else:
                    module = peft.get_peft_model(module, config, name, autocast_adapter_dtype=False)
                if start is not None:
                    config.init_lora_weights = start
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"cannot rebuild the PEFT adapter that {source} has on {path or 'the model'}: {error} (peft "
                f"{peft.__version__})"
            ) from error
        if root["wrapped"]:
            parent, _, leaf = path.rpartition(".")
            setattr(model.get_submodule(parent), leaf, module)
        elif root.get("transformers"):
            module._hf_peft_config_loaded = True
        for part in module.modules():
            if isinstance(part, _kinds().switched) and root["active"]:
                part.set_adapter(root["active"])
                part.enable_adapters(not root["disabled"])
        switched = {name: part for name, part in module.named_modules() if isinstance(part, _kinds().switched)}
        for name, switches in root.get("layers", {}).items():
            try:
                _switch(switched[name], **switches)
            except (AttributeError, KeyError, TypeError) as error:
                raise ValueError(f"{source} has a wrong description of the adapter on {name} of {path}") from error


class _Kinds:
    """PEFT's classes, by their roles."""

    def __init__(self) -> None:
        from peft import PeftModel
        from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
        from peft.utils.other import AuxiliaryTrainingWrapper

        self.models: tuple[type, ...] = (PeftModel,)
        self.tuners: tuple[type, ...] = (BaseTuner,)
        self.layers: tuple[type, ...] = (BaseTunerLayer,)
        self.auxiliary: tuple[type, ...] = (AuxiliaryTrainingWrapper,)
        self.switched: tuple[type, ...] = (BaseTunerLayer, AuxiliaryTrainingWrapper)


def _kinds() -> _Kinds:
    return _Kinds()


def _wrappers(model: nn.Module) -> Iterator[tuple[str, nn.Module, tuple[str, ...]]]:
    """Each PEFT module that wraps another: its path, itself, and the prefixes of the names of wrapped tensors."""
    if sys.modules.get("peft") is None:
        return
    kinds = _kinds()
    for path, module in model.named_modules():
        if isinstance(module, kinds.models):
            yield path, module, ("base_model.model.",)
        elif isinstance(module, kinds.layers):
            yield path, module, ("base_layer.",)
        elif isinstance(module, kinds.auxiliary):
            yield path, module, ("original_module.", TOKENS)


def _root(path: str, module: nn.Module, configs: dict[str, Any], wrapped: bool) -> dict[str, Any]:
    layers: list[Any] = [m for m in module.modules() if isinstance(m, _kinds().switched)]
    active = list(dict.fromkeys(name for layer in layers for name in layer.active_adapters))
    return {
        "module": path,
        "wrapped": wrapped,
        "transformers": bool(vars(module).get("_hf_peft_config_loaded")),
        "adapters": {name: _plain(config) for name, config in configs.items()},
        "active": active,
        "disabled": bool(layers) and all(layer.disable_adapters for layer in layers),
        "layers": {
            name: _switches(layer) for name, layer in module.named_modules() if isinstance(layer, _kinds().switched)
        },
    }


def _switches(layer: Any) -> dict[str, Any]:
    """The state of an adapted layer beside weights and configuration."""
    scaling = getattr(layer, "scaling", None)
    numbers = isinstance(scaling, dict) and all(isinstance(value, int | float) for value in scaling.values())
    return {
        "active": list(layer.active_adapters),
        "disabled": bool(layer.disable_adapters),
        "scaling": dict(scaling) if isinstance(scaling, dict) and numbers else {},
    }


def _switch(layer: Any, active: list[str], disabled: bool, scaling: dict[str, float]) -> None:
    if active != list(layer.active_adapters):
        layer.set_adapter(active)
    if disabled != bool(layer.disable_adapters):
        layer.enable_adapters(not disabled)
    for name, value in scaling.items():
        layer.scaling[name] = float(value)


def _plain(config: Any) -> dict[str, Any]:
    """PEFT's configuration for JSON, without local paths."""
    values = config.to_dict()
    values.pop("runtime_config", None)
    values |= {"base_model_name_or_path": None, "revision": None, "auto_mapping": None, "inference_mode": False}
    return json.loads(json.dumps(values, default=_listed))


def _listed(value: Any) -> Any:
    return sorted(value) if isinstance(value, set | frozenset) else str(value)


def _sets(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in ("peft_version", "auto_mapping")}


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name, each once."""
    kept = {
        f"{path}.{name}" if path else name
        for path, module in model.named_modules()
        for name in module._buffers
        if name not in module._non_persistent_buffers_set
    }
    buffers = {name: t for name, t in model.named_buffers() if name in kept}
    return dict(model.named_parameters()) | buffers
