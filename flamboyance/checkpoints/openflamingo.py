"""OpenFlamingo's checkpoints: everything that this package knows about their layout.

A released `checkpoint.pt` is a flat state dict. The files of OpenFlamingo's trainer wrap it in `model_state_dict`, with
`module.` before each key. Besides the trained tensors, a file may hold aliases of them, buffers, frozen layers of the
language model and whole embedding tables.

    checkpoint = read("checkpoint.pt")       # parsed once, for any model
    load(model, checkpoint)                  # or translate(model, checkpoint), which changes nothing
    torch.save(export(model), "checkpoint.pt")
"""

import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flamboyance import names
from flamboyance.checkpoints import released
from flamboyance.checkpoints.directory import warn_if_shut
from flamboyance.checkpoints.torch_file import read_torch_file
from flamboyance.model import language, linear, quantized_linear
from flamboyance.model.finite import check_finite

# This package's names, and the reference's.
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
BLOCK = re.compile(r"^lang_encoder\.(?P<layers>.+)\.(?P<index>\d+)\.gated_cross_attn_layer\.(?P<rest>.+)$")
ALIAS = re.compile(r"^lang_encoder\.gated_cross_attn_layers\.(\d+)\.(.+)$")
UNKNOWN = "?"  # the name of the decoder's layers, where a file has the aliases of its blocks alone
# What a file may hold and is not needed: frozen layers under either name, the vision tower, buffers.
STRAY = re.compile(
    r"^lang_encoder\.old_decoder_blocks\.|\.decoder_layer\.|^vision_encoder\."
    r"|\.rotary_emb\.inv_freq$|\.attention\.(bias|masked_bias)$|\.attn\.(attention\.)?(bias|masked_bias)$"
)


# A file ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Checkpoint:
    """A parsed checkpoint, and the model that it was trained for as far as its keys and shapes show.

    Attributes:
        tensors: each tensor once, by the reference's key; without wrappers, aliases and stray entries.
        layers: dotted name of the decoder's layers; None if no key says it.
        block_layers: the layers that have a block before them.
        width, vision_width: of the language model and of the vision tower; None if no key says it.
        width_key: the key that shows the width.
    """

    tensors: dict[str, Tensor]
    layers: str | None
    block_layers: tuple[int, ...]
    width: int | None
    width_key: str | None
    vision_width: int | None

    @property
    def cross_attn_every_n_layers(self) -> int | None:
        return self.block_layers[0] + 1 if self.block_layers else None

    def released_models(self) -> list[str]:
        """The released models that a checkpoint of this layout can belong to."""
        found = []
        for name in names.RELEASED:
            config = released.config_for(name)
            text = config.text_config
            blocks = tuple(config.layers_with_blocks(text.num_hidden_layers))
            expected = (blocks, text.hidden_size, config.vision_width)
            same = expected == (self.block_layers, self.width, self.vision_width)
            if same and self.layers in (None, released.LAYERS.get(text.model_type)):
                found.append(name)
        return found

    def __str__(self) -> str:
        if not self.block_layers:
            return "It has no gated_cross_attn_layer keys, so it is not a whole checkpoint."
        place = f" in lang_encoder.{self.layers}" if self.layers else ""
        known = self.released_models()
        hint = f" That is the layout of {' and '.join(known)}." if known else ""
        return (
            f"Its {len(self.block_layers)} blocks are{place}, cross_attn_every_n_layers = "
            f"{self.cross_attn_every_n_layers}, width {self.width}, vision width {self.vision_width}.{hint}"
        )


def is_openflamingo(state: Mapping[str, Any]) -> bool:
    """Whether these are the reference's keys, bare or as its trainer wraps them."""
    keys = state.get("model_state_dict", state)
    names = (WRAPPERS.sub("", key) for key in keys if isinstance(key, str)) if isinstance(keys, Mapping) else ()
    return any(name.startswith(("perceiver.", "lang_encoder.")) for name in names)


