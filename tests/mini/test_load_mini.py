"""The embedded model opens from the package, or says that it is missing."""

from pathlib import Path

import pytest
import torch
from PIL import Image

import flamboyance
from flamboyance import names
from tests.tiny import save_tiny_flamingo


def test_load_mini(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "WEIGHTS", tmp_path / "weights")
    with pytest.raises(OSError, match="missing"):
        flamboyance.load_mini()
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "flamingo-mini").symlink_to(save_tiny_flamingo(tmp_path / "tiny"))
    model, processor = flamboyance.load_mini()
    assert model.dtype == torch.float32 and not model.training
    inputs = processor(["<image>Output:"], [[Image.new("RGB", (16, 16))]])
    assert model.score(**inputs, candidates=["a cat", "a dog"]).shape == (1, 2)
