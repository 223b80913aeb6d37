"""Demonstrations that all queries share, beside Transformers' plain `generate`, for a vision-language model.

    python -m benchmarks.vlm_prefix [--queries N] [--shots N] [--batch-size N] [--turns N]

A LLaVA with random weights (tower: 4 layers of 128; language model: 6 layers of 256; 64 tokens an image of 112 pixels)
writes 5 tokens for each query, behind 8 demonstrations with their images. Three ways, in turns in one process:

    generate        `model.generate` for each query by itself, on inputs of the model's own processor
    generate (8)    the same, 8 queries at a time
    flamboyance     `TransformersAnswers`: demonstrations computed once, 8 queries at a time

The answers of all three must be equal. The processor's time, which is part of every way, counts.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from flamboyance import templates
from flamboyance.evaluation import metrics
from flamboyance.evaluation.answers.transformers_vlm import TransformersAnswers
from flamboyance.evaluation.prompts import Prompt
from flamboyance.evaluation.task import Example, Task
from flamboyance.images import load_image

SIDE, PATCH, NEW_TOKENS = 112, 14, 5
WORDS = "user assistant : . , ? Question Short answer what color is the shape a red blue green square circle".split()
CHAT = (
    "{% for message in messages %}{{ message.role }} : {% for part in message.content %}"
    "{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %} {% endfor %}. {% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)


def opened() -> TransformersAnswers:
    """A LLaVA with random weights, and a tokenizer of words."""
    vocabulary = {word: i for i, word in enumerate(["<unk>", "<pad>", "</s>", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token="<unk>",
        pad_token="<pad>",
        eos_token="</s>",
        additional_special_tokens=["<image>"],
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(
                hidden_size=128, intermediate_size=512, num_hidden_layers=4, num_attention_heads=2, image_size=SIDE,
                patch_size=PATCH,
            ),
            text_config=LlamaConfig(
                vocab_size=len(tokenizer), hidden_size=256, intermediate_size=704, num_hidden_layers=6,
                num_attention_heads=4, num_key_value_heads=4, initializer_range=0.1, max_position_embeddings=2048,
            ),
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"), image_seq_length=(SIDE // PATCH) ** 2,
        )
    )  # fmt: skip
    model.generation_config.eos_token_id = None  # every answer has as many tokens
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    side = {"height": SIDE, "width": SIDE}
    processor = LlavaProcessor(
        CLIPImageProcessor(size=side, crop_size=side), tokenizer, patch_size=PATCH, image_token="<image>",
        vision_feature_select_strategy="default", num_additional_image_tokens=1, chat_template=CHAT,
    )  # fmt: skip
    return TransformersAnswers(model, processor, beams=1)


def drawn(folder: Path, shots: int, queries: int) -> list[Prompt]:
    """Queries behind the same demonstrations, with pictures of noise."""
    random = np.random.default_rng(0)
    paths = [folder / f"{i}.png" for i in range(shots + queries)]
    for path in paths:
        Image.fromarray(random.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(path)
    question = "what color is the shape ?"
    examples = [Example(str(i), path, ("red", "blue", "green")[i % 3], (question,)) for i, path in enumerate(paths)]
    task = Task(
        "noise", "Noise", templates.vqa, examples[:shots], examples[shots:], metrics.EXACT_MATCH,
        max_new_tokens=NEW_TOKENS,
    )  # fmt: skip
    return [Prompt.of(task, i, range(shots), shots) for i in range(queries)]


def plain(answers: TransformersAnswers, prompts: Sequence[Prompt], size: int) -> list[str]:
    """Transformers alone, so many queries at a time."""
    found = []
    for start in range(0, len(prompts), size):
        some = prompts[start : start + size]
        inputs = answers.processor(
            text=[answers._text(prompt) for prompt in some],
            images=[[load_image(image) for image in prompt.images] for prompt in some],
            padding=True, return_tensors="pt", add_special_tokens=False,
        )  # fmt: skip
        out = answers.model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
        found += answers.tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return found


def shared(answers: TransformersAnswers, prompts: Sequence[Prompt], size: int) -> list[str]:
    """A new evaluation: nothing is known of the model or the demonstrations."""
    new = TransformersAnswers(answers.model, answers.processor, beams=1)
    return [one for i in range(0, len(prompts), size) for one in new.generate(prompts[i : i + size])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--queries", type=int, default=64)
    parser.add_argument("--shots", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--turns", type=int, default=3)
    given = parser.parse_args()
    answers = opened()
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        prompts = drawn(Path(folder), given.shots, given.queries)
        tokens = answers.lengths(prompts[:1])[0]
        print(f"{given.queries} queries, {given.shots} demonstrations, {tokens} tokens a prompt", flush=True)
        ways: dict[str, Callable[[], list[str]]] = {
            "flamboyance": lambda: shared(answers, prompts, given.batch_size),
            f"generate ({given.batch_size})": lambda: plain(answers, prompts, given.batch_size),
            "generate": lambda: plain(answers, prompts, 1),
        }
        clock: dict[str, list[float]] = {name: [] for name in ways}
        processor: dict[str, list[float]] = {name: [] for name in ways}
        said: dict[str, list[str]] = {}
        for turn in range(given.turns):
            for name, way in ways.items():
                began, used = time.perf_counter(), time.process_time()
                said[name] = way()
                clock[name].append(time.perf_counter() - began)
                processor[name].append(time.process_time() - used)
                print(f"turn {turn + 1}, {name}: processor {processor[name][-1]:.1f} s", flush=True)
    first, *others = said.values()
    equal = all(one == first for one in others)
    print(f"answers are {'equal' if equal else 'DIFFERENT'}, {len(set(first))} kinds of them")
    for name in ways:
        by_clock, by_processor = statistics.median(clock[name]), statistics.median(processor[name])
        times = by_clock / statistics.median(clock["flamboyance"])
        ratio = by_processor / statistics.median(processor["flamboyance"])
        print(f"{name:14} {by_clock:7.1f} s ({times:.1f} times), processor {by_processor:7.1f} s ({ratio:.1f} times)")


if __name__ == "__main__":
    main()
