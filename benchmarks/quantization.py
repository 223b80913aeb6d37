"""What quantized weights cost: `python -m benchmarks.quantization quality | speed | memory [--model NAME]`.

quality: the embedded model's accuracy, and how much its logits change.
speed:   a linear layer beside itself in float32, with few rows as in decoding and with many as in reading a prompt; and
         torchao's 8-bit layer, if it is installed.
memory:  a model of the shape of OpenFlamingo-3B with random weights in 4 bits, never made in any other precision: the
         memory of this process beside the one that `flamboyance info` predicts.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.linear import fastest

SCHEMES = (None, "int8", "int4")
LAYERS = ((8192, 2048), (2048, 8192))  # outputs, inputs of MPT-1B's feed-forward
ROWS = (1, 3, 64, 256)
SECONDS = 3.0  # of each product
PROMPTS = 24


@torch.no_grad()
def quality(trials: int = 24) -> None:
    import numpy as np

    from flamboyance.mini import evaluation, load_mini
    from flamboyance.mini.world import caption, picture, scene

    rng, plain = np.random.default_rng(evaluation.SEED + 9), None
    scenes = [[scene(rng, 1) for _ in range(5)] for _ in range(PROMPTS)]
    print("| weights | frozen parts, MB | change of logits | same first choice | accuracy |")
    print("|---|---:|---:|---:|---|")
    for scheme in SCHEMES:
        model, processor = load_mini(quantize=scheme)
        texts = ["<|endofchunk|>".join(f"<image>Output:{caption(one)}" for one in row) for row in scenes]
        inputs = processor(texts, [[picture(one) for one in row] for row in scenes])
        logits = model(**inputs).logits[inputs["attention_mask"].bool()]
        plain = logits if plain is None else plain
        change = float((logits - plain).square().mean().sqrt() / plain.std())
        same = float((logits.argmax(-1) == plain.argmax(-1)).float().mean())
        right = evaluation.evaluate(model, processor, trials)
        parts = (model.language_model, model.vision)
        frozen = sum(t.numel() * t.element_size() for part in parts for t in (*part.parameters(), *part.buffers()))
        print(
            f"| {scheme or 'float32'} | {frozen / 1e6:.2f} | {change:.1%} | {same:.1%} | "
            f"{sum(right.values()) / len(right):.1%} ({', '.join(f'{k} {v:.0%}' for k, v in right.items())}) |",
            flush=True,
        )  # fmt: skip


@torch.no_grad()
def speed() -> None:
    from flamboyance.model.linear import Linear
    from flamboyance.model.quantized_linear import QuantizedLinear

    print("| layer | rows | float32, packed, ms | int8 | int4 | int8 in bfloat16 | int4 in bfloat16 | torchao's int8 |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for outputs, inputs in LAYERS:
        weight = torch.randn(outputs, inputs) / inputs**0.5
        packed = Linear(inputs, outputs, bias=False)
        packed.weight = nn.Parameter(weight.clone(), requires_grad=False)
        packed.pack()
        layers = [QuantizedLinear.of(weight, bits) for bits in (8, 4)]
        theirs = _torchao(weight)
        for rows in ROWS:
            x, low = torch.randn(rows, inputs), torch.randn(rows, inputs, dtype=torch.bfloat16)
            works: list[Callable[[], object]] = [partial(packed, x), *(partial(layer, x) for layer in layers)]
            works += [partial(layer, low) for layer in layers]
            works += [partial(F.linear, x, theirs)] if theirs is not None else []
            first, *others = fastest(works, SECONDS)
            ratios = [f"× {one / first:.2f}" for one in others] + ["–"] * (theirs is None)
            print(f"| {outputs} × {inputs} | {rows} | {first * 1e3:.2f} | {' | '.join(ratios)} |", flush=True)


def _torchao(weight: torch.Tensor) -> torch.Tensor | None:
    """The weight in torchao's 8-bit layout, which it converts to the activations' precision at every product."""
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_
    except ImportError:
        return None
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = nn.Parameter(weight.clone())
    quantize_(layer, Int8WeightOnlyConfig())
    return layer.weight


def resident() -> float:
    """Bytes of this process's own memory."""
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines())
    return float(fields["VmRSS"].split()[0]) * 1024


def random_model(name: str, scheme: str, dtype: torch.dtype) -> Any:
    """A model of the named one's shape with random weights. Each part is made in its own precision, layer by layer."""
    from flamboyance import catalog
    from flamboyance.model.quantized_linear import TENSORS, QuantizedLinear

    model = catalog.resolve(name).outline(quantize=scheme).to(dtype)
    for module in model.modules():
        if isinstance(module, QuantizedLinear):
            made = QuantizedLinear.of(torch.randn(module.out_features, module.in_features) * 0.02, module.bits)
            for tensor in TENSORS:
                setattr(module, tensor, getattr(made, tensor))
        for key, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta:
                places = torch.arange(buffer.numel()).view(buffer.shape)
                values = places if key == "position_ids" else torch.ones(buffer.shape)
                setattr(module, key, values.to(buffer.dtype))
        for key, parameter in module.named_parameters(recurse=False):
            if parameter.is_meta:
                made = torch.empty(parameter.shape, dtype=dtype).normal_(std=0.02)
                module.register_parameter(key, nn.Parameter(made, parameter.requires_grad))
    head, table = model.language_model.get_output_embeddings(), model.get_input_embeddings()
    if model.added_tokens.tied:
        head.weight = table.weight
    return model.eval()


@torch.inference_mode()
def memory(name: str, scheme: str, shots: int = 4) -> None:
    from flamboyance import catalog
    from flamboyance.planning.inference import TEXT, inference_memory
    from flamboyance.training.hardware import this_machine

    dtype = torch.bfloat16
    predicted = inference_memory(catalog.resolve(name).outline(quantize=scheme).to(dtype), shots, this_machine())
    before = resident()
    model = random_model(name, scheme, dtype)
    weights = resident() - before
    side, image = model.vision.image_size, model.config.image_token_id
    ids = torch.randint(2, 1000, (1, TEXT * (shots + 1)))
    ids[0, ::TEXT] = image
    pixels = torch.randn(1, shots + 1, 1, 3, side, side, dtype=dtype)
    out = model(ids, pixel_values=pixels, use_cache=True, logits_to_keep=1)
    after = resident() - before
    assert out.logits.isfinite().all()
    rows = {"weights": (weights, predicted.weights), "after the prompt": (after, predicted.tensors)}
    print(f"{name}, {scheme}, {shots} shots, 1e9 bytes; before the model {before / 1e9:.2f}")
    print("| | resident | predicted | difference |\n|---|---:|---:|---:|")
    for what, (found, expected) in rows.items():
        print(f"| {what} | {found / 1e9:.2f} | {expected / 1e9:.2f} | {found / expected - 1:+.1%} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("what", choices=("quality", "speed", "memory"))
    parser.add_argument("--model", default="openflamingo/OpenFlamingo-3B-vitl-mpt1b")
    parser.add_argument("--scheme", default="int4", choices=("int8", "int4"))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.what == "memory":
        memory(arguments.model, arguments.scheme)
    else:
        {"quality": quality, "speed": speed}[arguments.what]()


if __name__ == "__main__":
    main()
