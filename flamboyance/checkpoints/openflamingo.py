"""OpenFlamingo's checkpoints: everything that is known of their layout stands here.

A released `checkpoint.pt` is a flat state dict; the trainer's files wrap it in `model_state_dict`, with `module.` before
each key. Beside what trained, files may carry aliases of it, buffers, frozen layers of the language model and whole
embedding tables. Names on the left are this package's, on the right the reference's.
"""

import pickle
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flamboyance.model import language
from flamboyance.model.loading import warn_if_shut

RENAMES = (
    (r"^resampler\.time_embeddings$", "perceiver.frame_embs"),
    (r"^resampler\.layers\.(\d+)\.attention\.", r"perceiver.layers.\1.0."),
    (r"^resampler\.layers\.(\d+)\.feed_forward\.norm\.", r"perceiver.layers.\1.1.0."),
    (r"^resampler\.layers\.(\d+)\.feed_forward\.up\.", r"perceiver.layers.\1.1.1."),
    (r"^resampler\.layers\.(\d+)\.feed_forward\.down\.", r"perceiver.layers.\1.1.3."),
    (r"^resampler\.", "perceiver."),
    (r"^(block)\.attention_gate$", r"\1.attn_gate"),
    (r"^(block)\.feed_forward_gate$", r"\1.ff_gate"),
    (r"^(block)\.attention\.", r"\1.attn."),
    (r"^(block)\.feed_forward\.norm\.", r"\1.ff.0."),
    (r"^(block)\.feed_forward\.up\.", r"\1.ff.1."),
    (r"^(block)\.feed_forward\.down\.", r"\1.ff.3."),
)
BLOCK = re.compile(r"^lang_encoder\.(?P<layers>.+)\.(?P<index>\d+)\.gated_cross_attn_layer\.(?P<rest>.+)$")
ALIAS = re.compile(r"^lang_encoder\.gated_cross_attn_layers\.(\d+)\.(.+)$")
# What a file may carry and this model holds elsewhere or computes: frozen layers under either name, the tower, buffers.
STRAY = re.compile(
    r"^lang_encoder\.old_decoder_blocks\.|\.decoder_layer\.|^vision_encoder\."
    r"|\.rotary_emb\.inv_freq$|\.attention\.(bias|masked_bias)$|\.attn\.(attention\.)?(bias|masked_bias)$"
)


def is_openflamingo(state: Mapping[str, Any]) -> bool:
    """Whether these are the reference's keys, bare or as its trainer wraps them."""
    keys = state.get("model_state_dict", state)
    return any(key.removeprefix("module.").startswith(("perceiver.", "lang_encoder.")) for key in keys)


def read(path: str | Path) -> dict[str, Tensor]:
    """Reads a `.pt` file without running code from it.

    Raises:
        ValueError: missing, empty, damaged, not OpenFlamingo's, or holding more than tensors.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"There is no file {file}; expected OpenFlamingo's checkpoint.pt.")
    if not file.stat().st_size:
        raise ValueError(f"{file} is empty. Download the checkpoint again.")
    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{file} holds more than tensors, or is damaged; it was not opened, since opening it could run its code "
            f"({str(error).splitlines()[0]}). Save the plain state dict again with torch.save(model.state_dict(), …)."
        ) from None
    except (RuntimeError, EOFError, OSError) as error:
        raise ValueError(
            f"{file} is no complete PyTorch file ({str(error).splitlines()[0]}). Download it again."
        ) from None
    if not isinstance(state, Mapping) or not is_openflamingo(state):
        found = ", ".join(list(state)[:3]) if isinstance(state, Mapping) else type(state).__name__
        raise ValueError(
            f"{file} is no OpenFlamingo checkpoint: expected keys such as perceiver.latents, found {found}."
        )
    return normalise(state)


def normalise(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Flat state dict with each trained tensor once: wrappers, prefixes, aliases and stray entries removed."""
    state = state.get("model_state_dict", state)
    flat = {
        key.removeprefix("module.").replace("._checkpoint_wrapped_module", ""): t for key, t in state.items()
    }
    aliases = {key: ALIAS.match(key) for key in flat}
    kept = {k: t for k, t in flat.items() if aliases[k] is None and not STRAY.search(k)}
    own = {(m["index"], m["rest"]) for m in map(BLOCK.match, kept) if m}
    for key, match in aliases.items():
        if match and match.groups() not in own:
            kept[f"lang_encoder.?.{match[1]}.gated_cross_attn_layer.{match[2]}"] = flat[key]
    return kept


