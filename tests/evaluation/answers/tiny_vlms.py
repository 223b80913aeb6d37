"""Tiny vision-language models of transformers with random weights, and processors that need nothing of the hub."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    Gemma2Config,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

WORDS = (
    "user assistant : . , ? Output Question Short answer a red blue green square circle cat dog yes no what is this "
    "Answer with one of ;"
)
SIDE = 28  # of an image, in pixels


def tokenizer(*special: str, end: str = "</s>") -> PreTrainedTokenizerFast:
    """A token a word, with and without a space before it, and one for each special text. No text is changed."""
    words = [spaced for word in WORDS.split() for spaced in (word, f" {word}")]
    names = dict.fromkeys(["<unk>", "<pad>", end, "\n", " ", *words])
    made = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?\w+| ?[^\w\s]|\s"), "isolated")
    made.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", eos_token=end, pad_token="<pad>")
    fast.add_special_tokens({"additional_special_tokens": [AddedToken(one, special=True) for one in special]})
    return fast


def chat(image: str) -> str:
    """A chat template: `user : <image> text . assistant : text . `; an answer begins with a space, as LLaVA's and
    SmolVLM's do."""
    return (
        "{% for message in messages %}{{ message.role }} :{% if message.content is string %} {{ message.content }}"
        "{% else %}{% for part in message.content %}{% if part.type == 'image' %} " + image + "{% else %}"
        " {{ part.text }}{% endif %}{% endfor %}{% endif %} . {% endfor %}"
        "{% if add_generation_prompt %}assistant :{% endif %}"
    )


CHAT_ML = (  # Qwen's, without a system's turn
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% if message.content is string %}"
    "{{ message.content }}{% else %}{% for part in message.content %}{% if part.type == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def language(config: Callable[..., Any], words: PreTrainedTokenizerFast, **options: Any) -> Any:
    """The configuration of a language model of two layers, whose weights are large enough that answers differ."""
    return config(**{
        "vocab_size": len(words), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024, "initializer_range": 0.3,
        "pad_token_id": words.pad_token_id, "eos_token_id": words.eos_token_id, "bos_token_id": None, **options,
    })  # fmt: skip


def save(model: Any, processor: Any, folder: Path) -> Path:
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _llava(folder: Path, text: Any, words: PreTrainedTokenizerFast) -> Path:
    vision = CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
                              image_size=SIDE, patch_size=14)  # fmt: skip
    torch.manual_seed(0)
    config = LlavaConfig(vision_config=vision, text_config=text, image_seq_length=4,
                         image_token_index=words.convert_tokens_to_ids("<image>"))  # fmt: skip
    side = {"height": SIDE, "width": SIDE}
    processor = LlavaProcessor(
        CLIPImageProcessor(size=side, crop_size=side), words, patch_size=14, image_token="<image>",
        vision_feature_select_strategy="default", num_additional_image_tokens=1, chat_template=chat("<image>"),
    )  # fmt: skip
    return save(LlavaForConditionalGeneration(config), processor, folder)


def llava(folder: Path) -> Path:
    words = tokenizer("<image>")
    return _llava(folder, language(LlamaConfig, words), words)


def sliding(folder: Path) -> Path:
    """LLaVA over a language model in which a token sees the last 24, in every other layer."""
    words = tokenizer("<image>")
    text = language(Gemma2Config, words, head_dim=8, sliding_window=24, query_pre_attn_scalar=8)
    return _llava(folder, text, words)


def qwen(folder: Path) -> Path:
    """Qwen2.5-VL: positions in three directions, and as many tokens as an image is large."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor
    from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    special = ("<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    words = tokenizer(*special, end="<|im_end|>")
    ids = {f"{name}_token_id": words.convert_tokens_to_ids(token) for name, token in (
        ("image", "<|image_pad|>"), ("video", "<|video_pad|>"), ("vision_start", "<|vision_start|>"),
        ("vision_end", "<|vision_end|>"),
    )}  # fmt: skip
    text = language(Qwen2_5_VLTextConfig, words, rope_parameters={
        "rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0,
    })  # fmt: skip
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "patch_size": 14,
              "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": 32, "window_size": 56,
              "fullatt_block_indexes": [1], "in_channels": 3}  # fmt: skip
    torch.manual_seed(0)
    config = Qwen2_5_VLConfig(text_config=text.to_dict(), vision_config=vision, **ids)
    size = {"shortest_edge": 28 * 28, "longest_edge": 84 * 84}
    processor = Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(size=size, patch_size=14, merge_size=2), words,
        Qwen2VLVideoProcessor(size=size, patch_size=14, merge_size=2),
        chat_template=CHAT_ML,
    )  # fmt: skip
    model = Qwen2_5_VLForConditionalGeneration(config)
    # `transformers serve` leaves special tokens in Qwen's answers; a trained model writes none but its end.
    model.generation_config.suppress_tokens = [one for one in words.all_special_ids if one != words.eos_token_id]
    return save(model, processor, folder)


def idefics3(folder: Path) -> Path:
    """Idefics3, as SmolVLM: an image is cut into tiles, each with tokens around it."""
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration, Idefics3ImageProcessor, Idefics3Processor

    tiles = [f"<row_{i}_col_{j}>" for i in (1, 2) for j in (1, 2)]
    words = tokenizer("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", *tiles)
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
              "image_size": SIDE, "patch_size": 7}  # fmt: skip
    torch.manual_seed(0)
    config = Idefics3Config(
        text_config=language(LlamaConfig, words).to_dict(), vision_config=vision, scale_factor=2,
        image_token_id=words.convert_tokens_to_ids("<image>"), pad_token_id=words.pad_token_id,
    )  # fmt: skip
    images = Idefics3ImageProcessor(size={"longest_edge": 2 * SIDE}, max_image_size={"longest_edge": SIDE})
    processor = Idefics3Processor(images, words, image_seq_len=4, chat_template=chat("<image>"))
    return save(Idefics3ForConditionalGeneration(config), processor, folder)


def hybrid(folder: Path) -> Path:
    """LFM2-VL: convolutions with a state, and attention in every other layer."""
    import transformers

    words = tokenizer("<image>", "<|image_start|>", "<|image_end|>", "<|img_thumbnail|>")
    text = language(
        transformers.Lfm2Config, words, layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False,
    )  # fmt: skip
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
              "patch_size": 14, "num_patches": 16}  # fmt: skip
    torch.manual_seed(0)
    config = transformers.Lfm2VlConfig(
        text_config=text.to_dict(), vision_config=vision, image_token_id=words.convert_tokens_to_ids("<image>"),
        projector_hidden_size=32, downsample_factor=2,
    )  # fmt: skip
    images = transformers.Lfm2VlImageProcessor(
        downsample_factor=2, do_image_splitting=False, min_image_tokens=1, max_image_tokens=4, max_num_patches=16,
        encoder_patch_size=14, tile_size=28,
    )  # fmt: skip
    processor = transformers.Lfm2VlProcessor(images, words, chat_template=chat("<image>"))
    return save(transformers.Lfm2VlForConditionalGeneration(config), processor, folder)


KINDS: dict[str, Callable[[Path], Path]] = {
    "llava": llava, "qwen2.5-vl": qwen, "idefics3": idefics3, "sliding window": sliding,
    "hybrid": hybrid,
}  # fmt: skip
