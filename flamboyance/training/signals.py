"""Signals that stop a run: immediately while it prepares, after the current step while it trains."""

from __future__ import annotations

import signal
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

NUMBERS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(SystemExit):
    """A run stopped after a signal. The exit status is 128 and the signal's number.

    Attributes:
        step: the last step, whose checkpoint is written; None if training had not begun.
    """

    def __init__(self, number: int, step: int | None = None):
        super().__init__(128 + number)
        self.number = number
        self.step = step


class Signals:
    """The first signal that arrived while signals were deferred: a call returns its number, or 0."""

    def __init__(self) -> None:
        self._received: list[int] = []

    def __call__(self) -> int:
        return self._received[0] if self._received else 0

    def deferred(self) -> AbstractContextManager[None]:
        """Within this context, signals are only recorded. A second SIGINT interrupts immediately."""
        return _handled_by(self._record)

    @contextmanager
    def at_once(self) -> Generator[None]:
        """Within this context, a signal interrupts immediately, also one that was recorded before."""
        with _handled_by(_interrupt):
            if self._received:
                _interrupt(self._received[0])
            yield

    def _record(self, number: int, frame: Any) -> None:
        if number == signal.SIGINT and number in self._received:
            raise KeyboardInterrupt
        self._received.append(number)


@contextmanager
def handling_signals(first: bool) -> Generator[Signals]:
    """SIGTERM and SIGINT raise an exception immediately, so that incomplete files are removed. Within `deferred()` they
    are only recorded. On other ranks than the first, outside of `deferred()`, they end the process: those ranks wait in
    collectives, where an exception would come too late."""
    signals = Signals()
    with signals.at_once() if first else nullcontext():
        yield signals


def _interrupt(number: int, frame: Any = None) -> None:
    raise KeyboardInterrupt if number == signal.SIGINT else Interrupted(number)


@contextmanager
def _handled_by(handler: Callable[[int, Any], None]) -> Generator[None]:
    try:
        before = {number: signal.signal(number, handler) for number in NUMBERS}
    except ValueError:  # not in the main thread, which alone handles signals
        before = {}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
