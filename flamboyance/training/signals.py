"""Signals that ask a run to stop: noted, and answered after the step."""

from __future__ import annotations

import signal
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any


class Interrupted(SystemExit):
    """A run stopped after a signal; its checkpoint is written. The exit status is that of SIGTERM."""

    def __init__(self, step: int):
        super().__init__(128 + signal.SIGTERM)
        self.step = step


@contextmanager
def handling_signals() -> Generator[Callable[[], bool]]:
    """Within it, SIGTERM and SIGINT only raise a flag, which the loop asks for after each step. A second SIGINT
    interrupts at once."""
    asked: list[int] = []

    def note(number: int, frame: Any) -> None:
        if number == signal.SIGINT and number in asked:
            raise KeyboardInterrupt
        asked.append(number)

    try:
        before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not in the main thread: signals are somebody else's
        before = {}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
