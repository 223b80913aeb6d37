"""Which parts of a Flamingo a run trains, beside the resampler and the cross-attention."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from flamboyance.model import adapters
from flamboyance.model.quantized_linear import layers as quantized_layers
from flamboyance.model.trainable import without_influence
from flamboyance.model.vision import VisionTower
from flamboyance.training.config import TrainingConfig


class TrainedParts(NamedTuple):
    """Whether each part is trained that a run may freeze or unfreeze."""

    added_tokens: bool = True
    vision: bool = False
    language: bool = False

    @classmethod
    def of(cls, config: TrainingConfig) -> TrainedParts:
        return cls(not config.freeze_added_tokens, config.unfreeze_vision, config.unfreeze_language)

    def apply(self, model: Any) -> None:
        """Freezes and unfreezes. What else was frozen or unfrozen by hand stays so.

        Raises:
            ValueError: a part is quantized, and cannot be trained.
        """
        if not self.added_tokens:
            model.added_tokens.requires_grad_(False)
        if self.vision:
            _refuse_quantized("unfreeze_vision", "vision tower", model.vision)
            _unfreeze(model.vision)
        if self.language:
            _refuse_quantized("unfreeze_language", "language model", model.language_model)
            model.language_model.requires_grad_(True)


FLAMINGO = TrainedParts()


def settle(model: Any) -> None:
    """Freezes the backbones and unfreezes the added tokens, as in a new model, so that a run's settings decide. A model
    remembers which parameters were trainable when it was saved. Adapters stay as they are."""
    theirs = adapters.names(model)
    for name, parameter in model.named_parameters():
        if name not in theirs and name.startswith(("vision.", "language_model.")):
            parameter.requires_grad_(False)
    model.added_tokens.requires_grad_(True)


def _unfreeze(tower: VisionTower) -> None:
    """All that the patches depend on; not the last norm and the pooling, which get no gradient."""
    tower.requires_grad_(True)
    side, device = tower.image_size, next(tower.parameters()).device
    with torch.enable_grad():
        patches = tower(torch.zeros(1, 3, side, side, device=device))
    for parameter in without_influence(list(tower.parameters()), patches.float().sum()):
        parameter.requires_grad_(False)


def _refuse_quantized(setting: str, part: str, module: Any) -> None:
    if quantized_layers(module) or not all(p.is_floating_point() for p in module.parameters()):
        raise ValueError(f"{setting}=true, but the {part} is quantized; expected one in bfloat16 or float32")
