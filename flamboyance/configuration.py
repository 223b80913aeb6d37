"""What a Flamingo is made of: the frozen backbones by name and architecture, and the sizes of what trains."""

import copy
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

RESAMPLER = {"depth": 6, "heads": 8, "dim_head": 64, "latents": 64, "ff_mult": 4, "max_frames": None}
CROSS_ATTENTION = {"heads": 8, "dim_head": 64, "ff_mult": 4}
ADDED_TOKENS = ["<|endofchunk|>", "<image>", "<PAD>"]


class FlamingoConfig(PreTrainedConfig):
    """Configuration of a Flamingo; every size defaults to OpenFlamingo's.

    Args:
        vision: the tower: `{"library": "transformers" | "openclip" | "timm", "name": …, "pretrained": …,
            "config": …}`, as `VisionTower.spec` gives it.
        vision_width: width of the tower's patches.
        language: hub id or directory of the language model; relative paths start at the checkpoint's directory.
        text_config: the language model's own configuration.
        interval: a gated cross-attention block stands before every `interval`-th layer of the language model
            (`cross_attn_every_n_layers`): before layer i if (i + 1) % interval == 0.
        decoder_layers: dotted name of the language model's list of layers; None: found by its length.
        resampler: depth, heads, dim_head, latents, ff_mult, max_frames (None: no time embeddings).
        cross_attention: heads, dim_head, ff_mult.
        base_vocab_size: tokens of the language model's own tokenizer; added tokens have the ids that follow.
        added_tokens: the tokens with trained rows of their own, in the order of their ids.
        image_token_id, eoc_token_id, pad_token_id: ids of `<image>`, `<|endofchunk|>` and the padding token.
    """

    model_type = "flamingo"
    keys_to_ignore_at_inference = ["past_key_values", "cache"]  # noqa: RUF012  as transformers declares it

    def __init__(
        self,
        vision: dict[str, Any] | None = None,
        vision_width: int = 1024,
        language: str | None = None,
        text_config: PreTrainedConfig | dict[str, Any] | None = None,
        interval: int = 1,
        decoder_layers: str | None = None,
        resampler: dict[str, Any] | None = None,
        cross_attention: dict[str, Any] | None = None,
        base_vocab_size: int = 50277,
        added_tokens: list[str] | None = None,
        image_token_id: int = 50278,
        eoc_token_id: int = 50277,
        pad_token_id: int = 50279,
        **kwargs: Any,
    ):
        if not isinstance(interval, int) or interval < 1:
            raise ValueError(f"interval={interval!r}; expected a whole number of layers, 1 or more.")
        if isinstance(text_config, dict):
            text_config = _config_of(text_config)
        self.text_config: Any = text_config
        self.vision = vision or {"library": "transformers", "name": None, "pretrained": None, "config": None}
        self.vision_width = vision_width
        self.language = language
        self.interval = interval
        self.decoder_layers = decoder_layers
        self.resampler = _sizes("resampler", RESAMPLER, resampler)
        self.cross_attention = _sizes("cross_attention", CROSS_ATTENTION, cross_attention)
        self.base_vocab_size = base_vocab_size
        self.added_tokens = list(ADDED_TOKENS if added_tokens is None else added_tokens)
        self.image_token_id = image_token_id
        self.eoc_token_id = eoc_token_id
        # Whether heads are tied is the language model's affair; this class ties nothing itself.
        kwargs.update(tie_word_embeddings=False, pad_token_id=pad_token_id, eos_token_id=eoc_token_id)
        super().__init__(**kwargs)

    def __repr__(self) -> str:
        """In a line; `to_json_string()` gives all of it."""
        text, vision = self.text_config, self.vision
        parts = [f"vision={vision['name'] or vision['library']!r} (width {self.vision_width})"]
        if text is not None:
            sizes = f"{text.model_type}, width {text.hidden_size}, {text.num_hidden_layers} layers"
            parts.append(f"language={self.language!r} ({sizes})")
        parts += [f"interval={self.interval}", f"{self.resampler['latents']} latents per image"]
        return f"{type(self).__name__}({', '.join([*parts, f'{self.vocab_size} tokens'])})"

    def get_text_config(self, *args: Any, **kwargs: Any) -> PreTrainedConfig:
        """The language model's configuration as generation needs it: it lays out the cache by it and, in older
        transformers, reads the width of the logits from it, which added tokens have changed."""
        if self.text_config is None:
            return self
        text = copy.copy(self.text_config)
        text.vocab_size = self.vocab_size
        return text

    @property
    def vocab_size(self) -> int:
        """Width of the logits: the tokenizer's tokens and the added ones."""
        return self.base_vocab_size + len(self.added_tokens)


AutoConfig.register(FlamingoConfig.model_type, FlamingoConfig, exist_ok=True)


def _config_of(values: dict[str, Any]) -> PreTrainedConfig:
    values = dict(values)
    model_type = values.pop("model_type", None)
    if model_type is None:
        raise ValueError("text_config has no model_type, which says the language model's family, e.g. 'opt' or 'mpt'.")
    if model_type == "mosaic_gpt":
        import flamboyance.model.mosaic_gpt  # noqa: F401  registers the family
    return AutoConfig.for_model(model_type, **values)


def _sizes(name: str, defaults: dict[str, Any], given: dict[str, Any] | None) -> dict[str, Any]:
    unknown = sorted(set(given or {}) - set(defaults))
    if unknown:
        raise ValueError(f"{name} has no size called {unknown[0]!r}; it has {', '.join(defaults)}.")
    sizes = {**defaults, **(given or {})}
    for size, value in sizes.items():
        if value is None and defaults[size] is None:
            continue
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}: {size}={value!r}; expected a whole number, 1 or more.")
    return sizes