def read(path: str | Path) -> Checkpoint:
    """Reads a checkpoint file, released or trainer-made, without running code from it.

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
    return parse(state)


def parse(state: Mapping[str, Any]) -> Checkpoint:
    """Parses a state dict, in any of the forms that OpenFlamingo and its trainer write.

    Raises:
        ValueError: an entry is no tensor.
    """
    flat = {WRAPPERS.sub("", str(key)): value for key, value in state.get("model_state_dict", state).items()}
    named = {match.group("index", "rest") for match in map(BLOCK.match, flat) if match}
    tensors = {}
    for key, value in flat.items():
        if alias := ALIAS.match(key):
            if alias.groups() in named:
                continue
            key = f"lang_encoder.{UNKNOWN}.{alias[1]}.gated_cross_attn_layer.{alias[2]}"
        elif STRAY.search(key) and not BLOCK.match(key):
            continue
        if not isinstance(value, Tensor):
            raise ValueError(f"{key} in the checkpoint is a {type(value).__name__}; expected a tensor.")
        tensors[key] = value

    blocks = {key: match for key in tensors if (match := BLOCK.match(key))}
    # By majority, so that single keys that are wrong do not mislead.
    sizes = Counter(int(match["index"]) for match in blocks.values())
    layers = Counter(match["layers"] for match in blocks.values() if match["layers"] != UNKNOWN)
    norms = {key: tensors[key].numel() for key, match in blocks.items() if match["rest"] == "attn.norm.weight"}
    width = _most_common(Counter(norms.values()))
    latents = tensors.get("perceiver.latents")
    return Checkpoint(
        tensors,
        layers=_most_common(layers),
        block_layers=tuple(sorted(i for i, size in sizes.items() if size > max(sizes.values()) / 2)),
        width=width,
        width_key=next((key for key, size in norms.items() if size == width), None),
        vision_width=None if latents is None or not latents.ndim else latents.numel() // max(len(latents), 1),
    )


def _most_common(counts: Counter[Any]) -> Any:
    return next((value for value, _ in counts.most_common(1)), None)


# A model -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """A table of the language model, which the reference saves whole, with the rows of the added tokens at its end.

    Attributes:
        rows: our name of the added tokens' rows.
        weight: the frozen table.
        aliases: other keys that a file may have the table under.
    """

    rows: str
    weight: Tensor
    aliases: tuple[str, ...]


@dataclass(frozen=True)
class ReferenceNames:
    """The reference's keys of a model's parts.

    Attributes:
        layers: dotted name of the decoder's layers.
        parameters: {reference's key: our name} of the model's own parameters, except rows of tables.
        tables: by the reference's key.
        frozen: keys of the language model's own parameters.
    """

    layers: str
    parameters: dict[str, str]
    tables: dict[str, Table]
    frozen: set[str]


def reference_names(model: Any) -> ReferenceNames:
    """What the reference calls the parts of this model."""
    lm: Any = model.language_model
    layers, _ = language.find_decoder_layers(lm, model.config.decoder_layers)
    parameters = {}
    for ours in model.own_parameters():
        if ours.startswith("added_tokens."):
            continue
        theirs, prefix = ours, "block"
        if match := re.match(r"cross_attention\.(\d+)\.", ours):
            prefix = f"lang_encoder.{layers}.{model.cross_attention_layers[int(match[1])]}.gated_cross_attn_layer"
            theirs = "block." + ours[match.end() :]
        for pattern, replacement in RENAMES:
            theirs, changed = re.subn(pattern, replacement, theirs)
            if changed:
                break
        parameters[theirs.replace("block", prefix, 1)] = ours

    modules = {id(m): name for name, m in lm.named_modules()}
    frozen = {f"lang_encoder.{name}": p for name, p in lm.named_parameters(remove_duplicate=False)}
    quantized = {f"lang_encoder.{path}.weight" for path, _ in quantized_linear.layers(lm)}
    table, head = lm.get_input_embeddings(), lm.get_output_embeddings()
    head_key = f"lang_encoder.{OLD_HEADS.get(lm.config.model_type, modules[id(head)])}"
    weights = {f"lang_encoder.{modules[id(table)]}.weight": ("added_tokens.embedding", table.weight)}
    if not model.added_tokens.tied:
        weights[f"{head_key}.weight"] = ("added_tokens.head", head.weight)
    if model.added_tokens.head_bias is not None:
        weights[f"{head_key}.bias"] = ("added_tokens.head_bias", head.bias)
    tables = {}
    for key, (rows, weight) in weights.items():
        # The same table under another name: a head that was renamed, or one that is tied to the embeddings.
        aliases = [name for name, p in frozen.items() if p is weight]
        aliases += ["lang_encoder.lm_head.weight"] if rows == "added_tokens.head" else []
        tables[key] = Table(rows, weight, tuple(name for name in aliases if name not in weights))
    return ReferenceNames(layers, parameters, tables, frozen.keys() | quantized)


def translate(model: Any, checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The checkpoint's tensors of the model's own parameters, by this package's names. Changes nothing, and works on
    the meta device.

    Raises:
        ValueError: the checkpoint is for another cross_attn_every_n_layers, width or language model, or a key is
            missing, unknown or of another shape. The message says which, and what the checkpoint fits.
    """
    return _translate(model, checkpoint, reference_names(model))[0]


def load(model: Any, checkpoint: Checkpoint) -> None:
    """Copies a checkpoint into the model.

    Raises:
        ValueError: as `translate`, or the tables of the checkpoint are those of another language model.
    """
    with linear.unpacked(model), torch.no_grad():
        names, parameters = reference_names(model), model.own_parameters()
        tensors, tables = _translate(model, checkpoint, names)
        changed = {key: rows for key, rows in tables.items() if _differs(model, key, rows, names.tables[key].weight)}
        for name, tensor in tensors.items():
            parameters[name].copy_(tensor)
        for key, rows in changed.items():
            names.tables[key].weight[: len(rows)].copy_(rows)
        warn_if_shut(parameters, "the checkpoint")


def _translate(
    model: Any, checkpoint: Checkpoint, names: ReferenceNames
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Tensors by our names, and the language model's own rows of its tables by the reference's keys."""
    _check_layout(model, checkpoint, names.layers)
    before, after = f"lang_encoder.{UNKNOWN}.", f"lang_encoder.{names.layers}."
    state = {key.replace(before, after, 1): tensor for key, tensor in checkpoint.tensors.items()}
    for key, table in names.tables.items():
        if key not in state and (alias := next((name for name in table.aliases if name in state), None)):
            state[key] = state.pop(alias)
    missing = [key for key in (*names.parameters, *_required(model, names)) if key not in state]
    unknown = [key for key in state if not (key in names.parameters or key in names.tables or key in names.frozen)]
    if missing or unknown:
        found = [f"lacks {_some(missing)}"] if missing else []
        found += [f"has {_some(unknown)}, which this model does not"] if unknown else []
        frozen = " If it was trained with freeze_lm_embeddings=True, pass that when you build the model or convert it."
        hint = frozen if missing and missing[0] in names.tables else ""
        raise ValueError(f"The checkpoint {' and '.join(found)}. {checkpoint}{hint}")

    parameters = model.own_parameters()
    tensors = {
        ours: _shaped(theirs, state[theirs], parameters[ours].shape, checkpoint)
        for theirs, ours in names.parameters.items()
    }
    first, count = model.config.base_vocab_size, len(model.config.added_tokens)
    tables = {}
    for key, table in names.tables.items():
        if key in state:
            whole = _shaped(key, state[key], (first + count, *table.weight.shape[1:]), checkpoint)
            tables[key], tensors[table.rows] = whole[:first], whole[first:]
        elif len(table.weight) < first + count:
            warnings.warn(
                f"The checkpoint has no {key}: rows of the added tokens start at the table's mean.", stacklevel=4
            )
    return tensors, tables


def export(model: Any, whole: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> dict[str, Tensor]:
    """The model's own parameters as a reference state dict, embedding tables in full, which OpenFlamingo loads.

    Args:
        whole: gathers a tensor that is spread over devices.

    Raises:
        ValueError: the model has trainable parameters that the reference has no place for, or blocks where it has none.
    """
    layers = model.cross_attention_layers
    spaced = layers == list(range(layers[0], layers[-1] + 1, layers[0] + 1))
    if not spaced or model.resampler.projection is not None:
        raise ValueError(
            f"OpenFlamingo has no model with {model.config.placement} and latents of width {model.config.media_width} "
            f"of patches of width {model.config.vision_width}: its blocks are before every n-th layer, and its latents "
            "as wide as the patches. Save with save_pretrained"
        )
    for part in ("resampler", "cross_attention"):
        sizes = getattr(model.config, part)
        if sizes["activation"] != "gelu" or sizes["norm_keys_values"]:
            raise ValueError(
                f"OpenFlamingo has no model whose {part} has activation={sizes['activation']!r} and norm_keys_values="
                f"{sizes['norm_keys_values']}: expected 'gelu' and False. Save with save_pretrained"
            )
    if not model.config.cross_attention["only_attend_immediate_media"]:
        raise ValueError(
            "OpenFlamingo has no model whose tokens attend to all images (only_attend_immediate_media=False). Save "
            "with save_pretrained"
        )
    names, parameters = reference_names(model), model.own_parameters()
    tables = {id(table.weight) for table in names.tables.values()}
    others = sorted(name for name, t in model.kept_tensors().items() if name not in parameters and id(t) not in tables)
    if others:
        raise ValueError(
            f"an OpenFlamingo checkpoint has no place for {others[0]}, which is part of what this model keeps: its "
            "backbones are the published ones. Save with save_pretrained; or merge adapters of the resampler and "
            "cross-attention first (merge_and_unload)"
        )
    tensors = {name: whole(linear.plain(p).detach()) for name, p in parameters.items()}
    state = {theirs: tensors[ours] for theirs, ours in names.parameters.items()}
    first = model.config.base_vocab_size
    for key, table in names.tables.items():
        rows = whole(linear.plain(table.weight).detach())
        state[key] = torch.cat([rows[:first], tensors[table.rows].to(rows)])
    return state


def _required(model: Any, names: ReferenceNames) -> list[str]:
    """The tables that a file must hold: the one that trains, and those that the reference keeps by the word "embed"."""
    trains = model.added_tokens.embedding.requires_grad
    return [
        key
        for key, table in names.tables.items()
        if "embed" in key or (trains and table.rows == "added_tokens.embedding")
    ]


def _some(keys: list[str]) -> str:
    return keys[0] + (f" and {len(keys) - 1} more" if len(keys) > 1 else "")


def _shaped(key: str, tensor: Tensor, shape: Iterable[int], checkpoint: Checkpoint) -> Tensor:
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(
            f"{key} has shape {tuple(tensor.shape)} in the checkpoint; this model needs {tuple(shape)}. {checkpoint}"
        )
    check_finite({key: tensor}, "the checkpoint")
    return tensor


def _check_layout(model: Any, checkpoint: Checkpoint, layers: str) -> None:
    """Refuses another kind of model before single keys are compared: one line instead of hundreds of keys."""
    width, blocks = model.config.text_config.hidden_size, model.cross_attention_layers
    for what, given, expected in (
        ("decoder layers called lang_encoder.", checkpoint.layers, layers),
        ("cross_attn_every_n_layers = ", checkpoint.cross_attn_every_n_layers, blocks[0] + 1),
        (f"a language model of width (by {checkpoint.width_key}) ", checkpoint.width, width),
        ("a vision tower of width (by perceiver.latents) ", checkpoint.vision_width, model.config.vision_width),
        ("a language model with its last block before layer ", max(checkpoint.block_layers, default=None), blocks[-1]),
    ):
        if given is not None and given != expected:
            raise ValueError(f"The checkpoint was trained for {what}{given}; this model has {expected}. {checkpoint}")


def _differs(model: Any, key: str, given: Tensor, table: Tensor) -> bool:
    """Whether a file's rows of a table are not the language model's own.

    Files repeat those rows. If they differ a little, the language model is another version (a warning); if they differ
    much, it is another model (an error).
    """
    if given.is_meta or table.is_meta or not table.is_floating_point():
        return False
    expected = table[: len(given)].detach()
    given = given.to(expected)
    if torch.equal(given, expected):
        return False
    likeness = torch.nn.functional.cosine_similarity(given.float().flatten(), expected.float().flatten(), dim=0).item()
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
