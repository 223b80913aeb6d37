"""A Flamingo of a few thousand random weights, as a complete model directory."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CLIPVisionConfig, CLIPVisionModel, OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

from flamboyance import FlamingoForConditionalGeneration, FlamingoProcessor
from flamboyance.images import ImageProcessor
from flamboyance.model.resampler import LATENTS_STD

TEXT = "Output : Question Short answer ? . a red blue green square circle cat dog yes no what is this"
IMAGE_SIZE = 16


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word of `TEXT`, or `<unk>`."""
    vocabulary = {token: i for i, token in enumerate(["<unk>", "</s>", *TEXT.split()])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>")


def save_tiny_flamingo(directory: Path, seed: int = 0, max_frames: int | None = None) -> Path:
    """Write model and processor to `directory`; its gates are open, so that images count.

    `max_frames`: time embeddings, for videos.
    """
    torch.manual_seed(seed)
    backbones = directory / "backbones"
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=IMAGE_SIZE,
        patch_size=8,
    )
    CLIPVisionModel(vision).save_pretrained(backbones / "vision")
    language = OPTConfig(
        vocab_size=len(TEXT.split()) + 2,
        hidden_size=32,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        word_embed_proj_dim=32,
        max_position_embeddings=512,
    )
    OPTForCausalLM(language).save_pretrained(backbones / "language")
    processor = FlamingoProcessor(ImageProcessor.clip(IMAGE_SIZE), tiny_tokenizer())
    model = FlamingoForConditionalGeneration.from_backbones(
        str(backbones / "vision"),
        str(backbones / "language"),
        processor,
        cross_attn_every_n_layers=1,
        resampler={"depth": 1, "heads": 2, "dim_head": 8, "latents": 4, "max_frames": max_frames},
        cross_attention={"heads": 2, "dim_head": 8},
    )
    with torch.no_grad():
        model.resampler.latents.div_(LATENTS_STD)  # as far apart as after training
    for block in model.cross_attention:
        torch.nn.init.constant_(block.attention_gate, 1.0)
        torch.nn.init.constant_(block.feed_forward_gate, 0.5)
    model.save_pretrained(directory / "model", include_backbones=True)
    processor.save_pretrained(directory / "model")
    return directory / "model"
