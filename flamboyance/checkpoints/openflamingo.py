"""OpenFlamingo's checkpoints: everything that is known of their layout stands here.

A released `checkpoint.pt` is a flat state dict; the trainer's files wrap it in `model_state_dict`, with `module.`
before each key. Beside what trained, files may carry aliases of it, buffers, frozen layers of the language model and
whole embedding tables. Names on the left are this package's, on the right the reference's.
"""

import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flamboyance.checkpoints.directory import warn_if_shut
from flamboyance.checkpoints.layout import BLOCK, Layout
from flamboyance.checkpoints.torch_file import read_torch_file
from flamboyance.model import language, linear
from flamboyance.model.finite import check_finite

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
# Output heads that transformers has renamed since the reference was written, by model type.
OLD_HEADS = {"gpt_neox": "embed_out"}
# What parallel training, activation checkpointing and compilation put into names.
WRAPPERS = re.compile(r"\b(module|_checkpoint_wrapped_module|_fsdp_wrapped_module|_orig_mod)\.")
ALIAS = re.compile(r"^lang_encoder\.gated_cross_attn_layers\.(\d+)\.(.+)$")
# What a file may carry and this model holds elsewhere or computes: frozen layers under either name, the tower, buffers.
STRAY = re.compile(
    r"^lang_encoder\.old_decoder_blocks\.|\.decoder_layer\.|^vision_encoder\."
    r"|\.rotary_emb\.inv_freq$|\.attention\.(bias|masked_bias)$|\.attn\.(attention\.)?(bias|masked_bias)$"
)


def is_openflamingo(state: Mapping[str, Any]) -> bool:
    """Whether these are the reference's keys, bare or as its trainer wraps them."""
    keys = state.get("model_state_dict", state)
    names = (WRAPPERS.sub("", key) for key in keys if isinstance(key, str)) if isinstance(keys, Mapping) else ()
    return any(name.startswith(("perceiver.", "lang_encoder.")) for name in names)


def read(path: str | Path) -> dict[str, Tensor]:
    """Reads a checkpoint, released or trainer-made, without running code from it; normalised.

    Raises:
        ValueError: missing, empty, damaged, not OpenFlamingo's, or holding more than tensors and plain values.
    """
    state = read_torch_file(path)
    if not isinstance(state, Mapping):
        raise ValueError(f"{path} holds a {type(state).__name__}; expected OpenFlamingo's state dict.")
    if not is_openflamingo(state):
        found = ", ".join(map(str, list(state)[:3])) or "none"
        raise ValueError(
            f"{path} is no OpenFlamingo checkpoint: expected keys such as perceiver.latents, found {found}."
        )
    return normalise(state)


