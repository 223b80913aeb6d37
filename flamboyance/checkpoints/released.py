"""The five released OpenFlamingo models: their configurations, from the facts published with them."""

from typing import Any

from transformers import CLIPVisionConfig, GPTNeoXConfig, MptConfig, PreTrainedConfig

from flamboyance import names
from flamboyance.configuration import ADDED_TOKENS, FlamingoConfig
from flamboyance.configuration_mosaic_gpt import MosaicGPTConfig
from flamboyance.images import ImageProcessor

BASE_VOCABULARY = 50277  # of GPT-NeoX's tokenizer, which all five use
VISION_WIDTH = 1024
LAYERS = {"mosaic_gpt": "transformer.blocks", "mpt": "transformer.blocks", "gpt_neox": "gpt_neox.layers"}
TOWER = {"library": "transformers", "name": "openai/clip-vit-large-patch14", "pretrained": None}


def _mpt_1b() -> PreTrainedConfig:
    return MosaicGPTConfig(d_model=2048, n_heads=16, n_layers=24, vocab_size=50432, attn_qk_ln=True, alibi=True)


def _mpt_7b() -> PreTrainedConfig:
    return MptConfig(d_model=4096, n_heads=32, n_layers=32, vocab_size=50432, tie_word_embeddings=True)


def _redpajama_3b() -> PreTrainedConfig:
    return GPTNeoXConfig(
        hidden_size=2560,
        num_hidden_layers=32,
        num_attention_heads=32,
        intermediate_size=10240,
        vocab_size=50432,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0},
        use_parallel_residual=False,
        tie_word_embeddings=False,
    )


ARCHITECTURES = {"mpt-1b": _mpt_1b, "mpt-7b": _mpt_7b, "redpajama-3b": _redpajama_3b}


def tower_config() -> dict[str, Any]:
    """OpenAI's CLIP ViT-L/14 at 224 pixels, the vision tower of all five."""
    config = CLIPVisionConfig(
        hidden_size=VISION_WIDTH,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=224,
        patch_size=14,
        hidden_act="quick_gelu",
    )
    return config.to_dict()


def config_for(name: str) -> FlamingoConfig:
    """The full configuration of a released model, without asking the hub.

    Raises:
        ValueError: lists the known names.
    """
    short = names.released(name)
    if short is None:
        raise ValueError(
            f"{name!r} is no released OpenFlamingo model{names.suggestion(name)}; expected one of "
            f"{', '.join(names.RELEASED)}"
        )
    language, cross_attn_every_n_layers, architecture = names.RELEASED[short]
    return FlamingoConfig(
        vision={**TOWER, "config": tower_config()},
        vision_width=VISION_WIDTH,
        language=language,
        text_config=ARCHITECTURES[architecture](),
        cross_attn_every_n_layers=cross_attn_every_n_layers,
        base_vocab_size=BASE_VOCABULARY,
        added_tokens=ADDED_TOKENS,
        eoc_token_id=BASE_VOCABULARY,
        image_token_id=BASE_VOCABULARY + 1,
        pad_token_id=BASE_VOCABULARY + 2,
    )


def image_processor() -> ImageProcessor:
    """OpenAI CLIP's preprocessing, which all five use."""
    return ImageProcessor.clip(224)
