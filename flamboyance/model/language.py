"""Gated cross-attention inside a language model whose modules and parameters do not change.

Blocks and added tokens run in hooks on the language model's modules, and only inside `conditioned(...)`. Outside of it,
the language model computes what it computed when it was loaded. The hooks read the media of the current forward pass
from a context variable, so that threads do not interfere. While Dynamo traces the whole forward pass, they read them
from an attribute instead, because Dynamo follows attributes and not context variables. The compiled function neither
reads nor keeps that attribute.
"""

import threading
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, partial
from inspect import Parameter, signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from flamboyance.model.cache import NAMES
from flamboyance.model.cross_attention import GatedCrossAttentionBlock
from flamboyance.model.linear import plain
from flamboyance.model.media import ImageAttentionLayout, Media


class AddedTokens(nn.Module):
    """Trained rows for the tokens added to a language model's vocabulary, beside its frozen tables.

    Args:
        first: id of the first added token; rows of the frozen table from here on are not used.
        count: number of added tokens.
        language_model: determines widths, initial values, and whether the output head is tied.
    """

    def __init__(self, first: int, count: int, language_model: PreTrainedModel):
        super().__init__()
        table: Any = language_model.get_input_embeddings()
        head: Any = output_head(language_model)
        if table.weight.shape[0] < first:
            raise ValueError(
                f"the tokenizer has {first} tokens, but the language model's table has {table.weight.shape[0]} rows. "
                "Give the tokenizer of this language model. To add tokens of your own, create the model first, then "
                "add them and call model.resize_token_embeddings(len(tokenizer))."
            )
        self.first = first
        # Gemma's embedding scales its rows by sqrt(width); added rows are stored unscaled, as its weights are.
        self.scale = float(getattr(table, "scalar_embed_scale", getattr(table, "embed_scale", 1.0)))
        self.embedding = nn.Parameter(_initial_rows(table.weight, first, count))
        self.tied = is_tied(language_model)
        self.head = None if self.tied else nn.Parameter(_initial_rows(head.weight, first, count))
        bias = getattr(head, "bias", None)
        self.head_bias = None if bias is None else nn.Parameter(_initial_rows(bias, first, count))

    def resize(self, count: int, language_model: PreTrainedModel) -> None:
        """Changes the number of added tokens. Rows that remain keep their values; new rows start at the mean of the
        language model's rows, with a little noise. The parameters are new objects."""
        table: Any = language_model.get_input_embeddings()
        head: Any = output_head(language_model)
        frozen: dict[str, Any] = {"embedding": table.weight, "head": head.weight}
        frozen["head_bias"] = getattr(head, "bias", None)
        for name, rows in frozen.items():
            old = getattr(self, name)
            if old is None:
                continue
            new = old.detach()[:count]
            if count > len(old):
                # Without the table's spare rows, which are not trained.
                more = _initial_rows(plain(rows)[: self.first], self.first, count - len(old))
                new = torch.cat([new, more.to(new)])
            setattr(self, name, nn.Parameter(new.clone(), old.requires_grad))

    def embed(self, ids: Tensor, table: nn.Module) -> Tensor:
        """ids (R, T) -> (R, T, D): the frozen table's rows, or the added ones."""
        known = table(ids.clamp(max=self.first - 1))
        added = F.embedding((ids - self.first).clamp(min=0), self.embedding * self.scale).to(known)
        return torch.where((ids >= self.first)[..., None], added, known)

    def extend_logits(self, hidden: Tensor, logits: Tensor) -> Tensor:
        """hidden (…, D), logits (…, table rows) -> (…, at least first + count): the logits of the added tokens replace
        those of the table's spare rows. Logits after `first + count` have no meaning."""
        rows = self.embedding if self.head is None else self.head
        added = F.linear(hidden.to(rows.dtype), rows, self.head_bias).to(logits)
        end = self.first + added.shape[-1]
        if logits.shape[-1] >= end and not torch.is_grad_enabled():
            logits[..., self.first : end] = added  # in place: no copy of the vocabulary's size
            return logits
        return torch.cat([logits[..., : self.first], added], dim=-1)


class SplicedBlocks:
    """Stands for the blocks of one Flamingo in the hooks of its language model, which other Flamingos may share. A
    deep copy of the Flamingo has its own."""


@dataclass(frozen=True)
class Conditioning:
    """What one forward pass of the language model is conditioned on, and which logits it returns."""

    media: Media | None
    layout: ImageAttentionLayout | None
    added: AddedTokens
    keep: int | Tensor  # the last `keep` positions, 0 for all; or (K,) positions, row·T + t
    blocks: SplicedBlocks  # those of this pass; several Flamingos may share a language model
    weights: list[Tensor] | None = None  # the blocks append their attention weights here, one after another


