"""Models by name, for the command line."""

from pathlib import Path
from typing import Any

MINI = "mini"


def load(name: str, device: str = "auto", dtype: str = "auto") -> tuple[Any, Any]:
    """The model and its processor, ready to answer.

    Args:
        name: `mini` for the embedded model, a directory, or a released model's name.
        device: `cpu`, `cuda`, or `auto` for CUDA where there is one.
        dtype: `float32`, `bfloat16`, `float16`; `auto` is bfloat16 on CUDA and float32 on a CPU.

    Raises:
        ValueError: CUDA was asked for and there is none.
        OSError: no such model.
    """
    import torch

    place = _device(device)
    kind = getattr(torch, dtype if dtype != "auto" else "bfloat16" if place.type == "cuda" else "float32")
    if name == MINI:
        from flamboyance.mini import load_mini

        model, processor = load_mini()
    else:
        from flamboyance.model.flamingo import FlamingoForConditionalGeneration
        from flamboyance.processing import FlamingoProcessor

        if name.startswith((".", "/", "~")) and not Path(name).expanduser().is_dir():
            raise FileNotFoundError(f"no such model directory: {name}")
        name = str(Path(name).expanduser()) if name.startswith("~") else name
        model = FlamingoForConditionalGeneration.from_pretrained(name, dtype=kind)
        processor = FlamingoProcessor.from_pretrained(name)
    return model.to(device=place, dtype=kind).eval(), processor


def _device(name: str) -> Any:
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda, but torch sees no CUDA device here; use --device cpu")
    return torch.device(name)