def expected(model: Any) -> dict[str, str]:
    """The reference's key of everything that trains in the model: {reference's: ours}."""
    layers, _ = language.find_decoder_layers(model.language_model, model.config.decoder_layers)
    names = {}
    for ours in model.trained_parameters():
        if ours.startswith("added_tokens."):
            continue
        theirs, prefix = ours, None
        if match := re.match(r"cross_attention\.(\d+)\.", ours):
            prefix = f"lang_encoder.{layers}.{model.spliced_layers[int(match[1])]}.gated_cross_attn_layer"
            theirs = "block." + ours[match.end() :]
        for pattern, replacement in RENAMES:
            theirs, changed = re.subn(pattern, replacement, theirs)
            if changed:
                break
        names[theirs if prefix is None else theirs.replace("block", prefix, 1)] = ours
    return names


def tables(model: Any) -> dict[str, tuple[str, Tensor]]:
    """Tables that hold rows of added tokens: {reference's key: (our name of those rows, the frozen table)}."""
    lm = model.language_model
    modules = {id(m): name for name, m in lm.named_modules()}
    table, head = lm.get_input_embeddings(), language.output_head(lm)
    found = {f"lang_encoder.{modules[id(table)]}.weight": ("added_tokens.embedding", table.weight)}
    if not model.added_tokens.tied:
        found[f"lang_encoder.{modules[id(head)]}.weight"] = ("added_tokens.head", head.weight)
    if model.added_tokens.head_bias is not None:
        found[f"lang_encoder.{modules[id(head)]}.bias"] = ("added_tokens.head_bias", head.bias)
    return found


def translate(model: Any, state: Mapping[str, Any]) -> dict[str, Tensor]:
    """A reference state dict under this package's names, checked in full.

    Raises:
        ValueError: the checkpoint is for another interval, width or language model, or a key is missing, unknown or of
            another shape. The message says which, and what the checkpoint fits.
    """
    state = normalise(state)
    layers, _ = language.find_decoder_layers(model.language_model, model.config.decoder_layers)
    state = {key.replace("lang_encoder.?.", f"lang_encoder.{layers}.", 1): t for key, t in state.items()}
    # GPT-NeoX called its head embed_out when these checkpoints were made.
    head_names = [key for key in tables(model) if key.endswith("lm_head.weight")]
    if head_names and "lang_encoder.embed_out.weight" in state:
        state.setdefault(head_names[0], state.pop("lang_encoder.embed_out.weight"))
    _check_architecture(model, state, layers)

    names, rows = expected(model), tables(model)
    wanted = model.trained_parameters()
    result = {}
    for theirs, ours in names.items():
        result[ours] = _take(state, theirs, wanted[ours].shape)
    first, count = model.config.base_vocab_size, len(model.config.added_tokens)
    for theirs, (ours, table) in rows.items():
        if theirs not in state and ours != "added_tokens.embedding":
            continue  # the reference saves no head whose key lacks the word "embed": its rows stay as they are
        if theirs not in state and not any("embed" in key or "wte" in key for key in state):
            warnings.warn(
                f"The checkpoint has no {theirs}: it was trained with frozen embeddings.", stacklevel=4
            )
            continue
        tensor = _take(state, theirs, (first + count, *table.shape[1:]))
        result[ours] = tensor[first:]
        _check_rows(model, theirs, tensor[:first], table)
    frozen = {
        f"lang_encoder.{key}" for key, _ in model.language_model.named_parameters(remove_duplicate=False)
    }
    for key in state:
        if key not in names and key not in rows and key not in frozen:
            raise ValueError(f"The checkpoint has {key}, which this model does not. {_fits(state)}")
    return result