class _Traced(threading.local):
    """The conditioning of the forward pass that this thread traces."""

    def __init__(self):
        self.on: Conditioning | None = None  # in the object, not in the class: Dynamo's guards are on its dictionary


_conditioning: ContextVar[Conditioning | None] = ContextVar("flamingo_conditioning", default=None)
_traced = _Traced()


def conditioning() -> Conditioning | None:
    """The conditioning of the current call of the language model."""
    if torch.compiler.is_compiling() and _traced.on is not None:
        return _traced.on
    # Also in a compiled function: of the language model alone, or of a part after a graph break.
    return _conditioning.get()


@contextmanager
def conditioned(on: Conditioning) -> Generator[None, None, None]:
    """Inside it, this thread's calls of the language model use media and added tokens."""
    if torch.compiler.is_compiling():
        before, _traced.on = _traced.on, on
        try:
            yield
        finally:
            _traced.on = before
        return
    token = _conditioning.set(on)
    try:
        yield
    finally:
        _conditioning.reset(token)


def recomputed_as_conditioned(checkpoint: Callable[..., Any]) -> Callable[..., Any]:
    """A function for gradient checkpointing that conditions the second pass of a layer as the first one was.
    transformers 5.16 runs a layer's hooks, and with them its block, in both passes; later versions in the first."""

    def checkpointed(layer: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if (on := conditioning()) is None:
            return checkpoint(layer, *args, **kwargs)

        def again(*args: Any, **kwargs: Any) -> Any:
            with conditioned(on):
                return layer(*args, **kwargs)

        return checkpoint(again, *args, **kwargs)

    return checkpointed


class Recomputed:
    """The forward of a frozen decoder layer: it keeps its inputs alone, and is computed again in the backward pass.
    transformers does that to layers in training mode; those of a frozen language model stay in evaluation mode."""

    checkpoint: Callable[..., Any] | None = None  # None: an ordinary forward

    def __init__(self, layer: nn.Module):
        self.layer = layer
        self.forward = layer.forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        writes = any(isinstance(given, Cache) for given in (*args, *kwargs.values()))  # it would be written to twice
        if self.checkpoint is None or self.layer.training or writes or not torch.is_grad_enabled():
            return self.forward(*args, **kwargs)
        return self.checkpoint(partial(self.forward, **kwargs), *args)


def recompute(layers: Iterable[nn.Module], checkpoint: Callable[..., Any] | None, every_n_layers: int = 1) -> None:
    """Makes every n-th layer compute its forward again by this function; with None, no layer does."""
    for number, layer in enumerate(layers):
        if not isinstance(layer.forward, Recomputed):
            layer.forward = Recomputed(layer)
        layer.forward.checkpoint = checkpoint if number % every_n_layers == 0 else None


class BlockHook:
    """Runs a gated cross-attention block before a decoder layer. An object rather than a closure, so that a deep copy
    of the model has hooks that call its own blocks."""

    def __init__(self, block: GatedCrossAttentionBlock, number: int, blocks: SplicedBlocks):
        self.block = block
        self.number = number
        self.blocks = blocks

    def __call__(self, layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict] | None:
        on = conditioning()
        if on is None or on.blocks is not self.blocks:
            return None
        hidden = args[0] if args else kwargs["hidden_states"]
        if hidden.ndim != 3:
            raise ValueError(
                f"{type(layer).__name__} takes hidden states of shape {tuple(hidden.shape)}; expected (rows, tokens, "
                "width). Use another language model."
            )
        x, keys, values, layout = moved(hidden, self.block), None, None, None
        if on.layout is not None and on.media is not None:
            keys, values = (moved(t, self.block) for t in on.media.keys_values[self.number])
            layout = on.layout.to(self.block.attention_gate.device)
        x = self.block(x, keys, values, layout, on.weights).to(hidden)
        return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": x})


def moved(x: Tensor, block: GatedCrossAttentionBlock) -> Tensor:
    """x on the device and in the precision of a block. (`x.to(gate)` fails for a sharded gate.)"""
    return x.to(block.attention_gate.device, block.attention_gate.dtype)


def keep_wanted(head: nn.Module, args: tuple) -> tuple | None:
    """Pre-hook of the output head: computes only the wanted logits, whatever options the family has."""
    on = conditioning()
    if on is None:
        return None
    if isinstance(on.keep, Tensor):
        return (args[0].flatten(0, 1).index_select(0, on.keep), *args[1:])
    if not on.keep:
        return None
    # With the strides of a slice, PyTorch copies the whole head for each row, in bfloat16 on a CPU.
    return (args[0][..., -on.keep :, :].clone(memory_format=torch.contiguous_format), *args[1:])


def extend_head(head: nn.Module, args: tuple, logits: Tensor) -> Tensor | None:
    """Hook of the output head: adds the logits of the added tokens."""
    on = conditioning()
    return None if on is None else on.added.extend_logits(args[0], logits)


def splice(
    language_model: PreTrainedModel, layers: nn.ModuleList, blocks: dict[int, GatedCrossAttentionBlock]
) -> SplicedBlocks:
    """Puts each block before the decoder layer whose index is its key. They run in passes that are conditioned with
    what this returns."""
    spliced = SplicedBlocks()
    for number, (index, block) in enumerate(blocks.items()):
        layers[index].register_forward_pre_hook(BlockHook(block, number, spliced), with_kwargs=True)
    hook_head(language_model)
    return spliced


def hook_head(language_model: PreTrainedModel) -> None:
    """Puts the hooks on the current output head. An adapter may have wrapped or unwrapped it since: hooks on the inner
    module would get other logits than the wrapper returns, or would not be called."""
    head = output_head(language_model)
    if extend_head in head._forward_hooks.values():
        return
    for part in head.modules():  # also the head inside an adapter
        for hooks in (part._forward_pre_hooks, part._forward_hooks):
            for key in [key for key, hook in hooks.items() if hook in (keep_wanted, extend_head)]:
                del hooks[key]
    head.register_forward_pre_hook(keep_wanted)
    head.register_forward_hook(extend_head)


def find_decoder_layers(language_model: PreTrainedModel, name: str | None = None) -> tuple[str, nn.ModuleList]:
    """The list of decoder layers and its dotted name: the given one, or the one with as many layers as the model has.

    Raises:
        ValueError: no list, or several lists, could be it.
    """
    language_model = unwrapped(language_model)
    kind = type(language_model).__name__
    lists = {n: m for n, m in language_model.named_modules() if isinstance(m, nn.ModuleList) and len(m)}
    if name is not None:
        if name not in lists:
            raise ValueError(f"decoder_layers={name!r}: {kind} has no such list; it has {', '.join(lists) or 'none'}")
        return name, lists[name]
    depth = getattr(language_model.config.get_text_config(decoder=True), "num_hidden_layers", None)
    fitting = {n: m for n, m in lists.items() if len(m) == depth}
    # Lists inside a decoder layer (experts, heads) may have the same length; the decoder's is the outermost.
    outermost = [n for n in fitting if not any(n.startswith(f"{other}.") for other in fitting)]
    if len(outermost) != 1:
        # A vision tower of the same depth is outside of the decoder. One module may be several layers (LongCat).
        decoder = {id(module) for module in language_model.get_decoder().modules()}
        fitting = {n: m for n, m in (fitting or lists).items() if id(m) in decoder}
        outermost = [n for n in fitting if not any(n.startswith(f"{other}.") for other in fitting)]
    if len(outermost) > 1:  # another list may be deeper inside the decoder
        least = min(n.count(".") for n in outermost)
        own = [n for n in outermost if n.count(".") == least]
        outermost = own if own[0].endswith(".layers") else outermost
    if len(outermost) != 1:
        found = ", ".join(f"{n} ({len(m)})" for n, m in lists.items()) or "no lists at all"
        raise ValueError(
            f"{kind} has no unique list of {depth} decoder layers; it has {found}. Give the dotted name of the list: "
            "decoder_layers=…"
        )
    return outermost[0], fitting[outermost[0]]


def output_head(language_model: nn.Module) -> nn.Module:
    """The module that computes logits.

    Raises:
        ValueError: the language model has none (an encoder, or a bare decoder).
    """
    head = unwrapped(language_model).get_output_embeddings()
    if head is None:
        raise ValueError(
            f"{type(language_model).__name__} has no output head; expected a causal language model, of a class whose "
            "name ends in ForCausalLM"
        )
    return head


def is_tied(language_model: PreTrainedModel) -> bool:
    """Whether the output head is the input table."""
    return output_head(language_model).weight is language_model.get_input_embeddings().weight


def unwrapped(language_model: nn.Module) -> PreTrainedModel:
    """The language model inside wrappers that pass arguments on (PEFT's, a compiled module's).

    Raises:
        ValueError: there is no transformers model inside.
    """
    found = next((module for module in language_model.modules() if isinstance(module, PreTrainedModel)), None)
    if found is None:
        raise ValueError(f"{type(language_model).__name__} is not a transformers model; give a causal language model")
    return found


def arguments(language_model: nn.Module) -> frozenset[str]:
    """The arguments of the language model's forward, and those of its decoder if it passes others on."""
    model: Any = unwrapped(language_model)
    return _arguments(type(model), type(model.base_model), type(model.get_decoder()))


@cache
def _arguments(*kinds: Any) -> frozenset[str]:
    """The arguments of the first class, and of each next one as long as those before it pass others on."""
    names: frozenset[str] = frozenset()
    for kind in kinds:
        parameters = signature(kind.forward).parameters
        names = names.union(parameters)  # not `|=`, which Dynamo before torch 2.10 cannot trace
        if not any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters.values()):
            break
    return names


