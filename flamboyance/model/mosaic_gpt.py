"""MosaicGPT: the language model of MPT-1B (`mpt-1b-redpajama-200b`, `-dolly`), absent from Transformers.

A pre-norm decoder with ALiBi, LayerNorm on whole queries and keys, no biases, and an output head tied to the input
embedding. Parameters have their published names, so that published weights are loaded without remote code. Importing
this module registers `model_type: "mosaic_gpt"` with `AutoModelForCausalLM`.

Shapes: B batch, T new tokens, S tokens seen so far (cached and new), H heads, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    GenerationMixin,
    PreTrainedModel,
)
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils import logging

from flamboyance.configuration_mosaic_gpt import MosaicGPTConfig
from flamboyance.model.attention import Pairs, attend, is_slow, parted
from flamboyance.model.cache import NAME, given

logger = logging.get_logger(__name__)


class MosaicGPTAttention(nn.Module):
    def __init__(self, config: MosaicGPTConfig, layer_index: int) -> None:
        super().__init__()
        bias = not config.no_bias
        self.layer_index = layer_index
        self.heads = config.n_heads
        self.clip = config.attn_clip_qkv
        self.scale = config.softmax_scale  # None: 1 / sqrt(head width), as scaled_dot_product_attention's own default
        self.dropout = config.attn_pdrop
        self.Wqkv = nn.Linear(config.d_model, 3 * config.d_model, bias=bias)
        if config.attn_qk_ln:
            self.q_ln = nn.LayerNorm(config.d_model, bias=bias)
            self.k_ln = nn.LayerNorm(config.d_model, bias=bias)
        else:
            self.q_ln = self.k_ln = None
        self.out_proj = nn.Linear(config.d_model, config.d_model, bias=bias)

    def forward(self, x: Tensor, attention_bias: Tensor, cache: Cache | None) -> Tensor:
        """x (B, T, D), attention_bias (1 or B, H, T, S) -> (B, T, D)."""
        qkv = self.Wqkv(x)
        if self.clip is not None:
            qkv = qkv.clamp(-self.clip, self.clip)
        q, k, v = qkv.chunk(3, dim=-1)
        if self.q_ln is not None and self.k_ln is not None:
            # Over the whole width, before it is split into heads. Autocast runs LayerNorm in fp32: cast back.
            q, k = self.q_ln(q).to(v.dtype), self.k_ln(k).to(v.dtype)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        before: Pairs = ()
        if cache is not None:
            keys, v = cache.update(k, v, self.layer_index)
            (before, k), seen = parted(keys), attention_bias.shape[-1]
            k, v = k[:, :, :seen], v[:, :, :seen]  # a preallocated cache returns unused slots too
        bias, dropout = attention_bias.to(q.dtype), self.dropout if self.training else 0.0
        if before or is_slow(q, dropout):
            out = attend(q, k, v, before, bias, self.scale)
        else:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout, scale=self.scale)
        return self.out_proj(out.transpose(1, 2).flatten(2))


class MosaicGPTMLP(nn.Module):
    def __init__(self, config: MosaicGPTConfig) -> None:
        super().__init__()
        width, bias = int(config.mlp_ratio * config.d_model), not config.no_bias
        self.mlp_up = nn.Linear(config.d_model, width, bias=bias)
        self.mlp_down = nn.Linear(width, config.d_model, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp_down(F.gelu(self.mlp_up(x)))


class MosaicGPTBlock(GradientCheckpointingLayer):
    def __init__(self, config: MosaicGPTConfig, layer_index: int) -> None:
        super().__init__()
        bias = not config.no_bias
        self.ln_1 = nn.LayerNorm(config.d_model, bias=bias)
        self.attn = MosaicGPTAttention(config, layer_index)
        self.ln_2 = nn.LayerNorm(config.d_model, bias=bias)
        self.mlp = MosaicGPTMLP(config)
        self.dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, hidden_states: Tensor, attention_bias: Tensor, past_key_values: Cache | None = None) -> Tensor:
        attended = self.attn(self.ln_1(hidden_states), attention_bias, past_key_values)
        hidden_states = hidden_states + self.dropout(attended)
        return hidden_states + self.dropout(self.mlp(self.ln_2(hidden_states)))


class MosaicGPTPreTrainedModel(PreTrainedModel):
    config: MosaicGPTConfig
    config_class = MosaicGPTConfig
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _no_split_modules = ["MosaicGPTBlock"]  # noqa: RUF012 (as the base class declares them)
    _skip_keys_device_placement = ["past_key_values", "cache"]  # noqa: RUF012
    _supports_sdpa = True
    _input_embed_layer = "wte"


class MosaicGPTModel(MosaicGPTPreTrainedModel):
    """Embedding, blocks and final norm: token ids (B, T) -> hidden states (B, T, D)."""

    def __init__(self, config: MosaicGPTConfig) -> None:
        super().__init__(config)
        self.wte = nn.Embedding(config.vocab_size, config.d_model)
        if not config.alibi:
            self.wpe = nn.Embedding(config.max_seq_len, config.d_model)
        self.dropout = nn.Dropout(config.emb_pdrop)
        self.blocks = nn.ModuleList(MosaicGPTBlock(config, i) for i in range(config.n_layers))
        self.ln_f = nn.LayerNorm(config.d_model, bias=not config.no_bias)
        self.gradient_checkpointing = False
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        cache: Cache | None = None,
        **_: Any,
    ) -> BaseModelOutputWithPast:
        """As `MosaicGPTForCausalLM.forward`. hidden_states: each block's input; the final norm's output."""
        past_key_values = given(past_key_values, cache)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("mosaic_gpt: give exactly one of input_ids and inputs_embeds")
        if self.gradient_checkpointing and self.training:
            use_cache = False  # a recomputed block must not write to a cache
        if (self.config.use_cache if use_cache is None else use_cache) and past_key_values is None:
            past_key_values = DynamicCache()
        x = self.wte(input_ids) if inputs_embeds is None else inputs_embeds
        past = int(past_key_values.get_seq_length()) if past_key_values is not None else 0
        if past + x.shape[1] > self.config.max_seq_len and self.config.alibi:
            logger.warning_once(
                f"mosaic_gpt: {past + x.shape[1]} tokens, more than the {self.config.max_seq_len} it was "
                "trained on; expect weaker results"
            )
        if not self.config.alibi:
            x = x + self.wpe(_positions(x.shape[1], past, attention_mask, position_ids, self.wpe))
        if (fraction := self.config.embedding_fraction) != 1:
            x = x * fraction + x.detach() * (1 - fraction)  # the value stays; the gradient shrinks
        x = self.dropout(x)
        bias = _attention_bias(self.config, x, past, attention_mask)
        states = [x]
        for block in self.blocks:
            x = block(x, attention_bias=bias, past_key_values=past_key_values)
            states.append(x)
        states[-1] = x = self.ln_f(x)
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        cached: dict[str, Any] = {NAME: past_key_values}
        return BaseModelOutputWithPast(last_hidden_state=x, hidden_states=tuple(states) if wanted else None, **cached)


class MosaicGPTForCausalLM(MosaicGPTPreTrainedModel, GenerationMixin):
    """MosaicGPT with its tied head: token ids (B, T) -> logits (B, T, V)."""

    # Published files have no head, which is the embedding. It is a separate module so that it can have hooks.
    _tied_weights_keys = {"lm_head.weight": "transformer.wte.weight"}  # noqa: RUF012

    def __init__(self, config: MosaicGPTConfig) -> None:
        super().__init__(config)
        self.transformer = MosaicGPTModel(config)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        scale = config.logit_scale
        self.logit_scale = config.d_model**-0.5 if isinstance(scale, str) else scale
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple:
        """input_ids (B, T) or inputs_embeds (B, T, D) -> logits (B, T, V), and a loss if labels are given.

        attention_mask: (B, S) over cached and new tokens, bool or integer, 0 for padding on either side (real
        tokens do not depend on it); or (B, 1, T, S), bool or additive. labels: (B, T), -100 not predicted.
        Raises ValueError for a mask of another length.
        """
        outputs = self.transformer(
            input_ids,
            attention_mask,
            position_ids,
            given(past_key_values, cache),
            inputs_embeds,
            use_cache,
            output_hidden_states,
        )
        hidden = outputs.last_hidden_state
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(hidden[:, kept])
        if self.logit_scale is not None:
            logits = logits * self.logit_scale
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        result = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            **{NAME: outputs.get(NAME)},
        )
        return result.to_tuple() if return_dict is False else result


def _attention_bias(config: MosaicGPTConfig, x: Tensor, past: int, attention_mask: Tensor | None) -> Tensor:
    """ALiBi, the causal rule and padding as one additive mask (1 or B, H, T, S) in the attention's dtype."""
    new, seen, device = x.shape[1], past + x.shape[1], x.device
    keys = torch.arange(seen, device=device)
    distance = keys - (past + torch.arange(new, device=device))[:, None]  # (T, S): key minus query, in tokens
    allowed = (distance <= 0)[None, None]
    if attention_mask is not None:
        allowed = allowed & _seen_keys(attention_mask, x.shape[0], seen).to(device)
    heads = torch.arange(1, config.n_heads + 1, device=device, dtype=torch.float32)
    slopes = torch.exp2(-config.alibi_bias_max * heads / config.n_heads) * float(config.alibi)
    bias = slopes[:, None, None] * distance
    autocast = device.type != "meta" and torch.is_autocast_enabled(device.type)
    dtype = torch.get_autocast_dtype(device.type) if autocast else x.dtype
    # Half the smallest number: a score added to it stays finite, so no row of padding becomes NaN.
    return bias.to(dtype).masked_fill(~allowed, torch.finfo(dtype).min / 2)


