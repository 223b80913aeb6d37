"""What a training step around a frozen language model of SmolLM2-135M's shape takes on a CPU.

    python -m benchmarks.small_step [--layers 30] [--documents 24] [--threads 2] [--turns 2] [--precision bf16]
        [--profile]

Documents have 3 to 10 images, each with 5 to 9 tokens, and the tower's features are given (`cache_features=true`). In
turns in one run: the step on the whole batch, the step as the loop takes it (rows in parts of similar lengths), and a
plain matrix product with as many operations. In bf16 also the step with PyTorch's fused attention throughout: scores
of short texts that are written out are faster there (`attention.is_slow`). Times are of the processor, not of the
clock, so that they can be compared on a machine that does other work. Weights are random.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPVisionConfig, LlamaConfig

from flamboyance import FlamingoConfig, FlamingoForConditionalGeneration
from flamboyance.data.batch import Batch, TrainingExample, collate
from flamboyance.model import attention
from flamboyance.model.vision import VisionTower, tower_spec
from flamboyance.training.parallel import set_precision
from flamboyance.training.step import by_length, summed_loss

WORDS, END, IMAGE = 49152, 49152, 49153
LAYERS = (0, 1, 2, 4, 8, 12, 16, 20)  # that have a block before them
PATCHES, WIDTH = 16, 432  # of the tower's features


def model(layers: int) -> FlamingoForConditionalGeneration:
    text = LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=WORDS,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        pad_token_id=2,
    )
    tower = CLIPVisionConfig(
        hidden_size=WIDTH, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8
    )
    config = FlamingoConfig(
        vision={"library": "transformers", "name": None, "pretrained": None, "config": tower.to_dict()},
        vision_width=WIDTH,
        text_config=text,
        cross_attention_layers=[layer for layer in LAYERS if layer < layers],
        resampler={"depth": 2, "heads": 6, "latents": 16},
        cross_attention={"heads": 8, "dim_head": 48, "ff_mult": 1},
        base_vocab_size=WORDS,
        added_tokens=["<|endofchunk|>", "<image>"],
        image_token_id=IMAGE,
        eoc_token_id=END,
        pad_token_id=2,
    )
    return FlamingoForConditionalGeneration(config).train()


def documents(count: int) -> Batch:
    random = torch.Generator().manual_seed(0)

    def between(least: int, most: int) -> int:
        return int(torch.randint(least, most + 1, (1,), generator=random))

    examples = []
    for _ in range(count):
        ids, labels, seen, images = [], [], [], between(3, 10)
        for image in range(images):
            words = torch.randint(20, 49000, (between(4, 8),), generator=random).tolist()
            ids += [IMAGE, *words, END]
            labels += [-100, *words, END]
            seen += [image + 1] * (len(words) + 2)
        features = torch.randn(images, PATCHES, WIDTH, generator=random).half()
        examples.append(TrainingExample(torch.tensor(ids), torch.tensor(labels), torch.tensor(seen), features))
    return collate(examples, 2)


def step(network: Any, parts: Sequence[Batch], precision: str) -> None:
    for part in parts:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = summed_loss(network, part, None, torch.device("cpu"))
        loss.backward()
    network.zero_grad()


def step_by_fused_attention(network: Any, parts: Sequence[Batch], precision: str) -> None:
    with patch.object(attention, "WRITTEN_OUT", 0):
        step(network, parts, precision)


def tower_of(images: int) -> Callable[[], Any]:
    """What the features of these images take, without decoding: EfficientNet-Lite0's last two grids at 128 pixels."""
    tower = VisionTower.from_config(tower_spec("timm/tf_efficientnet_lite0", image_size=128, feature_levels=[3, 4]))
    pixels = torch.randn(images, 3, 128, 128)
    return lambda: tower(pixels)


def product(operations: float, precision: str) -> None:
    """As many operations, as products of 1,400 tokens with one of the language model's matrices."""
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    x, weight = torch.randn(1400, 576, dtype=kind), torch.randn(1536, 576, dtype=kind)
    for _ in range(round(operations / (2 * x.numel() * len(weight)))):
        F.linear(x, weight)


def seconds(work: Callable[[], Any]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--documents", type=int, default=24)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="(%(default)s)")
    parser.add_argument("--profile", action="store_true", help="also where the time of a step goes")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    network, batch, precision = model(given.layers), documents(given.documents), given.precision
    set_precision(network, precision)
    parts = by_length(batch)
    operations = {}
    for name, batches in (("whole", [batch]), ("parts", parts)):
        with FlopCounterMode(display=False) as counter:
            step(network, batches, precision)
        operations[name] = counter.get_total_flops()
        tokens = sum(one.input_ids.numel() for one in batches)
        print(f"{name}: {tokens} tokens with padding, {operations[name] / 1e9:.0f} billion operations", flush=True)
    real, images = int(batch.attention_mask.sum()), len(batch.images)
    print(f"{real} tokens without padding, {batch.targets} of them predicted, {images} images")
    works: dict[str, Callable[[], Any]] = {
        "whole": lambda: step(network, [batch], precision),
        "parts": lambda: step(network, parts, precision),
        "fused": lambda: step_by_fused_attention(network, parts, precision),
        "product": lambda: product(operations["parts"], precision),
        "tower": tower_of(images),
    }
    if precision != "bf16":
        del works["fused"]
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(given.turns):
        for name, work in works.items():
            times[name].append(seconds(work))
        print({name: round(values[-1], 2) for name, values in times.items()}, flush=True)
    found = {name: median(values) for name, values in times.items()}
    whole, divided, bare, features = (found[name] for name in ("whole", "parts", "product", "tower"))
    print(f"in parts {divided / whole:.2f} of the time of the whole; {divided / bare:.2f} of that of the product")
    if "fused" in found:
        print(f"{divided / found['fused']:.2f} of the time by fused attention")
    print(f"features that were computed before save {features / (features + divided):.0%} of the time, and decoding")
    if given.profile:
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            step(network, parts, precision)
        print(profiled.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=45))


if __name__ == "__main__":
    main()
