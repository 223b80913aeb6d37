"""Any module may be the first one imported: Flamingo's registration with transformers waits until it is over."""

import subprocess
import sys

import pytest

CODE = """
import {module}
from transformers import AutoModelForImageTextToText
from flamboyance.configuration import FlamingoConfig
assert AutoModelForImageTextToText._model_mapping[FlamingoConfig].__name__ == "FlamingoForConditionalGeneration"
"""


@pytest.mark.parametrize("module", ["flamboyance.training.parallel", "flamboyance.processing"])
def test_any_module_is_imported_first(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(module=module)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
