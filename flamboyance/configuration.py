"""Configuration of a Flamingo: the frozen backbones, by name and architecture, and the sizes of its trained parts."""

import copy
import os
from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig

import flamboyance.configuration_mosaic_gpt  # noqa: F401  registers the family of MPT-1B
from flamboyance import checks, configuration_original, names

RESAMPLER: dict[str, Any] = {"depth": 6, "heads": 8, "dim_head": 64, "latents": 64, "ff_mult": 4}
RESAMPLER |= {"max_frames": None, "width": None, "activation": "gelu", "norm_keys_values": False}
CROSS_ATTENTION: dict[str, Any] = {"heads": 8, "dim_head": 64, "ff_mult": 4}
CROSS_ATTENTION |= {"activation": "gelu", "norm_keys_values": False, "only_attend_immediate_media": True}
ACTIVATIONS = ("gelu", "squared_relu")
LIBRARIES = ("transformers", "openclip", "timm")
_HEADS = ("num_attention_heads", "head_dim")

# Far above the sizes of any model: a larger value is a mistake, and would exhaust the memory before it is noticed.
MOST_LAYERS, MOST_WIDTH, MOST_TOKENS = 10_000, 1_000_000, 100_000_000
MOST_SIDE = 10_000  # pixels, of a tower whose positions are interpolated
MOST = {
    "depth": 1000,
    "heads": 10_000,
    "dim_head": 100_000,
    "latents": 100_000,
    "ff_mult": 1000,
    "max_frames": 1_000_000,
    "width": MOST_WIDTH,
}

ADDED_TOKENS = ["<|endofchunk|>", "<image>", "<PAD>"]


