"""Self-attention of the language model to keys that rows share: a prompt's, by its beams and candidates.

A cache stores the keys and values that rows share once, as `before`. Here the queries of all rows that share a text
are multiplied by its keys in one product, so that a decode step reads every prompt once, however many beams continue
it. One softmax over shared and own keys makes it the same attention. At 32 shots, 16 queries and 3 beams a step reads
0.03 GB instead of 1.6 (OPT-125M in float32, the same demonstrations for all).

Transformers' language models call `attention` through transformers' register of attention functions. Where nothing is
shared, it is transformers' own; except in bfloat16 on a CPU, where PyTorch's fused attention is slow for single tokens
and, in the backward pass, for short texts (`is_slow`).

Shape letters: R rows, B texts that rows share (R is a multiple), H heads, G heads of queries for one of keys, T new
tokens, S keys, K width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from flamboyance.model.linear import bfloat16_is_slow, product

NAME = "flamboyance"
# Families whose attention passes the cache's keys to transformers' registered function unchanged.
SHARED_BY_REGISTER = {"gemma3_text", "gpt2", "gpt_neox", "llama", "mistral", "opt", "phi", "phi3", "qwen2", "qwen3"}
SHARED_BY_REGISTER |= {"smollm3"}
SHARED_BY_CLASS = {"mosaic_gpt", "mpt"}  # families with an attention class of this package
MOST_SCORES = 2**24  # R·H·T·S; beyond it, scores are not written out where that is larger than a copy of the keys
WRITTEN_OUT = 256  # tokens of a text up to which its scores are written out in training, where that is faster

Pairs = Sequence[tuple[Tensor, Tensor]]  # keys and values, (B, H/G, S, K) each


@dataclass(frozen=True)
class SharedKeys:
    """Keys as a cache returns them for rows that continue shared texts.

    Attributes:
        before: keys and values of the shared texts.
        own: (R, H/G, S, K), the keys that the rows computed themselves.
    """

    before: Pairs
    own: Tensor


def parted(key: Tensor | SharedKeys) -> tuple[Pairs, Tensor]:
    """What rows share, and their own keys."""
    return (key.before, key.own) if isinstance(key, SharedKeys) else ((), key)


def install_shared_attention(language_model: PreTrainedModel) -> None:
    """Makes a language model of one of the families in SHARED_BY_REGISTER attend by this module's `attention`."""
    config = language_model.config
    if config.model_type in SHARED_BY_REGISTER and config._attn_implementation == "sdpa":
        language_model.set_attn_implementation(NAME)


def shares_prompts(language_model: PreTrainedModel) -> bool:
    """Whether a language model's attention takes SharedKeys. (Its implementation may be changed at any time.)"""
    config = language_model.config
    return config.model_type in SHARED_BY_CLASS or config._attn_implementation == NAME


def attention(
    module: Any,
    query: Tensor,
    key: Tensor | SharedKeys,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """As transformers calls it: (R, H, T, K) -> (R, T, H, K)."""
    before, key = parted(key)
    causal = getattr(module, "is_causal", True) if kwargs.get("is_causal") is None else kwargs["is_causal"]
    simple = (causal or attention_mask is not None) and kwargs.get("position_bias") is None
    if not before and not (simple and is_slow(query, dropout)):
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    if attention_mask is None and query.shape[2] > 1:  # transformers leaves a plain causal mask to fused attention
        attention_mask = query.new_ones(query.shape[2], key.shape[2], dtype=torch.bool).tril()[None, None]
    return attend(query, key, value, before, attention_mask, scaling).transpose(1, 2).contiguous(), None


def attend(
    query: Tensor, key: Tensor, value: Tensor, before: Pairs, mask: Tensor | None, scaling: float | None = None
) -> Tensor:
    """query (R, H, T, K), keys and values (R, H/G, S, K) of the rows' own -> (R, H, T, K).

    Args:
        mask: (R or 1, H or 1, T, all keys, those before first), True where a key is seen, or added to the scores; None
            for one new token that sees everything.
    """
    parts = [*before, (key, value)]
    counts = [keys.shape[2] for keys, _ in parts]
    if query.shape[2] > query.shape[3] // 2 and query[..., 0].numel() * sum(counts) > MOST_SCORES:
        return _whole(query, parts, mask, scaling)
    query = query * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = torch.cat([_product(query, keys.transpose(-1, -2)) for keys, _ in parts], dim=-1)
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    elif mask is not None:
        scores = scores + mask
    # Of a lower precision, softmax computes in float32 too, and keeps no float32 copy for the backward pass.
    weights = scores.softmax(-1).to(query.dtype).split(counts, dim=-1)
    outs = [_product(w, values) for w, (_, values) in zip(weights, parts, strict=True)]
    return sum(outs[1:], outs[0])


def _product(rows: Tensor, shared: Tensor) -> Tensor:
    """(R, H, T, A) by (B, H/G, A, C) -> (R, H, T, C): row r meets text r // (R / B), head h head h // G."""
    texts, heads = shared.shape[:2]
    grouped = rows.unflatten(1, (heads, -1)).unflatten(0, (texts, -1)).transpose(1, 2)  # (B, H/G, R/B, G, T, A)
    out = product(grouped.flatten(2, 4), shared)
    return out.unflatten(2, grouped.shape[2:5]).transpose(1, 2).flatten(0, 1).flatten(1, 2)


def _whole(query: Tensor, parts: Pairs, mask: Tensor | None, scaling: float | None) -> Tensor:
    """Every row with its copy of the keys, in fused attention, for long stretches of text."""
    keys, values = (joined([pair[i] for pair in parts], len(query)) for i in range(2))
    groups = query.shape[1] // keys.shape[1]
    keys, values = (t.repeat_interleave(groups, 1) for t in (keys, values))
    return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scaling)


def joined(parts: Sequence[Tensor], rows: int) -> Tensor:
    """Parts (B, H, S, K), each of its own number of texts, as one (rows, H, all S, K)."""
    return torch.cat([part.repeat_interleave(rows // len(part), 0) for part in parts], dim=2)


def is_slow(query: Tensor, dropout: float) -> bool:
    """Whether scores that are written out are faster than fused attention of query (R, H, T, K).

    So it is in bfloat16 on a CPU for single tokens, measured where oneDNN multiplies bfloat16 and where it does not, as
    with AVX2: `product` is then in float32. With the backward pass it is so for all short texts, where oneDNN
    multiplies bfloat16: 24 texts of 10 tokens take a tenth of the time, 3 of 90 a third, 4 of 256 six tenths.
    """
    if query.device.type != "cpu" or query.dtype != torch.bfloat16 or dropout:
        return False
    if query.requires_grad:
        return query.shape[2] <= WRITTEN_OUT and not bfloat16_is_slow()
    return query.shape[2] == 1


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
