"""Attention of transformers' MPT by fused kernels, and to what rows share.

Transformers' own writes its scores out, in float32 beside the model's precision. ALiBi's bias and the mask are one
additive mask here, in the precision of the queries.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.mpt.modeling_mpt import MptAttention

from flamboyance.model.attention import attend, is_slow, shared
from flamboyance.model.cache import given
from flamboyance.model.linear import become


class FusedMptAttention(MptAttention):
    """MptAttention; it returns no attention weights."""

    def forward(
        self,
        hidden_states: Tensor,
        position_bias: Tensor | None,
        past_key_values: Any = None,
        attention_mask: Tensor | None = None,
        cache: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """hidden_states (R, T, D), position_bias (H, 1, longest), attention_mask (R, 1, T, all keys) True where a key
        is hidden -> (R, T, D)."""
        qkv = self.Wqkv(hidden_states)
        if self.clip_qkv:
            qkv = qkv.clamp(-self.clip_qkv, self.clip_qkv)
        query, key, value = (t.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for t in qkv.chunk(3, dim=-1))
        past_key_values = given(past_key_values, cache)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        before = shared(key)
        length = key.shape[2] + sum(keys.shape[2] for keys, _ in before)
        mask = _mask(query, length, position_bias, attention_mask)
        dropout = self.attn_dropout_p if self.training else 0.0
        if before or is_slow(query, dropout):
            out = attend(query, key, value, before, mask, self.softmax_scale)
        else:
            out = F.scaled_dot_product_attention(query, key, value, mask, dropout, scale=self.softmax_scale)
        return self.out_proj(out.transpose(1, 2).flatten(2)), None


def _mask(query: Tensor, length: int, position_bias: Tensor | None, hidden: Tensor | None) -> Tensor | None:
    """ALiBi and the mask, to be added to scores (R, H, T, length); made once for all layers, which share `hidden`."""
    known = getattr(hidden, "additive", None)
    if known is not None and known.dtype == query.dtype and known.device == query.device:
        return known
    bias = torch.zeros((), device=query.device)
    if position_bias is not None:
        # Transformers counts from the last token. From the query's own, near keys keep their order in bfloat16.
        bias = (position_bias[..., -length:] - position_bias[..., -query.shape[2] :].transpose(1, 2))[None]
    bias = bias.to(query.dtype)
    if hidden is None:
        return None if position_bias is None else bias
    # Half the smallest number: a score added to it stays finite, so no row of padding becomes NaN.
    mask: Any = bias.masked_fill(hidden, torch.finfo(query.dtype).min / 2)
    keeper: Any = hidden
    keeper.additive = mask
    return mask


def fuse_mpt_attention(language_model: nn.Module) -> bool:
    """Gives an MPT this attention; says whether the language model is one."""
    found = [module for module in language_model.modules() if type(module) is MptAttention]
    for module in found:
        become(module, FusedMptAttention)
    return bool(found)
