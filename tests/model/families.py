"""Tiny Flamingos, with random weights and open gates, around every language-model family that is named as supported."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM, CLIPVisionConfig

from flamboyance import FlamingoConfig, FlamingoForConditionalGeneration
from flamboyance.model.resampler import LATENTS_STD

VOCABULARY = 90  # the tokenizer's; tables have spare rows, as published ones do
EOC, IMAGE, PAD = VOCABULARY, VOCABULARY + 1, VOCABULARY + 2
PIXELS = 16

_COMMON = {"vocab_size": 96, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 1}
_LLAMA = {
    **_COMMON,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
}
FAMILIES = {
    "opt": {**_COMMON, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    | {"word_embed_proj_dim": 24, "max_position_embeddings": 512},
    "mpt": {**_COMMON, "d_model": 32, "n_heads": 4, "n_layers": 3, "max_seq_len": 512},
    "mosaic_gpt": {
        "vocab_size": 96,
        "d_model": 32,
        "n_heads": 4,
        "n_layers": 3,
        "max_seq_len": 512,
        "attn_qk_ln": True,
    },
    "gpt_neox": {k: v for k, v in _LLAMA.items() if k not in ("num_key_value_heads", "head_dim")}
    | {"rotary_pct": 0.5, "tie_word_embeddings": False},
    "gpt_neo": {**_COMMON, "hidden_size": 32, "num_heads": 4, "num_layers": 2, "max_position_embeddings": 512}
    | {"attention_types": [[["global", "local"], 1]], "window_size": 16, "intermediate_size": 48},
    "gptj": {**_COMMON, "n_embd": 32, "n_head": 4, "n_layer": 3, "rotary_dim": 4, "n_positions": 512, "n_inner": 48}
    | {"tie_word_embeddings": False},
    "gpt2": {**_COMMON, "n_embd": 32, "n_head": 4, "n_layer": 3, "n_positions": 512},
    "llama": {**_LLAMA, "tie_word_embeddings": False},
    "mistral": {**_LLAMA, "sliding_window": 16},
    "qwen3": {**_LLAMA, "tie_word_embeddings": True},
    "gemma3_text": {**_LLAMA, "sliding_window": 16, "query_pre_attn_scalar": 8}
    | {"layer_types": ["sliding_attention", "sliding_attention", "full_attention"]},
    "phi": {k: v for k, v in _LLAMA.items() if k not in ("num_key_value_heads", "head_dim")},
    "phi3": {k: v for k, v in _LLAMA.items() if k != "head_dim"},
    "smollm3": {**_LLAMA, "no_rope_layers": [1, 1, 0]},
}
PUBLISHED = ("opt", "mpt", "mosaic_gpt", "gpt_neox", "gpt_neo", "gptj", "llama")
MODERN = ("mistral", "qwen3", "gemma3_text", "phi", "phi3", "smollm3")


def make(
    family: str,
    cross_attn_every_n_layers: int = 1,
    max_frames: int | None = None,
    seed: int = 0,
    text_config=None,
    **cross_attention,
):
    torch.manual_seed(seed)
    if text_config is None:
        text_config = AutoConfig.for_model(family, **FAMILIES[family])
    tower = CLIPVisionConfig(
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=PIXELS,
        patch_size=8,
    )
    config = FlamingoConfig(
        vision={"library": "transformers", "name": None, "pretrained": None, "config": tower.to_dict()},
        vision_width=24,
        text_config=text_config,
        cross_attn_every_n_layers=cross_attn_every_n_layers,
        resampler={"depth": 2, "heads": 2, "dim_head": 8, "latents": 5, "max_frames": max_frames},
        cross_attention={"heads": 2, "dim_head": 8} | cross_attention,
        base_vocab_size=VOCABULARY,
        added_tokens=["<|endofchunk|>", "<image>", "<PAD>"],
        eoc_token_id=EOC,
        image_token_id=IMAGE,
        pad_token_id=PAD,
    )
    language_model = AutoModelForCausalLM.from_config(text_config)
    # Freshly initialised weights are so small that every token is as likely; make the logits tell tokens apart.
    for name, p in language_model.named_parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=0.5 if "embed" in name or "wte" in name else 1.5 / p.shape[-1] ** 0.5)
    model = FlamingoForConditionalGeneration(config, language_model=language_model)
    with torch.no_grad():
        model.resampler.latents.div_(LATENTS_STD)  # as far apart as after training
    for block in model.cross_attention:
        torch.nn.init.constant_(block.attention_gate, 0.8)
        torch.nn.init.constant_(block.feed_forward_gate, 0.5)
    torch.nn.init.normal_(model.added_tokens.embedding, std=0.5)
    return model


def images(*counts: int, frames: int = 1, seed: int = 0) -> torch.Tensor:
    """(rows, most, frames, 3, PIXELS, PIXELS), zero beyond a row's count."""
    random = torch.Generator().manual_seed(seed)
    pixels = torch.zeros(len(counts), max(counts), frames, 3, PIXELS, PIXELS)
    for row, count in enumerate(counts):
        pixels[row, :count] = torch.randn(count, frames, 3, PIXELS, PIXELS, generator=random)
    return pixels


def prompt(*segments: int, seed: int = 0, lead: int = 0) -> list[int]:
    """`lead` words, then for each segment `<image>`, so many words, and `<|endofchunk|>` after all but the last."""
    random = torch.Generator().manual_seed(seed)

    def words(n):
        return torch.randint(2, VOCABULARY, (n,), generator=random).tolist()

    ids = words(lead)
    for i, length in enumerate(segments):
        ids += [IMAGE, *words(length)] + ([EOC] if i < len(segments) - 1 else [])
    return ids


def pad_left(rows: list[list[int]]) -> dict[str, torch.Tensor]:
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), PAD)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, width - len(row) :] = torch.tensor(row)
        mask[i, width - len(row) :] = 1
    return {"input_ids": ids, "attention_mask": mask}
