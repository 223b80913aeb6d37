"""AdamW, and its weight decay."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from flamboyance.training.config import TrainingConfig


def in_cross_attention(name: str) -> bool:
    """Flamingo decays everything but the resampler, and decay should not shrink the rows of added tokens."""
    return name.startswith("cross_attention.")


def make_optimizer(
    trained: Mapping[str, nn.Parameter], config: TrainingConfig, decays: Callable[[str], bool] = in_cross_attention
) -> torch.optim.AdamW:
    """AdamW over the trainable parameters. Weight decay applies to the matrices whose names `decays` accepts, not to
    norms, biases and gates."""
    decayed = [p for name, p in trained.items() if decays(name) and p.ndim > 1]
    chosen = {id(p) for p in decayed}
    rest = [p for p in trained.values() if id(p) not in chosen]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=config.epsilon, fused=True)


def state_tensors(
    trained: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> dict[str, dict[str, torch.Tensor]]:
    """The optimizer's own tensors by parameter name; zeros are made for an optimizer that has not stepped yet. Writing
    to the tensors sets the optimizer's state, as resuming does."""
    states = {}
    for name, parameter in trained.items():
        state = optimizer.state[parameter]
        if not state:
            device = parameter.device
            state["step"] = torch.zeros((), dtype=torch.float32, device=device)
            state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        states[name] = state
    return states