class FlamingoConfig(PreTrainedConfig):
    """Configuration of a Flamingo; sizes default to OpenFlamingo's.

    Args:
        vision: the tower: `{"library": "transformers" | "openclip" | "timm", "name": …, "pretrained": …,
            "config": …}`, as `VisionTower.spec` gives it.
        vision_width: width of the tower's patches.
        language: hub id or directory of the language model; relative paths are relative to the checkpoint's directory.
        text_config: the language model's own configuration.
        cross_attn_every_n_layers: a gated cross-attention block precedes layer i of the language model if (i + 1) is a
            multiple of this. Default: 1; None where `cross_attention_layers` are given. Older files, and older callers,
            name it `interval`.
        cross_attention_layers: instead of that spacing, the layers that a block precedes, counted from 0.
        decoder_layers: dotted name of the language model's list of layers; None: found by its length.
        resampler: depth, heads, dim_head, latents, ff_mult, max_frames (None: no time embeddings), width (of the
            latents; None: the tower's), activation, norm_keys_values.
        cross_attention: heads, dim_head, ff_mult, activation, norm_keys_values. In both, activation is that of the
            feed-forwards, "gelu" or "squared_relu", and norm_keys_values whether one LayerNorm, apart from that of the
            queries, precedes the projection to keys and values, as in the original Flamingo. The cross-attention has
            only_attend_immediate_media too: a token attends to the last image at or before it; False: to all of them.
        base_vocab_size: number of tokens of the language model's tokenizer; added tokens have the next ids.
        added_tokens: the tokens with their own trained rows, in the order of their ids.
        image_token_id, eoc_token_id, pad_token_id: ids of `<image>`, `<|endofchunk|>` and the padding token.
        quantize: "int8" or "int4": the precision of the backbones' linear layers; None: that of the model.
    """

    model_type = "flamingo"
    keys_to_ignore_at_inference = ["past_key_values", "cache"]  # noqa: RUF012  as transformers declares it
    attribute_map: ClassVar[dict[str, str]] = {"interval": "cross_attn_every_n_layers"}  # the name in older files

    def __init__(
        self,
        vision: dict[str, Any] | None = None,
        vision_width: int = 1024,
        language: str | None = None,
        text_config: PreTrainedConfig | dict[str, Any] | None = None,
        cross_attn_every_n_layers: int | None = None,
        decoder_layers: str | None = None,
        resampler: dict[str, Any] | None = None,
        cross_attention: dict[str, Any] | None = None,
        base_vocab_size: int = 50277,
        added_tokens: list[str] | None = None,
        image_token_id: int = 50278,
        eoc_token_id: int = 50277,
        pad_token_id: int = 50279,
        cross_attention_layers: list[int] | None = None,
        quantize: str | None = None,
        **kwargs: Any,
    ):
        every = kwargs.pop("interval", cross_attn_every_n_layers)
        if isinstance(text_config, dict):
            text_config = _config_of(text_config)
        check_text_config(text_config)
        check_vision(vision)
        added = list(ADDED_TOKENS if added_tokens is None else added_tokens)
        _bounded("vision_width", vision_width, MOST_WIDTH)
        _check_tokens(base_vocab_size, added, image_token_id, eoc_token_id, pad_token_id)
        self.text_config: Any = text_config
        self.vision = vision or {"library": "transformers", "name": None, "pretrained": None, "config": None}
        self.vision_width = vision_width
        self.language = language
        self.cross_attn_every_n_layers, self.cross_attention_layers = _placement(
            every, cross_attention_layers, text_config
        )
        self.decoder_layers = decoder_layers
        self.resampler = _sizes("resampler", RESAMPLER, resampler)
        self.cross_attention = _sizes("cross_attention", CROSS_ATTENTION, cross_attention)
        self.base_vocab_size = base_vocab_size
        self.added_tokens = added
        self.image_token_id = image_token_id
        self.eoc_token_id = eoc_token_id
        self.quantize = checks.scheme(quantize)
        # The language model may tie its head to its table; this class ties nothing.
        kwargs.update(tie_word_embeddings=False, pad_token_id=pad_token_id, eos_token_id=eoc_token_id)
        super().__init__(**kwargs)

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """As transformers', for `from_pretrained`; also for the sizes of the original Flamingo, by name."""
        name = os.fspath(pretrained_model_name_or_path)
        if names.is_original(name):
            return configuration_original.values(name), kwargs
        return super().get_config_dict(pretrained_model_name_or_path, **kwargs)

    def __repr__(self) -> str:
        """One line; `to_json_string()` has everything."""
        text, vision = self.text_config, self.vision
        parts = [f"vision={vision['name'] or vision['library']!r} (width {self.vision_width})"]
        if text is not None:
            sizes = f"{text.model_type}, width {text.hidden_size}, {text.num_hidden_layers} layers"
            parts.append(f"language={self.language!r} ({sizes})")
        parts += [self.placement, f"{self.resampler['latents']} latents per image"]
        return f"{type(self).__name__}({', '.join([*parts, f'{self.vocab_size} tokens'])})"

    def choose_scheme(self, quantize: str | None, name: Any) -> None:
        """Sets `quantize`, if one is given, of a model that is named in errors.

        Raises:
            ValueError: an unknown scheme, or the model is quantized otherwise.
        """
        if self.quantize and checks.scheme(quantize) not in (None, self.quantize):
            raise ValueError(
                f"quantize={quantize!r}: {name} is quantized to {self.quantize} already; leave quantize out, or open "
                "the original model"
            )
        self.quantize = checks.scheme(quantize) or self.quantize

    def get_text_config(self, *args: Any, **kwargs: Any) -> PreTrainedConfig:
        """The language model's configuration with the Flamingo's vocabulary: generation creates the cache from it, and
        older versions of transformers read the width of the logits from it."""
        if self.text_config is None:
            return self
        text = copy.copy(self.text_config)
        text.vocab_size = self.vocab_size
        return text

    @property
    def placement(self) -> str:
        """The setting that says which layers have a block before them, as `name=value`."""
        if self.cross_attention_layers is None:
            return f"cross_attn_every_n_layers={self.cross_attn_every_n_layers}"
        return f"cross_attention_layers={self.cross_attention_layers}"

    def layers_with_blocks(self, depth: int) -> list[int]:
        """The layers, of a language model with `depth` layers, that have a gated cross-attention block before them.

        Raises:
            ValueError: there are none, or one of them does not exist.
        """
        if self.cross_attention_layers is not None:
            if self.cross_attention_layers[-1] >= depth:
                raise ValueError(
                    f"{self.placement}: there is no layer {self.cross_attention_layers[-1]}; expected layers from 0 to "
                    f"{depth - 1}, since the language model has {depth}"
                )
            return list(self.cross_attention_layers)
        layers = _every(self.cross_attn_every_n_layers or 1, depth)
        if not layers:
            raise ValueError(
                f"{self.placement} leaves no layer to put a block before: the language model has {depth} layers"
            )
        return layers

    @property
    def media_width(self) -> int:
        """Width of the latents that an image becomes."""
        return self.resampler["width"] or self.vision_width

    @property
    def vocab_size(self) -> int:
        """Number of logits: the tokenizer's tokens and the added ones."""
        return self.base_vocab_size + len(self.added_tokens)


AutoConfig.register(FlamingoConfig.model_type, FlamingoConfig, exist_ok=True)


def _config_of(values: dict[str, Any]) -> PreTrainedConfig:
    values = dict(values)
    model_type = values.pop("model_type", None)
    if model_type is None:
        raise ValueError("text_config has no model_type; expected the language model's family, e.g. 'opt' or 'mpt'")
    return AutoConfig.for_model(model_type, **values)


def _sizes(name: str, defaults: dict[str, Any], given: dict[str, Any] | None) -> dict[str, Any]:
    unknown = sorted(set(given or {}) - set(defaults))
    if unknown:
        raise ValueError(f"{name} has no size {unknown[0]!r}; expected {', '.join(defaults)}")
    sizes = {**defaults, **(given or {})}
    if sizes["activation"] not in ACTIVATIONS:
        raise ValueError(f"{name}: activation={sizes['activation']!r}; expected one of {', '.join(ACTIVATIONS)}")
    for size, default in defaults.items():
        if isinstance(default, bool) and not isinstance(sizes[size], bool):
            raise ValueError(f"{name}: {size}={sizes[size]!r}; expected true or false")
    for size, value in sizes.items():
        if size in MOST and (value is not None or defaults[size] is not None):
            _bounded(f"{name}: {size}", value, MOST[size])
    if sizes["heads"] * sizes["dim_head"] > MOST_WIDTH:
        raise ValueError(
            f"{name}: {sizes['heads']} heads of dim_head={sizes['dim_head']}; expected a width of at most {MOST_WIDTH}"
        )
    return sizes


