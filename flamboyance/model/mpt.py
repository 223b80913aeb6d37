"""MPT's attention by fused kernels, and to keys that rows share.

Transformers' own attention writes the scores out, in float32 as well as in the model's precision. Here ALiBi's bias and
the mask are one additive mask, in the precision of the queries.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.mpt.modeling_mpt import MptAttention, MptModel

from flamboyance.model.attention import attend, is_slow, parted
from flamboyance.model.cache import given
from flamboyance.model.linear import become


class Alibi:
    """ALiBi's bias (H, 1, longest) in one forward pass, and the additive masks that its layers share."""

    def __init__(self, bias: Tensor):
        self.bias = bias
        self._masks: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def mask(self, query: Tensor, length: int, hidden: Tensor) -> Tensor:
        """ALiBi and the mask `hidden` (R, 1, T, length), True where a key is hidden, as one mask that is added to the
        scores (R, H, T, length) of query (R, H, T, K)."""
        kind = query.dtype, query.device
        if kind not in self._masks:
            # Transformers counts from the last token. From the query's own, near keys keep their order in bfloat16.
            keys, queries = self.bias[..., -length:], self.bias[..., -query.shape[2] :].transpose(1, 2)
            bias = (keys - queries)[None].to(query.device, query.dtype)
            # Half the smallest number: a score added to it stays finite, so no row of padding becomes NaN.
            self._masks[kind] = bias.masked_fill(hidden, torch.finfo(query.dtype).min / 2)
        return self._masks[kind]


class FusedMptModel(MptModel):
    """MptModel, for layers with FusedMptAttention."""

    def build_mpt_alibi_tensor(self, *args: Any, **kwargs: Any) -> Any:
        return Alibi(super().build_mpt_alibi_tensor(*args, **kwargs))


class FusedMptAttention(MptAttention):
    """MptAttention; it returns no attention weights."""

    def forward(
        self,
        hidden_states: Tensor,
        position_bias: Alibi,
        past_key_values: Any = None,
        attention_mask: Any = None,
        cache: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """hidden_states (R, T, D), attention_mask (R, 1, T, all keys) True where a key is hidden -> (R, T, D)."""
        qkv = self.Wqkv(hidden_states)
        if self.clip_qkv:
            qkv = qkv.clamp(-self.clip_qkv, self.clip_qkv)
        query, key, value = (t.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for t in qkv.chunk(3, dim=-1))
        past_key_values = given(past_key_values, cache)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        before, key = parted(key)
        length = key.shape[2] + sum(keys.shape[2] for keys, _ in before)
        mask = position_bias.mask(query, length, attention_mask)
        dropout = self.attn_dropout_p if self.training else 0.0
        if before or is_slow(query, dropout):
            out = attend(query, key, value, before, mask, self.softmax_scale)
        else:
            out = F.scaled_dot_product_attention(query, key, value, mask, dropout, scale=self.softmax_scale)
        return self.out_proj(out.transpose(1, 2).flatten(2)), None


def fuse_mpt_attention(language_model: nn.Module) -> None:
    """Gives an MPT this attention."""
    for module in language_model.modules():
        if type(module) is MptAttention:
            become(module, FusedMptAttention)
        elif type(module) is MptModel:
            become(module, FusedMptModel)
