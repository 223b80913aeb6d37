"""Fingerprints of models: whether stored results were computed with this one."""

import hashlib
import json
from typing import Any

import torch
from torch import Tensor

from flamboyance.configuration import CROSS_ATTENTION, RESAMPLER, FlamingoConfig
from flamboyance.model import adapters
from flamboyance.model.trainable import Mark

# Keys of a configuration that do not change results: where parts are, and what wrote it.
ELSEWHERE = {"_name_or_path", "name", "language", "transformers_version", "architectures", "dtype", "torch_dtype"}


def fingerprint(model: Any) -> str:
    """16 hexadecimal digits over everything that determines results: every parameter and buffer in its precision, the
    configuration, and the active adapters. Reads all weights once, at the speed of memory."""
    digest = hashlib.sha256(json.dumps(described(model.config), sort_keys=True, default=str).encode())
    for name, tensor in sorted(adapters.tensors(model).items()):
        mark = Mark.of(tensor)
        digest.update(f"{name} {mark.dtype} {mark.shape} {mark.checksum}".encode())
        digest.update(mark.some.float().cpu().numpy().tobytes())
    digest.update(repr(_switches(model)).encode())
    return digest.hexdigest()[:16]


def described(config: FlamingoConfig) -> dict[str, Any]:
    """The configuration as fingerprints have it. Those of saved files are older than some settings."""
    values = _portable(config.to_dict())
    values["interval"] = values.pop("cross_attn_every_n_layers")
    if values["cross_attention_layers"] is None:
        del values["cross_attention_layers"]
    if values["quantize"] is None:
        del values["quantize"]
    for part, sizes in (("resampler", RESAMPLER), ("cross_attention", CROSS_ATTENTION)):
        for size in ("width", "activation", "norm_keys_values", "only_attend_immediate_media"):
            if size in sizes and values[part][size] == sizes[size]:
                del values[part][size]
    return values


def stamp(model: Any) -> tuple[Any, ...]:
    """A value that changes when weights are replaced, moved, converted or written to, and when adapters are switched.
    Of what is written through `.data`, which PyTorch does not count, it notices changes of most elements of a tensor,
    not of a few. Takes a millisecond or two; only comparable in the same process."""
    places, some = [], []
    for tensor in (*model.parameters(), *model.buffers()):
        packed = tensor.is_mkldnn
        version = None if tensor.is_inference() else tensor._version
        place = id(tensor) if packed or tensor.is_meta else _address(tensor)
        version = (version, getattr(tensor, "replaced", None)) if packed else version
        places.append((place, version, tensor.dtype, str(tensor.device), tuple(tensor.shape)))
        if not packed and not tensor.is_meta and type(tensor) in (Tensor, torch.nn.Parameter) and tensor.numel():
            flat = tensor.detach().reshape(-1)  # also notices writes through `.data`, which leave the version
            some.append(flat[:: max(1, flat.numel() // 4)][:4].to(torch.float64 if flat.is_cpu else torch.float32))
    by_device: dict[torch.device, list[Tensor]] = {}
    for values in some:
        by_device.setdefault(values.device, []).append(values)
    values = b"".join(torch.cat(group).cpu().numpy().tobytes() for group in by_device.values())
    return (*places, values, _switches(model))


def _address(tensor: Tensor) -> int:
    try:
        return tensor.data_ptr()
    except RuntimeError:  # a tensor subclass without storage
        return id(tensor)


def _switches(model: Any) -> tuple[Any, ...]:
    """The state of adapters beside their weights: which are active or merged, and their scale."""
    return tuple(
        (path, tuple(layer.active_adapters), layer.disable_adapters, str(getattr(layer, "scaling", "")))
        + tuple(getattr(layer, "merged_adapters", ()))
        for path, layer in adapters.layers(model)
    )


def _portable(values: Any) -> Any:
    if isinstance(values, dict):
        return {k: _portable(v) for k, v in values.items() if k not in ELSEWHERE}
    return [_portable(v) for v in values] if isinstance(values, list | tuple) else values
