"""Tiny language models of every family that transformers maps to a causal language model."""

from typing import Any

from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

FAMILIES = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys() - {"flamingo"})  # ours is there for transformers' Trainer
LAYERS = 4

_GEMMA3N = {
    "num_kv_shared_layers": 2,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "activation_sparsity_pattern": [0.0] * LAYERS,
    "intermediate_size": 48,
}

# What makes a configuration tiny; each value goes where a configuration has the name.
SIZES: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512, "pad_token_id": 0, "bos_token_id": 0,
    "eos_token_id": 1, "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "moe_num_experts": 4, "moe_topk": 2, "moe_k": 2, "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16, "n_group": 1, "topk_group": 1, "n_shared_experts": 1,
    "q_lora_rank": 16, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8,
    "qk_head_dim": 8, "d_model": 32, "decoder_layers": LAYERS, "decoder_attention_heads": 4, "decoder_ffn_dim": 48,
    "encoder_layers": 1, "encoder_attention_heads": 4, "encoder_ffn_dim": 48, "ffn_dim": 48, "n_embd": 32,
    "n_head": 4, "n_layer": LAYERS, "n_positions": 512, "n_layers": LAYERS, "n_heads": 4, "emb_dim": 32,
    "embedding_size": 32, "n_inner": 48, "rotary_dim": 4, "mamba_chunk_size": 8, "chunk_size": 8,
    "mamba_d_state": 8, "mamba_n_heads": 8, "mamba_d_head": 8,
    "mamba_n_groups": 1, "mamba_d_ssm": 64, "mamba_num_heads": 8, "mamba_head_dim": 8, "ssm_state_size": 8,
    "state_size": 8, "num_heads": 4, "n_groups": 1, "sliding_window": 8, "attention_chunk_size": 8, "window_size": 8,
    "is_decoder": True,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "linear_num_heads": 4, "linear_head_dim": 8, "index_head_dim": 8, "index_n_heads": 2, "index_topk": 512,
    "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 96, "laurel_rank": 8, "num_dense_layers": 1,
    "first_k_dense_replace": 1, "num_kv_heads": 2, "ffn_hidden_size": 48, "query_pre_attn_scalar": 8,
    "word_embed_proj_dim": 32, "max_seq_len": 512, "lru_width": 32, "attention_window_size": 8,
}  # fmt: skip
_HYBRID = ["linear_attention", "full_attention"] * 2
_INDEXER = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 64,
    "indexer_compress_ratio": 4,
}
_MLA = {"num_key_value_heads": 4, "head_dim": 4}  # attention by latents: the head's width is that of its rotated part
OVERRIDES: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"layer_types": _HYBRID},
    "bamba": {"attn_layer_indices": [1, 3]},
    "cohere_compass_text": {
        "layer_types": ["full_attention", "sliding_attention"] * 2,
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
            for kind in ("full_attention", "sliding_attention")
        },
    },
    "dbrx": {"attn_config": {"clip_qkv": 8.0, "kv_n_heads": 2, "rope_theta": 10000.0}},
    "dots3_note": {"num_key_value_heads": 4},
    "dots3_note_text": {"num_key_value_heads": 4},
    "gemma3n": _GEMMA3N,
    "gemma3n_text": _GEMMA3N,
    "gemma4_assistant": {"hidden_size_per_layer_input": 0},
    "gemma4_unified_assistant": {"num_kv_shared_layers": 0},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "num_layers": 4},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2, "shared_intermediate_size": 16},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    "kimi_linear": {"layer_types": _HYBRID},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "longcat_flash": {"num_layers": 2},
    "mamba2": {"num_heads": 8},
    "nemotron_h": {"moe_shared_expert_intermediate_size": 16},
    "qwen4_exp": _INDEXER,
    "qwen4_exp_text": _INDEXER,
    "reformer": {"axial_pos_embds_dim": [16, 16], "axial_pos_shape": [16, 32]},
    "xmod": {"default_language": "en_XX"},
    "qwen3_next": {"layer_types": _HYBRID},
    "qwen3_5_text": {"layer_types": _HYBRID},
    "qwen3_5_moe_text": {"layer_types": _HYBRID},
    "qwen3_5": {"layer_types": _HYBRID},
    "qwen3_5_moe": {"layer_types": _HYBRID},
    "zamba": {"attn_layer_period": 2, "attn_layer_offset": 0, "use_mamba_kernels": False, "attention_head_dim": 16},
    "zamba2": {"layers_block_type": ["mamba", "hybrid"] * 2, "use_mamba_kernels": False},
    "zaya": {"num_experts_per_tok": 1},
}
# Families without a tiny model, and why.
NOT_BUILT = {
    "dots3_note": "its configuration names layers by number, for its published depth alone",
    "gemma4_assistant": "transformers refuses its default configuration; it drafts for Gemma 4, whose cache it reads",
    "gemma4_unified_assistant": "transformers refuses its default configuration; it drafts for Gemma 4",
    "musicgen": "AutoModelForCausalLM cannot build it from its configuration; it predicts sounds",
    "musicgen_melody": "AutoModelForCausalLM cannot build it from its configuration; it predicts sounds",
}


def tiny_config(family: str) -> Any:
    """The family's configuration, tiny."""
    return _tiny(type(AutoConfig.for_model(family)), OVERRIDES.get(family, {}))


def _tiny(kind: Any, overrides: dict[str, Any]) -> Any:
    default = kind()
    if "text_config" in getattr(kind, "sub_configs", {}):
        parts = {name: getattr(default, name, None) for name in kind.sub_configs}
        tiny = {
            name: _tiny(type(part), overrides if name == "text_config" else {}).to_dict()
            for name, part in parts.items()
            if part is not None
        }
        special = [name for name, value in vars(default).items() if "token_i" in name and isinstance(value, int)]
        return kind(**tiny, **dict.fromkeys(special, 95))
    towers = {name: _tiny(part, {}).to_dict() for name, part in _towers(kind).items()}
    known = set(vars(default)) | set(kind.attribute_map)
    given = {name: value for name, value in SIZES.items() if name in known}
    for name, stored in kind.attribute_map.items():  # two names of one value
        if name in given and stored in given:
            del given[name]
    if "kv_lora_rank" in known:
        given |= _MLA
    return kind(**given | towers | overrides)


def _towers(kind: Any) -> dict[str, Any]:
    """The configurations of other modalities."""
    parts = getattr(kind, "sub_configs", {}).items()
    return {name: part for name, part in parts if name in ("vision_config", "audio_config")}
