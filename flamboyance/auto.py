"""Registers Flamingo with transformers' Auto classes, whichever package is imported first, without importing torch.

The modules that define our classes register them (`AutoConfig.register` at the end of configuration.py, and so on).
This module imports them as soon as transformers has imported the Auto class in question.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType

REGISTERED_BY = {
    "transformers.models.auto.configuration_auto": "flamboyance.configuration",
    "transformers.models.auto.modeling_auto": "flamboyance.flamingo",
    "transformers.models.auto.processing_auto": "flamboyance.processing",
}
"""Transformers' module of an Auto class: our module that registers a class with it."""


class _Watch:
    """An import hook: calls `after` when the outermost import of one of transformers' modules, or of ours, has ended.

    Not earlier: our modules could import a module that is only half imported.
    """

    def __init__(self, after: Callable[[], None]) -> None:
        self.after = after
        self.here = threading.local()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] not in ("transformers", "flamboyance"):
            return None
        others = [finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec")]
        spec = next((found for finder in others if (found := finder.find_spec(fullname, path, target))), None)
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            run = loader.exec_module
            loader.exec_module = lambda module: self._execute(run, module)
        return spec

    def _execute(self, run: Callable[[ModuleType], None], module: ModuleType) -> None:
        depth = self.here.depth = getattr(self.here, "depth", 0) + 1
        try:
            run(module)
        finally:
            self.here.depth = depth - 1
        if depth == 1:
            self.after()


def register() -> None:
    """Register Flamingo with the Auto classes that are imported, and with the others once they are."""
    waiting = dict(REGISTERED_BY)
    watch = _Watch(lambda: look())

    def look() -> None:
        for place in list(waiting):
            # The import causes further ones, and those look here again.
            if place in sys.modules and (module := waiting.pop(place, None)):
                import_module(module)
        if not waiting and watch in sys.meta_path:
            sys.meta_path.remove(watch)

    look()
    if waiting:
        sys.meta_path.insert(0, watch)
