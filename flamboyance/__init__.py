"""Few-shot vision-language models: show a frozen language model a few images with their texts, and it does the same
for the next image."""

# Public names are imported when they are first used (PEP 562): `flamboyance --help` does not wait for torch.

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from flamboyance import auto

if TYPE_CHECKING:
    from flamboyance import examples as examples
    from flamboyance import templates as templates
    from flamboyance.compat import create_model_and_transforms as create_model_and_transforms
    from flamboyance.configuration import FlamingoConfig as FlamingoConfig
    from flamboyance.evaluation import metrics as metrics
    from flamboyance.evaluation.from_python import evaluate as evaluate
    from flamboyance.few_shot import FewShotTask as FewShotTask
    from flamboyance.flamingo import FlamingoForConditionalGeneration as FlamingoForConditionalGeneration
    from flamboyance.mini import load_mini as load_mini
    from flamboyance.model.media import Media as Media
    from flamboyance.processing import FlamingoProcessor as FlamingoProcessor
    from flamboyance.reports.attention import attention_maps as attention_maps
    from flamboyance.small import load_small as load_small

    __version__: str

_DEFINED_IN = {
    "FewShotTask": "few_shot",
    "FlamingoConfig": "configuration",
    "FlamingoForConditionalGeneration": "flamingo",
    "FlamingoProcessor": "processing",
    "Media": "model.media",
    "attention_maps": "reports.attention",
    "create_model_and_transforms": "compat",
    "evaluate": "evaluation.from_python",
    "load_mini": "mini",
    "load_small": "small",
}
_MODULES = {"examples": "examples", "metrics": "evaluation.metrics", "templates": "templates"}

__all__ = [
    "FewShotTask",
    "FlamingoConfig",
    "FlamingoForConditionalGeneration",
    "FlamingoProcessor",
    "Media",
    "__version__",
    "attention_maps",
    "create_model_and_transforms",
    "evaluate",
    "examples",
    "load_mini",
    "load_small",
    "metrics",
    "templates",
]

auto.register()


def __getattr__(name: str) -> Any:
    if name in _DEFINED_IN:
        value = getattr(import_module(f"flamboyance.{_DEFINED_IN[name]}"), name)
    elif name in _MODULES:
        value = import_module(f"flamboyance.{_MODULES[name]}")
    elif name == "__version__":
        value = _version()
    else:
        # With `obj`, Python's own traceback suggests a similar name.
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name, obj=sys.modules[__name__])
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("flamboyance")
    except PackageNotFoundError:  # a source tree that is not installed
        return "0+unknown"
