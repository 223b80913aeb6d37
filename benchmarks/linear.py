"""Linear layers by torch and by flamboyance.model.linear, in turns: `python -m benchmarks.linear [--threads N]`.

Rates of one product over weights that no cache holds, in float32: billions of operations and GB of weights a second;
forward, and the two products of the backward pass.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from flamboyance.model.linear import _product, onednn_is_faster

WEIGHTS = ((768, 768), (3072, 768), (768, 3072), (4096, 4096))  # outputs, inputs
ROWS = (1, 3, 4, 12, 48, 200, 1000)
BYTES = 3e8  # of weights, one after another


def fastest(works: list[Callable[[], object]], seconds: float = 0.4) -> list[float]:
    """Seconds of each work at its best, the works in turns."""
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
    print(f"torch {torch.__version__}; by oneDNN on this processor: {onednn_is_faster()}\n")
    print("| weight | rows | product | torch, Gop/s | oneDNN, Gop/s | torch, GB/s | oneDNN, GB/s |")
    print("|---|---:|---|---:|---:|---:|---:|")
    for outputs, inputs in WEIGHTS:
        weights = [torch.randn(outputs, inputs) for _ in range(max(1, int(BYTES / (4 * outputs * inputs))))]
        for rows in ROWS:
            compare(outputs, inputs, rows, weights if rows < 100 else weights[:4])


def compare(outputs: int, inputs: int, rows: int, weights: list[torch.Tensor]) -> None:
    x, back = torch.randn(rows, inputs), torch.randn(rows, outputs)
    size = (outputs, inputs, rows)
    show(*size, "y = x Wᵀ", weights, lambda w: F.linear(x, w), lambda w: _product(x, w))
    if rows >= 200:
        show(*size, "g W", weights, lambda w: back @ w, lambda w: _product(back, w.t()))
        show(*size, "gᵀ x", weights, lambda w: back.t() @ x, lambda w: _product(back.t(), x.t()))


def show(
    outputs: int,
    inputs: int,
    rows: int,
    name: str,
    weights: list[torch.Tensor],
    theirs: Callable[[torch.Tensor], object],
    ours: Callable[[torch.Tensor], object],
) -> None:
    seconds = fastest([lambda: [theirs(w) for w in weights], lambda: [ours(w) for w in weights]])
    operations = 2e-9 * rows * outputs * inputs * len(weights)
    size = 4e-9 * outputs * inputs * len(weights)
    rates = [f"{operations / s:.0f}" for s in seconds] + [f"{size / s:.1f}" for s in seconds]
    print(f"| {outputs} × {inputs} | {rows} | {name} | {' | '.join(rates)} |", flush=True)


if __name__ == "__main__":
    main()
