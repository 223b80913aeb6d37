"""The operations that `tflops` and `mfu` are computed from."""

from pathlib import Path

import pytest
import torch
from torch import nn

from flamboyance import FlamingoForConditionalGeneration
from flamboyance.model.vision import VisionTower, tower_spec
from flamboyance.training.throughput import ModelFlops, tower_cost
from tests.tiny import save_tiny_flamingo


def test_a_convolution_costs_its_weights_at_every_place() -> None:
    pytest.importorskip("timm")
    tower = VisionTower.from_config(tower_spec("timm/test_efficientnet", image_size=64, feature_levels=[2, 3]))
    counted = 0

    def count(module: nn.Conv2d, _: object, out: torch.Tensor) -> None:
        nonlocal counted
        counted += 2 * module.weight.numel() * out.shape[2] * out.shape[3]

    for module in tower.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    features = tower(torch.zeros(1, 3, 64, 64))
    assert tower_cost(tower) == (counted, features.shape[1]) and counted > 1e6


def test_a_tower_whose_features_are_cached_costs_nothing(tmp_path: Path) -> None:
    model = FlamingoForConditionalGeneration.from_pretrained(save_tiny_flamingo(tmp_path))
    every, cached = ModelFlops.of(model), ModelFlops.of(model, cached=True)
    assert every.image - cached.image == tower_cost(model.vision)[0] > 0 and every.token == cached.token
