"""Linear layers of torch and of flamboyance.model.linear, in turns: `python -m benchmarks.linear [--threads N]`.

Rates of one product with weights too large for the caches: billions of operations, and GB of weights, per second. With
torch, with oneDNN from plain weights and with oneDNN from packed ones, in float32 and bfloat16; and the two products of
the backward pass. In bfloat16 torch itself uses oneDNN if that supports the processor; otherwise the second column has
float32 products of the same numbers.

To measure on a processor with AVX-512 what one without it would do:

    ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 python -m benchmarks.linear
"""

from __future__ import annotations

import argparse
import functools
import os
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from benchmarks import results
from flamboyance.model import linear

WEIGHTS = ((768, 768), (3072, 768), (768, 3072), (4096, 4096))  # outputs, inputs
ROWS = (1, 3, 4, 12, 48, 200, 1000)
BYTES = 3e8  # of weights, one after another


def fastest(works: list[Callable[[], object]], seconds: float = 0.4) -> list[float]:
    """The least seconds of each work; the works take turns."""
    best = [float("inf")] * len(works)
    end = time.perf_counter() + seconds * len(works)
    while time.perf_counter() < end:
        for number, work in enumerate(works):
            began = time.perf_counter()
            work()
            best[number] = min(best[number], time.perf_counter() - began)
    return best


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    torch.set_num_threads(parser.parse_args().threads)
    here = results.machine()
    print(f"torch {here['torch']}, {here['processor']}, {here['instruction_set']}; by oneDNN: {chosen()}\n")
    print("| in | weight | rows | product | torch, Gop/s | oneDNN | packed | torch, GB/s | oneDNN | packed |")
    print("|---|---|---:|---|---:|---:|---:|---:|---:|---:|")
    for dtype in (torch.float32, torch.bfloat16):
        for outputs, inputs in WEIGHTS:
            weights = [torch.randn(outputs, inputs).to(dtype) for _ in range(max(1, int(BYTES / 4 / outputs / inputs)))]
            for rows in ROWS:
                compare(rows, weights if rows < 100 else weights[:4])


def chosen() -> str:
    """What flamboyance.model.linear has oneDNN multiply on this processor."""
    found = {"float32": linear.onednn_is_faster(), "packed bfloat16": linear.onednn_multiplies_bfloat16()}
    return ", ".join(name for name, by_onednn in found.items() if by_onednn) or "nothing"


def compare(rows: int, weights: list[torch.Tensor]) -> None:
    outputs, inputs = weights[0].shape
    x, back = (torch.randn(rows, side).to(weights[0].dtype) for side in (inputs, outputs))
    plain = [(lambda w: F.linear(x, w), weights)]
    if not linear.has_onednn():
        return show(rows, "y = x Wᵀ", plain)
    plain.append((lambda w: linear._product(x, w), weights))
    if x.dtype == torch.float32 or linear.supports_bfloat16():
        plain.append((plain[1][0], [linear.blocks(w) for w in weights]))
    show(rows, "y = x Wᵀ", plain)
    if rows >= 200 and x.dtype == torch.float32:
        by_onednn = linear._product
        show(rows, "g W", [(lambda w: back @ w, weights), (lambda w: by_onednn(back, w.t()), weights)])
        show(rows, "gᵀ x", [(lambda w: back.t() @ x, weights), (lambda w: by_onednn(back.t(), x.t()), weights)])


def show(rows: int, name: str, ways: list[tuple[Callable[[torch.Tensor], object], list[torch.Tensor]]]) -> None:
    seconds = fastest([functools.partial(_each, way, weights) for way, weights in ways])
    weights = ways[0][1]
    operations, size = 2e-9 * rows * weights[0].numel() * len(weights), weights[0].nbytes * len(weights) / 1e9
    blank = [""] * (3 - len(ways))
    rates = [f"{operations / s:.0f}" for s in seconds] + blank + [f"{size / s:.1f}" for s in seconds] + blank
    kind, (outputs, inputs) = str(weights[0].dtype).removeprefix("torch."), weights[0].shape
    print(f"| {kind} | {outputs} × {inputs} | {rows} | {name} | {' | '.join(rates)} |", flush=True)


def _each(way: Callable[[torch.Tensor], object], weights: list[torch.Tensor]) -> None:
    for weight in weights:
        way(weight)


if __name__ == "__main__":
    main()
