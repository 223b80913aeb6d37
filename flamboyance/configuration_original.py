"""The original Flamingo's sizes (Alayrac et al. 2022, arXiv 2204.14198): values of a FlamingoConfig, by name.

Sources are table 1 (parameters, spacing of the blocks), the appendix's table of hyper-parameters (layers, widths,
heads, activations), section 3.1.1 (64 latents, time embeddings), and appendix B.1.3 (8 frames in training).
docs/flamingo.md compares the parameters with the paper's and lists what differs.
"""

from typing import Any, NamedTuple

from transformers import ArceeConfig, PreTrainedConfig

TOWER = "timm/dm_nfnet_f6"  # NFNet-F6 (Brock et al. 2021) with the published implementation's padding and activations
IMAGE_SIDE = 320  # pixels; contrastive pretraining was at 288
FRAMES = 8  # of a video in training
RESAMPLER = {
    "depth": 6,
    "heads": 16,
    "dim_head": 128,
    "latents": 64,
    "ff_mult": 4,
    "max_frames": FRAMES,
    "width": 1536,
    "activation": "squared_relu",
    "norm_keys_values": True,
}
"""The resampler of all three sizes."""
DIM_HEAD = 128  # of cross-attention and language model
VOCABULARY = 32_000  # of Chinchilla's SentencePiece tokenizer
POSITIONS = 2048


class Size(NamedTuple):
    """A language model of Chinchilla's family, and the spacing of the blocks before its layers."""

    layers: int
    width: int
    every: int


SIZES = {"flamingo-3b": Size(24, 2048, 1), "flamingo-9b": Size(40, 4096, 4), "flamingo-80b": Size(80, 8192, 7)}


def cross_attention(width: int) -> dict[str, Any]:
    """The sizes of the gated blocks, whose heads grow with the language model: 16, 32 and 64 heads of 128.

    Args:
        width: the language model's.
    """
    heads = max(1, width // DIM_HEAD)
    return {
        "heads": heads,
        "dim_head": min(DIM_HEAD, width),
        "ff_mult": 4,
        "activation": "squared_relu",
        "norm_keys_values": True,
        "only_attend_immediate_media": True,  # section 3.1.3
    }


def layers_with_blocks(layers: int, every: int) -> list[int]:
    """The layers that a block precedes: the very first one, and every n-th from there (table 1, section 3.1.2)."""
    return list(range(0, layers, every))


def chinchilla(size: Size, vocabulary: int = VOCABULARY) -> PreTrainedConfig:
    """A language model of Chinchilla's shape in the nearest architecture that transformers has, Arcee's.

    As in Chinchilla (Hoffmann et al. 2022, section 4.1; Rae et al. 2021, section 3.1): RMSNorm before attention and
    feed-forward, as many heads for keys as for queries, two matrices of a GELU feed-forward of width 4 D, no biases
    in the products, input and output tables tied. Positions are rotary, where Chinchilla's are relative (Dai et al.
    2019), which takes one more matrix of D x D in each layer.
    """
    heads = size.width // DIM_HEAD
    return ArceeConfig(
        vocab_size=vocabulary,
        hidden_size=size.width,
        intermediate_size=4 * size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=DIM_HEAD,
        hidden_act="gelu",
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )


def values(name: str) -> dict[str, Any]:
    """The values of the FlamingoConfig of this name: one of SIZES."""
    size = SIZES[name]
    # ImageNet's mean and deviation, as timm's weights of this tower expect; the paper states none.
    pixels = {"image_size": IMAGE_SIDE, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "resize": "exact"}
    return {
        "model_type": "flamingo",
        "vision": {"library": "timm", "name": TOWER, "pretrained": None, "config": pixels},
        "vision_width": 3072,
        "text_config": chinchilla(size).to_dict(),
        "cross_attention_layers": layers_with_blocks(size.layers, size.every),
        "resampler": dict(RESAMPLER),
        "cross_attention": cross_attention(size.width),
        "base_vocab_size": VOCABULARY,
        "eoc_token_id": VOCABULARY,
        "image_token_id": VOCABULARY + 1,
        "pad_token_id": VOCABULARY + 2,
    }
