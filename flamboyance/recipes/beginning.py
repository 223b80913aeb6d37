"""How a new Flamingo begins: what stands before every text, the rows of new tokens, and blocks that change nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import processors
from transformers import PreTrainedTokenizerBase

from flamboyance.checkpoints.directory import WEIGHTS, load_trained
from flamboyance.flamingo import FlamingoForConditionalGeneration
from flamboyance.model import adapters
from flamboyance.model.resampler import squared_relu
from flamboyance.model.trainable import OWN
from flamboyance.processing import FlamingoProcessor

SEPARATOR = "<|endoftext|>"  # what many byte-level tokenizers have between two documents, beside a chat's own tokens
HALF_OPEN = 0.5  # a gate, whose tanh multiplies a block's output
BLOCK = re.compile(r"cross_attention\.(\d+)\.(.+)")  # a block's number, and a name within it
SAMPLE = (8, 32)  # rows and tokens of the text that streams are measured on


def begin_texts(tokenizer: PreTrainedTokenizerBase) -> None:
    """Makes the tokenizer put a token before every text, if it puts none there itself.

    Language models make an attention sink of the first token: from some layer on its hidden state is 50 times as large
    as the others', and whatever a block adds to it is lost. With `<image>` in that place the model cannot say what the
    first image shows. The token is the separator of documents, or else the beginning or the end of a text.
    """
    vocabulary = tokenizer.get_vocab()
    known = (SEPARATOR, tokenizer.bos_token, tokenizer.eos_token)
    token = next((token for token in known if token in vocabulary), None)
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if (
        token is None
        or backend is None
        or tokenizer("a").input_ids != tokenizer("a", add_special_tokens=False).input_ids
    ):
        return
    before = processors.TemplateProcessing(
        single=f"{token} $A", pair=f"{token} $A {token} $B", special_tokens=[(token, vocabulary[token])]
    )
    steps = [step for step in (backend.post_processor, before) if step is not None]
    backend.post_processor = processors.Sequence(steps)


def begin_with(
    model: FlamingoForConditionalGeneration, directory: Path, layers: Sequence[int], tensors: Mapping[str, torch.Tensor]
) -> None:
    """Copies the trained part of a model directory into the model, with what was trained of its backbones. A block goes
    to the layer that it stood before; one whose layer has no block here is left out, and a block that the directory
    lacks stays as it is.

    Args:
        layers: those before which the directory's model has its blocks.
        tensors: the directory's weights.

    Raises:
        ValueError: it is of other sizes, has adapters, or has no block in common with the model.
    """
    here = model.cross_attention_layers
    if not set(here) & set(layers):
        raise ValueError(
            f"{directory} has blocks before layers {list(layers)}, and this model before {here}: give "
            "cross_attention_layers with at least one of its layers, or leave the setting out"
        )
    parts = adapters.tensors(model)
    for name, tensor in tensors.items():
        if name.startswith(OWN):
            continue
        if name not in parts:
            raise ValueError(
                f"{directory} has {name}, of an adapter or of another backbone; `initial` takes the weights of the "
                "same backbones alone. Merge adapters and save the model first"
            )
        if tensor.shape != parts[name].shape:
            raise ValueError(
                f"{directory} has trained {name}, of shape {tuple(tensor.shape)}; here it has "
                f"{tuple(parts[name].shape)}. Give the backbones and the image_size that it was trained with"
            )
    begun: dict[str, torch.Tensor] = {}
    for name, parameter in model.own_parameters().items():  # of the blocks that the directory lacks
        if (block := BLOCK.match(name)) and here[int(block[1])] not in layers:
            begun[name] = parameter.detach()
    for name, tensor in tensors.items():
        if block := BLOCK.match(name):
            if layers[int(block[1])] in here:
                begun[f"cross_attention.{here.index(layers[int(block[1])])}.{block[2]}"] = tensor
        else:  # also what was trained of the backbones
            begun[name] = tensor
    load_trained(model, begun, directory / WEIGHTS)


@torch.no_grad()
def begin_rows(model: FlamingoForConditionalGeneration, processor: FlamingoProcessor) -> None:
    """`<|endofchunk|>` begins as the language model's end of text, if it has one: the language model knows what follows
    that. The other rows stay at the table's mean. (A beginning of text in the place of `<image>` would be as natural,
    but that of a chat model expects a role after it, and not a caption.)"""
    added, like = model.added_tokens, processor.tokenizer.eos_token_id
    tables: dict[str, Any] = {"embedding": model.get_input_embeddings().weight}
    if added.head is not None:
        tables["head"] = model.get_output_embeddings().weight
    row = processor.eoc_token_id - processor.base_vocab_size
    if like is None or row < 0 or like >= processor.base_vocab_size:
        return
    for name, table in tables.items():
        getattr(added, name)[row] = table[like]


@torch.no_grad()
def begin_outputs(model: FlamingoForConditionalGeneration) -> None:
    """Opens all gates half, and sets the projections that they multiply to zero; what those projections are given gets
    the scale of the language model's hidden states.

    A block is the identity then, as with closed gates. But a gate at zero gets its gradient from whatever a random
    projection lets through, and the projection gets none until the gate opens: in small batches gates swing about
    zero, and nothing is learned behind them.

    Adam moves a weight by about the learning rate, whatever the gradient's size. So what a block adds grows with what
    its last projection is given, of size 1 by default, while the hidden states that it is added to may have a size of
    10: a hundred steps would not be noticed.
    """
    for block, scale in zip(model.blocks, stream_scales(model), strict=True):
        for gate in (block.attention_gate, block.feed_forward_gate):
            gate.fill_(HALF_OPEN)
        for output in (block.attention.to_out, block.feed_forward.down):
            output.weight.zero_()
        to_kv: Any = block.attention.to_kv
        if isinstance(to_kv, torch.nn.Sequential):  # behind a LayerNorm
            to_kv = to_kv[-1]
        _, values = to_kv.weight.chunk(2)
        values *= scale
        squares = block.feed_forward.activation is squared_relu
        block.feed_forward.up.weight *= scale**0.5 if squares else scale


@torch.no_grad()
def stream_scales(model: FlamingoForConditionalGeneration) -> list[float]:
    """The size of the hidden states before each block: their root mean square, the median over random tokens. A row's
    first token is left out; see begin_texts."""
    found: list[float] = []

    def measure(block: torch.nn.Module, given: tuple[Any, ...]) -> None:
        found.append(given[0][:, 1:].float().square().mean(-1).sqrt().median().item())

    hooks = [block.register_forward_pre_hook(measure) for block in model.blocks]
    try:
        ids = torch.randint(model.config.base_vocab_size, SAMPLE, generator=torch.Generator().manual_seed(0))
        ids = ids.to(model.device)
        model(ids, torch.ones_like(ids), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return found