def _every(spacing: int, depth: int) -> list[int]:
    """The layers i of `depth` for which (i + 1) is a multiple of the spacing."""
    return list(range(spacing - 1, depth, spacing))


def _placement(spacing: Any, layers: Any, text_config: Any) -> tuple[int | None, list[int] | None]:
    """`cross_attn_every_n_layers` and `cross_attention_layers`, checked; one of them is None, unless they agree."""
    if layers is None:
        spacing = 1 if spacing is None else spacing
    if spacing is not None:
        _bounded("cross_attn_every_n_layers", spacing, MOST_LAYERS, " of layers")
    if layers is None:
        return spacing, None
    whole = isinstance(layers, list | tuple) and all(type(layer) is int for layer in layers)
    if not whole or not layers or len(set(layers)) < len(layers) or not 0 <= min(layers) <= max(layers) < MOST_LAYERS:
        raise ValueError(
            f"cross_attention_layers={layers!r}; expected the numbers of different layers of the language model, "
            "counted from 0, as in [0, 1, 2, 4, 8]"
        )
    layers = sorted(layers)
    depth = max(layers) + 1 if text_config is None else text_config.num_hidden_layers
    if spacing is not None and layers != _every(spacing, depth):
        raise ValueError(
            f"cross_attn_every_n_layers={spacing} and cross_attention_layers={layers} say different things of "
            f"{depth} layers; expected one of them"
        )
    return spacing, layers


def _bounded(name: str, value: Any, most: int, of: str = "", least: int = 1) -> None:
    """Raises ValueError for a size that no model has, before memory is allocated for it."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        small = not isinstance(value, int) or value < least
        limit = f"{least} or more" if small else f"at most {most}"
        raise ValueError(f"{name}={value!r}; expected a whole number{of}, {limit}")


def _check_tokens(base: Any, added: list[Any], image: Any, eoc: Any, pad: Any) -> None:
    _bounded("base_vocab_size", base, MOST_TOKENS, " of tokens")
    odd = [token for token in added if not isinstance(token, str) or not token]
    if odd or len(set(added)) < len(added):
        raise ValueError(f"added_tokens={added!r}; expected different texts, as in {ADDED_TOKENS}")
    for name, value in (("image_token_id", image), ("eoc_token_id", eoc), ("pad_token_id", pad)):
        _bounded(name, value, base + len(added) - 1, f", an id of {base} + {len(added)} tokens", least=0)
    if image in (eoc, pad):
        raise ValueError(
            f"image_token_id={image} is also eoc_token_id={eoc} or pad_token_id={pad}; expected three different ids"
        )


def check_text_config(text: Any) -> None:
    """Checks those sizes of the language model that have the same names in all families."""
    if text is None:
        return
    for name, most in (("num_hidden_layers", MOST_LAYERS), ("hidden_size", MOST_WIDTH), ("vocab_size", MOST_TOKENS)):
        if _size(text, name) is not None:
            _bounded(f"text_config: {name}", _size(text, name), most)
    _check_heads("text_config", *(_size(text, name) for name in ("hidden_size", *_HEADS)))


def _size(text: Any, name: str) -> Any:
    """A size by its common name, or None. (getattr fails in Gemma 4, for sizes in which layers differ.)"""
    return vars(text).get(text.attribute_map.get(name, name))


def check_vision(vision: Any) -> None:
    if vision is None:
        return
    if not isinstance(vision, dict) or vision.get("library") not in LIBRARIES or "name" not in vision:
        raise ValueError(
            f"vision={vision!r:.200}; expected {{'library': {' | '.join(map(repr, LIBRARIES))}, 'name': …, …}}, as "
            "in VisionTower.spec"
        )
    if "image_size" in vision:
        _bounded("vision: image_size", vision["image_size"], MOST_SIDE, " pixels")
    sizes = vision.get("config")
    if vision["library"] != "transformers" or not isinstance(sizes, dict):
        return
    bounds = {"hidden_size": MOST_WIDTH, "intermediate_size": MOST_WIDTH, "num_hidden_layers": MOST_LAYERS}
    bounds |= {"num_attention_heads": MOST["heads"], "image_size": 100_000, "patch_size": 100_000, "num_channels": 1000}
    for name, most in bounds.items():
        if isinstance(sizes.get(name), int | float):  # some families have a pair
            _bounded(f"vision: {name}", sizes[name], most)
    _check_heads("vision", *(sizes.get(name) for name in ("hidden_size", *_HEADS)))


def _check_heads(part: str, width: Any, heads: Any, head: Any) -> None:
    if heads is None or not isinstance(width, int) or not isinstance(heads, int):
        return
    _bounded(f"{part}: num_attention_heads", heads, MOST["heads"])
    if head is None and width % heads:
        raise ValueError(f"{part}: num_attention_heads={heads}; expected a divisor of hidden_size={width}")
