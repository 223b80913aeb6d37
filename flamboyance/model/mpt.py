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


class FusedMptAttention(MptAttention):
    """MptAttention; it returns no attention weights."""

    def forward(
        self,
        hidden_states: Tensor,
        position_bias: Tensor | None,
        past_key_values: Any = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """hidden_states (R, T, D), position_bias (H, 1, longest), attention_mask (R, 1, T, all keys) True where a key
        is hidden -> (R, T, D)."""
        qkv = self.Wqkv(hidden_states)
        if self.clip_qkv:
            qkv = qkv.clamp(-self.clip_qkv, self.clip_qkv)
        query, key, value = (t.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for t in qkv.chunk(3, dim=-1))
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        before = shared(key)
        length = key.shape[2] + sum(keys.shape[2] for keys, _ in before)
        mask = None if position_bias is None else position_bias[None, :, :, -length:].to(query.dtype)
        if attention_mask is not None:
            # Half the smallest number: a score added to it stays finite, so no row of padding becomes NaN.
            bias = torch.zeros((), dtype=query.dtype, device=query.device) if mask is None else mask
            mask = bias.masked_fill(attention_mask, torch.finfo(query.dtype).min / 2)
        dropout = self.attn_dropout_p if self.training else 0.0
        if before or is_slow(query, dropout):
            out = attend(query, key, value, before, mask, self.softmax_scale)
        else:
            out = F.scaled_dot_product_attention(query, key, value, mask, dropout, scale=self.softmax_scale)
        return self.out_proj(out.transpose(1, 2).flatten(2)), None


def adopt(language_model: nn.Module) -> bool:
    """Gives an MPT this attention; says whether the language model is one."""
    found = [module for module in language_model.modules() if type(module) is MptAttention]
    for module in found:
        module.__class__ = FusedMptAttention
    return bool(found)
