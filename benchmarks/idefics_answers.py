"""A benchmark's worker that answers prompts of the same shape with Transformers' Idefics.

Its weights cannot be the same: it is a LLaMA with a resampler and gated blocks of its own. Widths, depths, heads,
vocabulary, tower, resampler and the spacing of blocks are the same. Its feed-forward layers have three matrices, with
as many weights in total as the two of the others.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import CLIPVisionConfig, IdeficsConfig, IdeficsForVisionText2Text, OPTConfig

from benchmarks.processes import peak_memory, serve, timed, watch_memory

held: dict[str, Any] = {}


def load(
    vision: dict[str, Any], language: dict[str, Any], cross_attn_every_n_layers: int, threads: int, precision: str
) -> None:
    """Builds a model with random weights. Options of CLIPVisionConfig and OPTConfig, as in `Size`."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    tower, text = CLIPVisionConfig(**vision), OPTConfig(**language)
    config = IdeficsConfig(
        vocab_size=text.vocab_size,
        hidden_size=text.hidden_size,
        intermediate_size=text.ffn_dim * 2 // 3,
        num_hidden_layers=text.num_hidden_layers,
        num_attention_heads=text.num_attention_heads,
        cross_layer_interval=cross_attn_every_n_layers,
        alpha_initializer="ones",
        use_resampler=True,
        tie_word_embeddings=True,
        vision_config={
            "embed_dim": tower.hidden_size,
            "intermediate_size": tower.intermediate_size,
            "num_hidden_layers": tower.num_hidden_layers,
            "num_attention_heads": tower.num_attention_heads,
            "patch_size": tower.patch_size,
            "image_size": tower.image_size,
            "hidden_act": tower.hidden_act,
        },
        perceiver_config={"resampler_n_heads": 8, "resampler_head_dim": 64},  # depth 6 and 64 latents are its own
    )
    model = IdeficsForVisionText2Text(config).eval()
    held["model"] = model.to(torch.bfloat16) if precision == "bf16" else model


def prepare(images: str, asked: dict[str, Any], tokens: int) -> None:
    """Ready to answer prompts of so many tokens each, with the work's images."""
    pixels = torch.load(images, weights_only=True)["pixels"]
    order = torch.tensor(asked["images"])
    queries, count = order.shape
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 50000, (queries, tokens), generator=random)
    # An image every so many tokens, seen by those that follow, up to the next one.
    each = -(-tokens // count)
    seen = torch.nn.functional.one_hot(torch.arange(tokens) // each, count)
    held["prompts"] = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": pixels[order],
        "image_attention_mask": seen.expand(queries, -1, -1),
    }
    held["generation"] = asked["generation"]


def answer() -> dict[str, Any]:
    """Answers all prompts: seconds, and those of all cores."""
    out, seconds = timed(lambda: held["model"].generate(**held["prompts"], do_sample=False, **held["generation"]))
    assert out.shape[1] == held["prompts"]["input_ids"].shape[1] + held["generation"]["max_new_tokens"]
    return seconds


if __name__ == "__main__":
    functions = (load, prepare, answer, peak_memory, watch_memory)
    serve({function.__name__: function for function in functions})
