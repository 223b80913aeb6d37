"""A Flamingo of the published 80B's class (74 billion parameters), to plan with.

    flamboyance plan examples/recipes/flamingo_80b.py:flamingo_80b --gpus 512

The language model has Chinchilla 70B's shape (80 layers of width 8,192) in GPT-NeoX's architecture, with a block before
every seventh layer (Flamingo, table 1); a tower of ViT-H/14's size replaces NFNet-F6.
"""

from typing import Any

from transformers import CLIPVisionConfig, GPTNeoXConfig

from flamboyance.configuration import FlamingoConfig
from flamboyance.data import presets
from flamboyance.training.config import TrainingConfig
from flamboyance.training.run import TrainingRun


def flamingo_80b(*, output: str, laion: str, mmc4: str, steps: int = 500_000) -> TrainingRun:
    """Flamingo-80B's sizes, sharded over all devices."""
    training = TrainingConfig(
        output=output,
        sources=presets.flamingo(laion, mmc4, batch_size=4),
        steps=steps,
        precision="bf16",
        parallel="fsdp",
        checkpoint_activations=True,
    )
    return TrainingRun(training, build=_build, outline=outline)


def outline() -> FlamingoConfig:
    tower = CLIPVisionConfig(
        hidden_size=1280,
        intermediate_size=5120,
        num_hidden_layers=32,
        num_attention_heads=16,
        image_size=224,
        patch_size=14,
    )
    text = GPTNeoXConfig(
        hidden_size=8192, intermediate_size=32768, num_hidden_layers=80, num_attention_heads=64, vocab_size=50432
    )
    return FlamingoConfig(
        vision={"library": "transformers", "name": None, "pretrained": None, "config": tower.to_dict()},
        vision_width=1280,
        text_config=text,
        cross_attn_every_n_layers=7,
        resampler={"heads": 16, "dim_head": 96},
        cross_attention={"heads": 64, "dim_head": 128},
    )


def _build() -> Any:
    raise ValueError("flamingo_80b is a shape to plan with: give it backbones of your own to train it")
