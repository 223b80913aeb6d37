"""AdamW with decay where it belongs, and the learning rate of each step."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from flamboyance.training.config import TrainingConfig


def make_optimizer(trained: Mapping[str, nn.Parameter], config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW over what trains. Only the matrices of the cross-attention decay (Flamingo decays all but the resampler;
    norms, gates and the rows of added tokens are no matrices that decay should shrink)."""
    decayed = [p for name, p in trained.items() if name.startswith("cross_attention.") and p.ndim > 1]
    chosen = {id(p) for p in decayed}
    rest = [p for p in trained.values() if id(p) not in chosen]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=config.epsilon, fused=True)


def rate_at(step: int, config: TrainingConfig) -> float:
    """Learning rate of optimizer step `step`, counted from 0.

    It rises over `warmup` steps, stays, and falls over the last `falling` of all steps to `rate * final`.
    """
    rise = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    if config.schedule == "constant":
        return config.learning_rate * rise
    first = max(config.warmup_steps, round(config.steps * (1 - config.decay_fraction)))
    progress = min(max((step - first) / max(config.steps - first, 1), 0.0), 1.0)
    left = 1 - progress if config.schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return config.learning_rate * rise * (config.min_lr_factor + (1 - config.min_lr_factor) * left)


def state_tensors(
    trained: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> dict[str, dict[str, torch.Tensor]]:
    """The optimizer's tensors by parameter name, made (as zeros) where the optimizer has not stepped yet. They are the
    optimizer's own: writing to them, as a checkpoint's reader does, sets its state."""
    found = {}
    for name, parameter in trained.items():
        state = optimizer.state[parameter]
        if not state:
            device = parameter.device
            state["step"] = torch.zeros((), dtype=torch.float32, device=device)
            state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        found[name] = state
    return found