def normalise(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Flat state dict with each trained tensor once: wrappers, prefixes, aliases and stray entries removed.

    Raises:
        ValueError: an entry is no tensor.
    """
    flat = {WRAPPERS.sub("", key): value for key, value in state.get("model_state_dict", state).items()}
    kept = {}
    for key, value in flat.items():
        if ALIAS.match(key) or (STRAY.search(key) and not BLOCK.match(key)):
            continue
        if not isinstance(value, Tensor):
            raise ValueError(f"{key} in the checkpoint is a {type(value).__name__}; expected a tensor.")
        kept[key] = value
    own = {(m["index"], m["rest"]) for m in map(BLOCK.match, kept) if m}
    for match in filter(None, map(ALIAS.match, flat)):
        if match.groups() not in own:  # the layers' own name is not known from an alias
            kept[f"lang_encoder.?.{match[1]}.gated_cross_attn_layer.{match[2]}"] = flat[match[0]]
    return kept


def expected(model: Any) -> dict[str, str]:
    """The reference's key of everything that trains in the model, but rows of tables: {reference's: ours}."""
    layers, _ = language.find_decoder_layers(model.language_model, model.config.decoder_layers)
    names = {}
    for ours in model.own_parameters():
        if ours.startswith("added_tokens."):
            continue
        theirs, prefix = ours, None
        if match := re.match(r"cross_attention\.(\d+)\.", ours):
            prefix = f"lang_encoder.{layers}.{model.cross_attention_layers[int(match[1])]}.gated_cross_attn_layer"
            theirs = "block." + ours[match.end() :]
        for pattern, replacement in RENAMES:
            theirs, changed = re.subn(pattern, replacement, theirs)
            if changed:
                break
        names[theirs if prefix is None else theirs.replace("block", prefix, 1)] = ours
    return names


def tables(model: Any) -> dict[str, tuple[str, Tensor]]:
    """Tables that hold rows of added tokens: {reference's key: (our name of those rows, the frozen table)}."""
    lm: Any = model.language_model
    modules = {id(m): name for name, m in lm.named_modules()}
    table, head = lm.get_input_embeddings(), lm.get_output_embeddings()
    head_name = OLD_HEADS.get(lm.config.model_type, modules[id(head)])
    found = {f"lang_encoder.{modules[id(table)]}.weight": ("added_tokens.embedding", table.weight)}
    if not model.added_tokens.tied:
        found[f"lang_encoder.{head_name}.weight"] = ("added_tokens.head", head.weight)
    if model.added_tokens.head_bias is not None:
        found[f"lang_encoder.{head_name}.bias"] = ("added_tokens.head_bias", head.bias)
    return found


def translate(model: Any, state: Mapping[str, Any]) -> dict[str, Tensor]:
    """A reference state dict under this package's names, checked in full. Changes nothing; works on the meta device.

    Raises:
        ValueError: the checkpoint has another spacing, width or language model, or a key is missing, unknown or of
            another shape. The message says which, and what the checkpoint fits.
    """
    state = named_for(model, state)
    layout, names, rows = Layout.of(state), expected(model), tables(model)
    _check_layout(model, layout)
    frozen = {f"lang_encoder.{key}" for key, _ in model.language_model.named_parameters(remove_duplicate=False)}
    missing = [key for key in (*names, *_required(model, rows)) if key not in state]
    unknown = [key for key in state if key not in names and key not in rows and key not in frozen]
    if missing or unknown:
        found = [f"lacks {_some(missing)}"] if missing else []
        found += [f"has {_some(unknown)}, which this model does not"] if unknown else []
        raise ValueError(f"The checkpoint {' and '.join(found)}. {layout}{_if_frozen(missing, rows)}")

    wanted = model.own_parameters()
    result = {ours: _shaped(theirs, state[theirs], wanted[ours].shape, layout) for theirs, ours in names.items()}
    first, count = model.config.base_vocab_size, len(model.config.added_tokens)
    for theirs, (ours, table) in rows.items():
        if theirs in state:
            tensor = _shaped(theirs, state[theirs], (first + count, *table.shape[1:]), layout)
            result[ours] = tensor[first:]
        elif len(table) < first + count:
            warnings.warn(
                f"The checkpoint has no {theirs}: rows of the added tokens start at the table's mean.", stacklevel=3
            )
    return result


def load(model: Any, state: Mapping[str, Any]) -> None:
    """Puts a reference state dict into the model; see `translate` for what is refused.

    Raises:
        ValueError: as `translate`, or the tables of the checkpoint are those of another language model.
    """
    with linear.unpacked(model):
        _load(model, state)


def _load(model: Any, state: Mapping[str, Any]) -> None:
    state, wanted = named_for(model, state), model.own_parameters()
    result = translate(model, state)
    first = model.config.base_vocab_size
    others = {key: table for key, (_, table) in tables(model).items() if key in state}
    others = {key: table for key, table in others.items() if _differs(model, key, state[key][:first], table)}
    with torch.no_grad():
        for name, tensor in result.items():
            wanted[name].copy_(tensor)
        for key, table in others.items():
            table[:first].copy_(state[key][:first])
    warn_if_shut(wanted, "the checkpoint")


def named_for(model: Any, state: Mapping[str, Any]) -> dict[str, Tensor]:
    """A normalised state dict with the names that the reference would give to this model's parts."""
    layers, _ = language.find_decoder_layers(model.language_model, model.config.decoder_layers)
    lm = model.language_model
    state = {key.replace("lang_encoder.?.", f"lang_encoder.{layers}.", 1): t for key, t in normalise(state).items()}
    known, own = list(tables(model)), dict(lm.named_parameters(remove_duplicate=False))
    for key, (ours, table) in tables(model).items():
        # The same table under another name: a head that was renamed, or one that is tied to the embeddings.
        aliases = [f"lang_encoder.{name}" for name, p in own.items() if p is table]
        for alias in [*aliases, "lang_encoder.lm_head.weight"] if ours == "added_tokens.head" else aliases:
            if key not in state and alias in state and alias not in known:
                state[key] = state.pop(alias)
    return state


def export(model: Any, whole: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> dict[str, Tensor]:
    """The model's trained parts as a reference state dict, embedding tables in full: what OpenFlamingo loads.

    Args:
        whole: gathers a tensor that is spread over devices.
    """
    whole_tables, own = {id(table) for _, table in tables(model).values()}, model.own_parameters()
    others = sorted(name for name, t in model.kept_tensors().items() if name not in own and id(t) not in whole_tables)
    if others:
        raise ValueError(
            f"an OpenFlamingo checkpoint has no place for {others[0]}, which is part of what this model keeps: its "
            "backbones are the published ones. Save with save_pretrained; or merge adapters of the resampler and "
            "cross-attention first (merge_and_unload)"
        )
    wanted = {name: whole(linear.plain(p).detach()) for name, p in model.own_parameters().items()}
    state = {theirs: wanted[ours] for theirs, ours in expected(model).items()}
    first = model.config.base_vocab_size
    for theirs, (ours, table) in tables(model).items():
        rows = whole(linear.plain(table).detach())
        state[theirs] = torch.cat([rows[:first], wanted[ours].to(rows)])
    return state


def _required(model: Any, rows: Mapping[str, tuple[str, Tensor]]) -> list[str]:
    """The tables that a file must hold: what trains, and what the reference's filter keeps by the word "embed"."""
    trains = model.added_tokens.embedding.requires_grad
    return [key for key, (ours, _) in rows.items() if "embed" in key or (trains and ours == "added_tokens.embedding")]


def _if_frozen(missing: list[str], rows: Mapping[str, tuple[str, Tensor]]) -> str:
    if not missing or missing[0] not in rows:
        return ""
    return " If it was trained with freeze_lm_embeddings=True, say so when you build the model or convert the file."


def _some(keys: list[str]) -> str:
    return keys[0] + (f" and {len(keys) - 1} more" if len(keys) > 1 else "")


def _shaped(key: str, tensor: Tensor, shape: Iterable[int], layout: Layout) -> Tensor:
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(
            f"{key} has shape {tuple(tensor.shape)} in the checkpoint; this model needs {tuple(shape)}. {layout}"
        )
    check_finite({key: tensor}, "the checkpoint")
    return tensor


def _check_layout(model: Any, found: Layout) -> None:
    """The differences that users meet, said before any single key is compared."""
    layers, _ = language.find_decoder_layers(model.language_model, model.config.decoder_layers)
    width, spliced = model.config.text_config.hidden_size, model.cross_attention_layers
    for what, given, own in (
        ("decoder layers called lang_encoder.", found.layers, layers),
        ("cross_attn_every_n_layers = ", found.cross_attn_every_n_layers, model.config.cross_attn_every_n_layers),
        (f"a language model of width (by {found.width_key}) ", found.width, width),
        ("a vision tower of width (by perceiver.latents) ", found.vision_width, model.config.vision_width),
        ("a language model with its last block before layer ", max(found.indices, default=None), spliced[-1]),
    ):
        if given is not None and given != own:
            raise ValueError(f"The checkpoint was trained for {what}{given}; this model has {own}. {found}")


def _differs(model: Any, key: str, given: Tensor, table: Tensor) -> bool:
    """Files repeat the language model's own rows. Where they are others, so was the language model: a little (a
    warning), or wholly (an error)."""
    if given.is_meta or table.is_meta or not table.is_floating_point():
        return False
    own = table[: len(given)].detach()
    given = given.to(own)
    if torch.equal(given, own):
        return False
    likeness = torch.nn.functional.cosine_similarity(given.float().flatten(), own.float().flatten(), dim=0).item()
    name = model.config.language or "this one"
    if likeness < 0.9:
        raise ValueError(
            f"{key} in the checkpoint is another language model's table (cosine similarity {likeness:.2f} to that of "
            f"{name}). Give the language model that the checkpoint was trained with."
        )
    warnings.warn(
        f"{key} differs a little from the table of {name} (cosine similarity {likeness:.4f}); the checkpoint's rows "
        "are used. Is this the exact language model that it was trained with? Save with include_backbones=True.",
        stacklevel=4,
    )
    return True
