"""Signals that stop a run: at once while it prepares, after the step while it trains."""

from __future__ import annotations

import signal
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

NUMBERS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(SystemExit):
    """A run stopped after a signal. The exit status is 128 and the signal's number.

    Attributes:
        step: the last step done, whose checkpoint is written; None where training had not begun.
    """

    def __init__(self, number: int, step: int | None = None):
        super().__init__(128 + number)
        self.number = number
        self.step = step


class Signals:
    """The signal that arrived while signals were deferred; a call returns its number, or 0."""

    def __init__(self) -> None:
        self._asked: list[int] = []

    def __call__(self) -> int:
        return self._asked[0] if self._asked else 0

    def deferred(self) -> AbstractContextManager[None]:
        """Within it signals are only noted. A second SIGINT interrupts at once."""
        return _handled_by(self._note)

    @contextmanager
    def at_once(self) -> Generator[None]:
        """Within it a signal interrupts whatever is going on, also one that was noted before."""
        with _handled_by(_interrupt):
            if self._asked:
                _interrupt(self._asked[0])
            yield

    def _note(self, number: int, frame: Any) -> None:
        if number == signal.SIGINT and number in self._asked:
            raise KeyboardInterrupt
        self._asked.append(number)


@contextmanager
def handling_signals(first: bool) -> Generator[Signals]:
    """SIGTERM and SIGINT interrupt at once, with an exception, so that files half written are removed; in the part that
    `deferred()` covers they are noted. On ranks but the first they end the process until then: those wait in
    exchanges, where an exception would come too late."""
    signals = Signals()
    with signals.at_once() if first else nullcontext():
        yield signals


def _interrupt(number: int, frame: Any = None) -> None:
    raise KeyboardInterrupt if number == signal.SIGINT else Interrupted(number)


@contextmanager
def _handled_by(handler: Callable[[int, Any], None]) -> Generator[None]:
    try:
        before = {number: signal.signal(number, handler) for number in NUMBERS}
    except ValueError:  # not in the main thread: signals are somebody else's
        before = {}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
