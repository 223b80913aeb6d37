"""Rebuilds the tiny models of the golden cases from nothing but their keys: every weight is a function of its name.

`build(case, directory)` writes them the way a user has them on disk: a Hugging Face CLIP vision directory, a language
model directory, a tokenizer directory; and returns OpenFlamingo's state dict for them.
"""

import json
import zlib
from math import prod
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from transformers import AutoConfig, CLIPVisionConfig, CLIPVisionModel, PreTrainedTokenizerFast

import flamboyance.model.mosaic_gpt  # noqa: F401  registers mosaic_gpt with AutoConfig

CASES = sorted((Path(__file__).parent / "cases").glob("*.json"))
MODEL_TYPES = {"pythia": "gpt_neox", "mpt1b": "mosaic_gpt"}


def read_case(file: Path) -> dict:
    return json.loads(file.read_text(encoding="utf-8"))


def weight(key: str, shape: list[int], seed: int, prefix: str = "") -> torch.Tensor:
    random = np.random.RandomState((zlib.crc32((prefix + key).encode()) + seed) % 2**32)
    x = random.standard_normal(size=shape).astype(np.float32)
    last = key.rsplit(".", 1)[-1]
    if last in ("attn_gate", "ff_gate"):
        x = 0.7 + 0.1 * x
    elif len(shape) == 1 and last == "weight":
        x = 1 + 0.1 * x
    elif len(shape) == 1:
        x = 0.1 * x
    elif last in ("latents", "frame_embs", "media_time_embs", "positional_embedding"):
        x = 0.5 * x
    elif any(part in key for part in ("embed", "wte", "wpe")):
        x = 0.15 * x
    else:
        x = x / np.sqrt(prod(shape[1:]))
    return torch.from_numpy(np.asarray(x, dtype=np.float32))


def pixels(case: dict) -> torch.Tensor:
    """(rows, images, frames, channels, height, width)"""
    random = np.random.RandomState(case["pixels"]["seed"])
    return torch.from_numpy(random.uniform(-1.5, 1.5, size=case["pixels"]["shape"]).astype(np.float32))


def build(case: dict, directory: Path) -> dict[str, torch.Tensor]:
    write_vision(case, directory / "vision")
    language = write_language(case, directory / "language")
    write_tokenizer(directory / "tokenizer", case["lm_config"]["vocab_size"])
    state = {k: weight(k, shape, case["seed"]) for k, shape in case["checkpoint_keys"].items()}
    own_rows = case["lm_config"]["vocab_size"]
    for key, tensor in state.items():
        if tensor.shape[0] == own_rows + 3:
            tensor[:own_rows] = language[key.removeprefix("lang_encoder.")]
    if case["output_head"] == "tied":
        table, *copies = (k for k in state if state[k].ndim == 2 and state[k].shape[0] == own_rows + 3)
        state |= dict.fromkeys(copies, state[table])
    return state


def write_vision(case: dict, directory: Path) -> None:
    sizes = case["clip_config"]["vision_cfg"]
    config = CLIPVisionConfig(
        hidden_size=sizes["width"],
        intermediate_size=4 * sizes["width"],
        num_hidden_layers=sizes["layers"],
        num_attention_heads=sizes["width"] // sizes["head_width"],
        image_size=sizes["image_size"],
        patch_size=sizes["patch_size"],
        hidden_act="quick_gelu" if case["clip_config"].get("quick_gelu") else "gelu",
    )
    w = {k: weight(k, shape, case["seed"], "visual.") for k, shape in case["vision_keys"].items()}
    state = {
        "embeddings.class_embedding": w["class_embedding"],
        "embeddings.patch_embedding.weight": w["conv1.weight"],
        "embeddings.position_embedding.weight": w["positional_embedding"],
    }
    for theirs, ours in (("ln_pre", "pre_layrnorm"), ("ln_post", "post_layernorm")):
        state |= {f"{ours}.{p}": w[f"{theirs}.{p}"] for p in ("weight", "bias")}
    for i in range(sizes["layers"]):
        old, new = f"transformer.resblocks.{i}", f"encoder.layers.{i}"
        for p in ("weight", "bias"):
            qkv = w[f"{old}.attn.in_proj_{p}"].chunk(3)
            state |= {f"{new}.self_attn.{n}_proj.{p}": t.clone() for n, t in zip("qkv", qkv, strict=True)}
            for theirs, ours in (
                ("attn.out_proj", "self_attn.out_proj"),
                ("ln_1", "layer_norm1"),
                ("ln_2", "layer_norm2"),
                ("mlp.c_fc", "mlp.fc1"),
                ("mlp.c_proj", "mlp.fc2"),
            ):
                state[f"{new}.{ours}.{p}"] = w[f"{old}.{theirs}.{p}"]
    model = CLIPVisionModel(config)
    prefix = "vision_model." if hasattr(model, "vision_model") else ""
    model.load_state_dict({prefix + k: t for k, t in state.items()})
    model.save_pretrained(directory)


def write_language(case: dict, directory: Path) -> dict[str, torch.Tensor]:
    directory.mkdir(parents=True)
    tied = case["output_head"] == "tied"
    state = {k: weight(k, shape, case["seed"], "lm.") for k, shape in case["lm_keys"].items()}
    if tied:
        table = next(k for k in state if k.endswith(("embed_tokens.weight", "wte.weight", "embed_in.weight")))
        for head in [k for k in state if k == "lm_head.weight"]:
            state[head] = state[table]
    family = case["family"]
    options = dict(case["lm_config"], tie_word_embeddings=tied)
    if MODEL_TYPES.get(family) == "mosaic_gpt":
        options.pop("tie_word_embeddings")
    config = AutoConfig.for_model(MODEL_TYPES.get(family, family), **options)
    config.save_pretrained(directory)
    stored = {k: t.contiguous() for k, t in state.items() if not (tied and k == "lm_head.weight")}
    save_file(stored, directory / "model.safetensors", metadata={"format": "pt"})
    return state


def write_tokenizer(directory: Path, size: int) -> None:
    words = {f"w{i}": i for i in range(size)}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")))
    tokenizer.save_pretrained(directory)
