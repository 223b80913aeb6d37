"""Which layers of a backbone are quantized, and how transformers does so while it loads: tensor by tensor.

`quantize="int8"` or "int4" quantizes the linear layers of the language model and of the vision tower. Embeddings, the
output head, norms, convolutions, and experts that are no linear layers stay in the model's precision; so do the
Flamingo's own parts. The directories of quantized backbones are transformers' own, with a `quantization_config`; this
module registers how transformers reads it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.core_model_loading import ConversionOps
from transformers.pytorch_utils import Conv1D
from transformers.quantizers import HfQuantizer
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from flamboyance import checks
from flamboyance.model import adapters
from flamboyance.model.linear import Linear
from flamboyance.model.quantized_linear import QuantizedLinear, group_of

METHOD = "flamboyance"
NARROW = 16  # rows or columns; smaller layers, such as routers to experts, stay


def targets(model: nn.Module, kept: Iterable[str] = ()) -> dict[str, Any]:
    """The layers of a backbone that are quantized, by their paths.

    Args:
        kept: further paths that stay.
    """
    stay = set(kept)
    if isinstance(model, PreTrainedModel):
        head = model.get_output_embeddings()
        tied = getattr(model, "all_tied_weights_keys", None) or {}
        stay |= {path for path, module in model.named_modules() if module is head}
        stay |= {name.removesuffix(".weight") for pair in tied.items() for name in pair}
    wide = model._keep_in_fp32_modules or () if isinstance(model, PreTrainedModel) else ()
    found = {}
    for path, module in model.named_modules():
        if type(module) not in (nn.Linear, Linear, Conv1D) or path in stay or set(wide) & set(path.split(".")):
            continue
        columns, rows = _shape(module)
        if min(columns, rows) >= NARROW and group_of(columns):
            found[path] = module
    return found


def _shape(module: Any) -> tuple[int, int]:
    """(K, N)."""
    rows, columns = module.weight.t().shape if isinstance(module, Conv1D) else module.weight.shape
    return columns, rows


@torch.no_grad()
def quantize_layers(model: nn.Module, scheme: str) -> None:
    """Quantizes the layers of a backbone in place, one after another; on the meta device too."""
    for path, module in targets(model).items():
        replace(model, path, module.weight, scheme)


def replace(model: nn.Module, path: str, weight: torch.Tensor, scheme: str) -> None:
    """Puts the quantized layer of a weight, as the module at `path` has it, in that module's place.

    Raises:
        ValueError: the weight is not finite.
    """
    module: Any = model.get_submodule(path)
    try:
        rows = weight.t() if isinstance(module, Conv1D) else weight
        layer = QuantizedLinear.of(rows, checks.SCHEMES[scheme], module.bias)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    model.set_submodule(path, layer.train(module.training))


def check_again(scheme: str | None, stored: Any, name: str) -> None:
    """Checks `quantize=` against the `quantization_config` of a backbone's files.

    Raises:
        ValueError: the files are quantized in another way.
    """
    found = stored.to_dict() if isinstance(stored, QuantizationConfigMixin) else stored
    if scheme is None or not found:
        return
    has = found.get("scheme") if found.get("quant_method") == METHOD else found.get("quant_method")
    if has != scheme:
        raise ValueError(
            f"quantize={scheme!r}: {name} is quantized already ({has}); leave quantize out, or open the original model"
        )


@register_quantization_config(METHOD)
class QuantizationConfig(QuantizationConfigMixin):
    """The `quantization_config` in the config.json of a backbone that is quantized here.

    Args:
        scheme: "int8" or "int4".
        modules_to_not_convert: paths of the linear layers that stay; filled in while loading.

    Raises:
        ValueError: an unknown scheme.
    """

    def __init__(self, scheme: str, modules_to_not_convert: list[str] | None = None, **_: Any) -> None:
        self.quant_method: Any = METHOD
        self.scheme = str(checks.scheme(scheme))
        self.modules_to_not_convert = modules_to_not_convert


@register_quantizer(METHOD)
class Quantizer(HfQuantizer):
    """Quantizes each weight as transformers reads it, or reads quantized ones."""

    requires_calibration = False
    is_trainable = True
    is_compileable = True
    quantization_config: QuantizationConfig

    def is_serializable(self) -> bool:
        return True

    def get_state_dict_and_metadata(self, model: Any) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        """What transformers saves, instead of the tensors that it was given: those without adapters."""
        theirs = adapters.names(model)
        state = {adapters.canonical(name): t for name, t in model.state_dict().items() if name not in theirs}
        return state, {}

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
        config = self.quantization_config
        kept = config.modules_to_not_convert
        self.layers = targets(model, kept or ())
        if kept is None:
            linear = {path for path, module in model.named_modules() if type(module) in (nn.Linear, Linear, Conv1D)}
            config.modules_to_not_convert = sorted(linear - self.layers.keys())
        for path, module in self.layers.items() if self.pre_quantized else ():
            replace(model, path, module.weight, config.scheme)

    def param_needs_quantization(self, model: Any, param_name: str, **kwargs: Any) -> bool:
        return param_name.endswith(".weight") and param_name.removesuffix(".weight") in self.layers

    def param_element_size(self, model: Any, param_name: str, param: torch.Tensor) -> float:
        wanted = self.param_needs_quantization(model, param_name)
        return checks.SCHEMES[self.quantization_config.scheme] / 8 if wanted else param.element_size()

    def get_quantize_ops(self) -> ConversionOps:
        return QuantizeWeight(self.quantization_config.scheme)


class QuantizeWeight(ConversionOps):
    """Puts a quantized layer where a weight was read."""

    def __init__(self, scheme: str) -> None:
        self.scheme = scheme

    def convert(
        self, input_dict: dict[str, Any], *, model: Any, full_layer_name: str, missing_keys: set[str] | None, **_: Any
    ) -> dict[str, Any]:
        value = next(iter(input_dict.values()))
        weight = value[0] if isinstance(value, list) else value
        replace(model, full_layer_name.removesuffix(".weight"), weight, self.scheme)
        if missing_keys is not None:
            missing_keys.discard(full_layer_name)
        return {}
