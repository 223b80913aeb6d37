"""One training loop for all stages: AdamW and periodic checkpoints, from which a stopped run resumes.

The learning rate warms up, stays constant, and decays to zero over the last 40 % of the steps.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from flamboyance.training.hardware import has_bfloat16

LossAt = Callable[[int], tuple[torch.Tensor, dict[str, float]]]


def fan_in(module: nn.Module, residual_branches: int) -> None:
    """Initialises every linear layer at std 1/sqrt(inputs), and outputs of residual branches so that they sum to one.

    At widths of 128 to 192 the usual std of 0.02 leaves the loss flat for thousands of steps.
    """
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear):
            ends_a_branch = name.rsplit(".", 1)[-1] in ("out_proj", "o_proj", "fc2", "down_proj")
            std = layer.in_features**-0.5 / (residual_branches**0.5 if ends_a_branch else 1.0)
            nn.init.normal_(layer.weight, std=std)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def fit(
    name: str,
    module: nn.Module,
    loss_at: LossAt,
    *,
    steps: int,
    rate: float,
    folder: Path,
    decay: float = 0.01,
    warmup: int = 200,
    save_every: int = 250,
    report_every: int = 100,
    seed: int = 0,
    probe: Callable[[int], str] | None = None,
    probe_every: int = 1000,
) -> None:
    """Trains the parameters of `module` that require gradients on `loss_at(step) -> (loss, figures)`.

    `folder/checkpoint.pt` holds the latest state; a run that finds it goes on from there. `loss_at` draws its batch
    from the step number alone, so an interrupted run sees the batches that an uninterrupted one would have seen.
    """
    device = next(module.parameters()).device
    trained = {key: value for key, value in module.named_parameters() if value.requires_grad}
    matrices = [value for value in trained.values() if value.ndim > 1]
    vectors = [value for value in trained.values() if value.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98))
    first = _resume(folder / "checkpoint.pt", trained, optimizer)
    millions = sum(value.numel() for value in trained.values()) / 1e6
    print(f"[{name}] {millions:.2f} M trained parameters, {steps} steps from {first}", flush=True)
    began, figures = time.time(), {}
    bfloat16 = device.type != "cpu" or has_bfloat16()
    for step in range(first, steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / warmup) * _decay(step / steps)
        torch.manual_seed(seed * 1_000_003 + step)
        # On a CPU the fused attention kernels' backward pass is several times slower than plain products at these
        # sizes.
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16), sdpa_kernel(SDPBackend.MATH):
            loss, latest = loss_at(step)
            loss.backward()
        nn.utils.clip_grad_norm_(trained.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        for key, value in {"loss": loss.detach().item(), **latest}.items():
            figures.setdefault(key, []).append(value)
        done = step + 1
        if done % report_every == 0 or done == steps:
            pace = (time.time() - began) / (done - first)
            means = "  ".join(f"{key} {np.nanmean(values):.3f}" for key, values in figures.items())
            left = pace * (steps - done) / 60
            print(f"[{name}] {done}/{steps}  {means}  {pace:.3f} s/step, {left:.0f} min left", flush=True)
            figures = {}
        if done % save_every == 0 or done == steps:
            _save(folder / "checkpoint.pt", trained, optimizer, done)
        if probe is not None and (done % probe_every == 0 or done == steps):
            print(f"[{name}] {done}/{steps}  probe: {probe(done)}", flush=True)


def _decay(progress: float) -> float:
    return max(0.01, min(1.0, (1 - progress) / 0.4))


def _save(path: Path, trained: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, step: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    parameters = {key: value.detach().cpu() for key, value in trained.items()}
    torch.save({"step": step, "parameters": parameters, "optimizer": optimizer.state_dict()}, f"{path}.new")
    os.replace(f"{path}.new", path)


def _resume(path: Path, trained: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> int:
    if not path.exists():
        return 0
    state = torch.load(path, map_location="cpu", weights_only=True)
    with torch.no_grad():
        for key, value in trained.items():
            value.copy_(state["parameters"][key])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])