def _seen_keys(attention_mask: Tensor, batch: int, seen: int) -> Tensor:
    """A mask in any accepted form -> bool (B, 1, 1 or T, S), True where a key may be seen."""
    if attention_mask.ndim == 4:
        attention_mask = attention_mask[..., :seen]
        return attention_mask if attention_mask.dtype == torch.bool else attention_mask == 0
    if attention_mask.shape != (batch, seen):
        raise ValueError(
            f"mosaic_gpt: attention_mask is {tuple(attention_mask.shape)}; expected {(batch, seen)}: "
            "one column for every token, cached and new"
        )
    return attention_mask.bool()[:, None, None]


def _positions(
    new: int, past: int, attention_mask: Tensor | None, position_ids: Tensor | None, table: nn.Embedding
) -> Tensor:
    """Positions (1 or B, T) of new tokens in a learned table, padding uncounted. ValueError past its end."""
    if past + new > table.num_embeddings:
        raise ValueError(
            f"mosaic_gpt: {past + new} tokens, but learned positions for {table.num_embeddings} "
            "(max_seq_len) only; shorten the prompt"
        )
    if position_ids is not None:
        return position_ids
    if attention_mask is not None and attention_mask.ndim == 2:
        return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, past:]
    return torch.arange(past, past + new, device=table.weight.device)[None]


AutoModelForCausalLM.register(MosaicGPTConfig, MosaicGPTForCausalLM, exist_ok=True)
