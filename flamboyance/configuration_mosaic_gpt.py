"""Configuration of MosaicGPT, the language model of MPT-1B (see `mosaic_gpt.py`)."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig


class MosaicGPTConfig(PreTrainedConfig):
    """Configuration with the keys of the published `config.json`.

    Keys that only choose a kernel or an initialisation (`attn_impl`, `low_precision_layernorm`,
    `param_init_fn`) are kept and have no effect. Raises ValueError for what changes the mathematics and is
    not here: `prefix_lm`, `attn_uses_sequence_id`, an untied head.
    """

    model_type = "mosaic_gpt"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values", "cache"]
    attribute_map: ClassVar[dict[str, str]] = {
        "hidden_size": "d_model",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "max_position_embeddings": "max_seq_len",
        "initializer_range": "init_std",
    }

    d_model: int = 2048
    n_heads: int = 16
    n_layers: int = 24
    mlp_ratio: int | float = 4
    max_seq_len: int = 2048
    vocab_size: int = 50368
    alibi: bool = False
    alibi_bias_max: int | float = 8
    attn_qk_ln: bool = False
    attn_clip_qkv: float | None = None
    softmax_scale: float | None = None
    no_bias: bool = False
    logit_scale: float | str | None = None
    embedding_fraction: float = 1.0
    attn_pdrop: float = 0.0
    resid_pdrop: float = 0.0
    emb_pdrop: float = 0.0
    attn_impl: str = "torch"
    prefix_lm: bool = False
    attn_uses_sequence_id: bool = False
    init_std: float = 0.02
    use_cache: bool = True
    tie_word_embeddings: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        # The published files say false: generation would recompute the whole prompt for every token, to the
        # same outputs.
        self.use_cache = True
        super().__post_init__(**kwargs)
        for key in ("prefix_lm", "attn_uses_sequence_id"):
            if getattr(self, key):
                raise ValueError(
                    f"mosaic_gpt: {key}=true is not supported; only plain causal attention ({key}=false) is"
                )
        if not self.tie_word_embeddings:
            raise ValueError(
                "mosaic_gpt: tie_word_embeddings=false is not supported; this model's head is its embedding"
            )
        if self.d_model % self.n_heads:
            raise ValueError(f"mosaic_gpt: d_model={self.d_model} is not a multiple of n_heads={self.n_heads}")
        if isinstance(self.logit_scale, str) and self.logit_scale != "inv_sqrt_d_model":
            raise ValueError(
                f"mosaic_gpt: logit_scale={self.logit_scale!r}; expected a number, null or 'inv_sqrt_d_model'"
            )
        if not 0 < self.embedding_fraction <= 1:
            raise ValueError(f"mosaic_gpt: embedding_fraction={self.embedding_fraction}; expected 0 < fraction <= 1")


AutoConfig.register(MosaicGPTConfig.model_type, MosaicGPTConfig, exist_ok=True)
