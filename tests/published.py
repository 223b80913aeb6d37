"""What the published OpenFlamingo example downloads, tiny and random."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import CLIPVisionConfig, CLIPVisionModel, GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

TEXT = ["An image of two cats.", "An image of a bathroom sink.", "An image of", "A man is riding a horse."] * 20


def save_backbones(folder: Path) -> dict[str, str]:
    """Writes a tower, a language model and its tokenizer; returns their paths."""
    torch.manual_seed(0)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>"]
    tokenizer.train_from_iterator(TEXT, trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", bos_token="<|endoftext|>")
    fast.save_pretrained(folder / "tokenizer")
    tower = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=224,
        patch_size=56,
        hidden_act="quick_gelu",
    )
    CLIPVisionModel(tower).save_pretrained(folder / "vision")
    language = GPTNeoXConfig(
        vocab_size=len(fast) + 59,  # rows to spare, as RedPajama and MPT have
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        tie_word_embeddings=False,
    )
    GPTNeoXForCausalLM(language).save_pretrained(folder / "language")
    return {part: str(folder / part) for part in ("vision", "language", "tokenizer")}
