"""The learning rate of each step: warm-up, a constant part, decay."""

from __future__ import annotations

import math

from flamboyance.training.config import TrainingConfig


def learning_rate_at(step: int, config: TrainingConfig) -> float:
    """Learning rate of optimizer step `step`, counted from 0: it rises over `warmup_steps`, stays constant, and decays
    over the last `decay_fraction` of all steps to `learning_rate * min_lr_factor`."""
    rise = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    if config.schedule == "constant":
        return config.learning_rate * rise
    first = max(config.warmup_steps, round(config.steps * (1 - config.decay_fraction)))
    progress = min(max((step - first) / max(config.steps - first, 1), 0.0), 1.0)
    left = 1 - progress if config.schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return config.learning_rate * rise * (config.min_lr_factor + (1 - config.min_lr_factor) * left)