def load(model: Any, state: Mapping[str, Any]) -> None:
    """Puts a reference state dict into the model; see `translate` for what is refused."""
    wanted = model.trained_parameters()
    with torch.no_grad():
        for name, tensor in translate(model, state).items():
            wanted[name].copy_(tensor)
    warn_if_shut(model, "the checkpoint")


def describe(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What a reference state dict was trained for: layers, interval, depth and widths."""
    blocks = [m for m in map(BLOCK.match, state) if m]
    indices = sorted({int(m["index"]) for m in blocks})
    gate_norm = next(
        (t for k, t in state.items() if k.endswith("gated_cross_attn_layer.attn.norm.weight")), None
    )
    latents = state.get("perceiver.latents")
    return {
        "layers": blocks[0]["layers"] if blocks else None,
        "indices": indices,
        "interval": indices[0] + 1 if indices else None,
        "width": None if gate_norm is None else gate_norm.shape[0],
        "vision_width": None if latents is None else latents.shape[1],
    }


def export(model: Any) -> dict[str, Tensor]:
    """The model's trained parts as a reference state dict, embedding tables in full: what OpenFlamingo loads."""
    wanted = model.trained_parameters()
    state = {theirs: wanted[ours].detach() for theirs, ours in expected(model).items()}
    first = model.config.base_vocab_size
    for theirs, (ours, table) in tables(model).items():
        state[theirs] = torch.cat([table[:first].detach(), wanted[ours].detach().to(table)])
    return state


def _take(state: Mapping[str, Tensor], key: str, shape: Iterable[int]) -> Tensor:
    if key not in state:
        raise ValueError(f"The checkpoint lacks {key}. {_fits(state)}")
    if tuple(state[key].shape) != tuple(shape):
        raise ValueError(
            f"{key} has shape {tuple(state[key].shape)} in the checkpoint; this model needs {tuple(shape)}. {_fits(state)}"
        )
    return state[key]


def _check_architecture(model: Any, state: Mapping[str, Tensor], layers: str) -> None:
    """The differences that users meet, said before any single key is compared."""
    found = describe(state)
    wanted = {
        "layers": layers,
        "interval": model.config.interval,
        "width": model.config.text_config.hidden_size,
        "vision_width": model.config.vision_width,
    }
    meaning = {
        "layers": "decoder layers called",
        "interval": "cross_attn_every_n_layers =",
        "width": "a language model of width",
        "vision_width": "a vision tower of width",
    }
    for what, words in meaning.items():
        if found[what] not in (None, "?", wanted[what]):
            raise ValueError(
                f"The checkpoint was trained for {words} {found[what]}; this model has {wanted[what]}. {_fits(state)}"
            )


def _fits(state: Mapping[str, Tensor]) -> str:
    from flamboyance.checkpoints import released  # which known models look like this

    found = describe(state)
    known = released.fitting(found)
    hint = f" That is the layout of {' and '.join(known)}." if known else ""
    return (
        f"(Its blocks stand before every {found['interval']}. layer of lang_encoder.{found['layers']}, width "
        f"{found['width']}, vision width {found['vision_width']}.{hint})"
    )


def _check_rows(model: Any, key: str, rows: Tensor, table: Tensor) -> None:
    """The checkpoint repeats the language model's own rows; if they are others, so was the language model."""
    if rows.is_meta or table.is_meta or not table.is_floating_point():
        return
    own = table[: len(rows)].detach()
    given = rows.to(own)
    if torch.equal(given, own):
        return
    likeness = torch.nn.functional.cosine_similarity(
        given.float().flatten(), own.float().flatten(), dim=0
    ).item()
    if likeness < 0.9:
        raise ValueError(
            f"{key} in the checkpoint is another language model's table (cosine similarity {likeness:.2f} to that of "
            f"{model.config.language or 'this one'}). Give the language model that the checkpoint was trained with."
        )
    warnings.warn(
        f"{key} differs slightly from the language model's own table (cosine similarity {likeness:.4f}); the checkpoint's "
        "rows are used. Is this the exact language model that it was trained with? Save with include_backbones=True.",
        stacklevel=5,
    )
    with torch.no_grad():
        own.copy_(given)