def accepted(language_model: nn.Module, options: dict[str, Any]) -> dict[str, Any]:
    """The options that the language model's forward takes."""
    known = arguments(language_model)
    return {k: v for k, v in options.items() if k in known}


def returns_attentions(language_model: nn.Module) -> bool:
    """Whether the language model's layers return their attention weights on request. Fused attention has none."""
    return unwrapped(language_model).config.get_text_config(decoder=True)._attn_implementation == "eager"


def cache_option(language_model: nn.Module, cache: Any) -> dict[str, Any]:
    """The cache under the language model's name for it."""
    known = arguments(language_model)
    return {next((name for name in NAMES if name in known), NAMES[0]): cache}


def takes_inputs_by_layer(language_model: nn.Module) -> bool:
    """Whether the layers take further inputs per token beside the embedding (Gemma 4)."""
    config = unwrapped(language_model).config.get_text_config(decoder=True)
    wanted = getattr(config, "hidden_size_per_layer_input", 0)
    return bool(wanted) and "per_layer_inputs" in arguments(language_model)


def inputs_by_layer(language_model: nn.Module, input_ids: Tensor, first_added: int) -> dict[str, Tensor]:
    """The inputs that layers take beside embeddings. Added tokens count as padding, as Gemma's own image tokens do."""
    model = unwrapped(language_model)
    config = model.config.get_text_config(decoder=True)
    embed: Any = next(m for m in reversed(list(model.modules())) if hasattr(m, "get_per_layer_inputs"))
    ids = input_ids.masked_fill(input_ids >= first_added, config.pad_token_id or 0)
    more = (None,) if len(signature(embed.get_per_layer_inputs).parameters) > 1 else ()
    return {"per_layer_inputs": embed.get_per_layer_inputs(ids, *more)}


