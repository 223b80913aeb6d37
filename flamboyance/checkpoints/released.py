"""The five released OpenFlamingo models: what each is made of, by the facts published with them."""

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from transformers import AutoTokenizer, CLIPVisionConfig, GPTNeoXConfig, MptConfig, PreTrainedConfig

from flamboyance import names
from flamboyance.checkpoints import openflamingo
from flamboyance.checkpoints.layout import Layout
from flamboyance.configuration import ADDED_TOKENS, FlamingoConfig
from flamboyance.hub import options as reachable
from flamboyance.images import ImageProcessor
from flamboyance.model.loading import opening
from flamboyance.model.mosaic_gpt import MosaicGPTConfig
from flamboyance.processing import FlamingoProcessor

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


# name: (language model, interval, its architecture)
RELEASED = {
    "OpenFlamingo-3B-vitl-mpt1b": ("anas-awadalla/mpt-1b-redpajama-200b", 1, _mpt_1b),
    "OpenFlamingo-3B-vitl-mpt1b-langinstruct": ("anas-awadalla/mpt-1b-redpajama-200b-dolly", 1, _mpt_1b),
    "OpenFlamingo-4B-vitl-rpj3b": ("togethercomputer/RedPajama-INCITE-Base-3B-v1", 2, _redpajama_3b),
    "OpenFlamingo-4B-vitl-rpj3b-langinstruct": (
        "togethercomputer/RedPajama-INCITE-Instruct-3B-v1",
        2,
        _redpajama_3b,
    ),
    "OpenFlamingo-9B-vitl-mpt7b": ("anas-awadalla/mpt-7b", 4, _mpt_7b),
}


def short_name(name: str) -> str:
    return name.removeprefix(names.ORGANISATION)


def is_released(name: str) -> bool:
    """Whether this names one of the five, with or without its organisation."""
    return short_name(name) in RELEASED


def tower_config() -> dict[str, Any]:
    """OpenAI's CLIP ViT-L/14 at 224 pixels, which all five look through."""
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
    if not is_released(name):
        raise ValueError(
            f"{name!r} is no released OpenFlamingo model. There are: {', '.join(RELEASED)}.{names.suggestion(name)}"
        )
    language, interval, architecture = RELEASED[short_name(name)]
    return FlamingoConfig(
        vision={**TOWER, "config": tower_config()},
        vision_width=VISION_WIDTH,
        language=language,
        text_config=architecture(),
        interval=interval,
        base_vocab_size=BASE_VOCABULARY,
        added_tokens=ADDED_TOKENS,
        eoc_token_id=BASE_VOCABULARY,
        image_token_id=BASE_VOCABULARY + 1,
        pad_token_id=BASE_VOCABULARY + 2,
    )


def fitting(layout: Layout) -> list[str]:
    """The released models that a checkpoint of this layout can belong to."""
    found = []
    for name, (_, interval, architecture) in RELEASED.items():
        text = architecture()
        indices = tuple(range(interval - 1, text.num_hidden_layers, interval))
        same = (indices, text.hidden_size, VISION_WIDTH) == (layout.indices, layout.width, layout.vision_width)
        if same and layout.layers in ("?", LAYERS.get(text.model_type)):
            found.append(name)
    return found


def load(
    model_class: Any,
    name: str,
    *,
    checkpoint: str | Path | None = None,
    language: str | None = None,
    vision: str | None = None,
    tokenizer: str | None = None,
    dtype: Any = "auto",
    trained_dtype: torch.dtype | None = None,
    cache_dir: str | None = None,
    local_files_only: bool = False,
    revision: str | None = None,
    token: str | None = None,
    **language_options: Any,
) -> Any:
    """Opens a released model; every part comes from the hub, or from the local path given for it.

    Args:
        checkpoint: a local `checkpoint.pt`.
        language, vision, tokenizer: local directories (or other hub ids) of the frozen backbones.
    """
    config = config_for(name)
    hub: dict[str, Any] = {"cache_dir": cache_dir, "local_files_only": local_files_only}
    if checkpoint is None:
        repository = f"openflamingo/{short_name(name)}"
        options = reachable(repository, hub)
        checkpoint = hf_hub_download(repository, "checkpoint.pt", revision=revision, token=token, **options)
    processor = processor_for(name, tokenizer=tokenizer or language, **hub)
    if vision:
        processor.image_processor = None  # from_backbones gives it the tower's own
    model = model_class.from_backbones(
        vision or TOWER["name"],
        language or config.language,
        processor,
        interval=config.interval,
        dtype=dtype,
        trained_dtype=trained_dtype,
        **hub,
        **language_options,
    )
    openflamingo.load(model, openflamingo.read(checkpoint))
    return model


def image_processor() -> ImageProcessor:
    """OpenAI CLIP's preprocessing, which all five use."""
    return ImageProcessor.clip(224)


def processor_for(name: str, *, tokenizer: str | None = None, **hub: Any) -> Any:
    """The processor of a released model: OpenAI's preprocessing at 224 pixels, GPT-NeoX's tokenizer."""
    source = str(tokenizer or config_for(name).language)
    with opening("tokenizer", source):
        reader: Any = AutoTokenizer.from_pretrained(source, **reachable(source, hub))
    return FlamingoProcessor(image_processor(), reader)


def build_on_meta(name: str, model_class: Any) -> Any:
    """The full-size architecture without weights or memory: to look at, and to check a checkpoint against."""
    with torch.device("meta"):
        return model_class(config_for(name))
