"""What every test runs under: one thread per worker, and no network."""

import os
from importlib.metadata import version
from importlib.util import find_spec

# Set before anything imports huggingface_hub, which reads it once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

torch.set_num_threads(1)


def pytest_report_header() -> str:
    """The versions that the tests run with."""
    names = ("torch", "transformers", "huggingface_hub", "safetensors", "pillow", "numpy", "torchvision", "peft")
    found = [f"{name} {version(name)}" for name in names if find_spec("PIL" if name == "pillow" else name)]
    return f"with: {', '.join(found)}"