def rotary_frequencies(language_model: nn.Module) -> list[Tensor]:
    """The frequencies of rotary positions, by the name that they have in transformers."""
    return [buffer for name, buffer in language_model.named_buffers() if name.endswith("inv_freq")]


def positions(language_model: nn.Module) -> int | None:
    """The number of tokens that the language model has positions for; None if there is no limit (ALiBi by formula,
    scaled positions, no positions)."""
    config = unwrapped(language_model).config.get_text_config(decoder=True)
    most = getattr(config, "max_seq_len" if config.model_type == "mpt" else "max_position_embeddings", None)
    scaling = getattr(config, "rope_parameters", None) or {}
    grows = isinstance(scaling, dict) and scaling.get("rope_type") == "dynamic"
    alibi = getattr(config, "alibi", False) and config.model_type != "mpt"
    if not isinstance(most, int) or most < 1 or grows or alibi:
        return None
    return most - first_position(language_model)


def first_position(language_model: nn.Module) -> int:
    """The position of the first token: RoBERTa-like models reserve the first rows of their table for padding."""
    tables = [m for n, m in language_model.named_modules() if n.endswith("position_embeddings")]
    return next((m.padding_idx + 1 for m in tables if getattr(m, "padding_idx", None) is not None), 0)


def counts_real(language_model: nn.Module) -> bool:
    """Whether padding takes no position. It does in MPT, whose ALiBi is a table over columns."""
    return "position_ids" in accepted(language_model, {"position_ids": None})


@torch.no_grad()
def _initial_rows(table: Tensor, first: int, count: int) -> Tensor:
    """The frozen table's spare rows if it has them (as after OpenFlamingo's resizing); else its mean with a little
    noise, so that new tokens are as likely as others at first."""
    if len(table) >= first + count:
        return table[first : first + count].clone()
    if table.is_meta:
        return table.new_empty(count, *table.shape[1:])
    used = table[:first].float()
    noise = torch.randn(count, *table.shape[1:], device=table.device) * used.std() * 0.01
    return (used.mean(0) + noise).to(table.dtype)
