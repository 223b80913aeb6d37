"""The most requests and tokens that a run may spend on a server."""

from __future__ import annotations

import threading


class BudgetSpentError(RuntimeError):
    """The budget is spent. What was answered is kept, and the same command resumes."""


class Budget:
    """Counts requests and tokens; threads share it.

    Args:
        requests: the most requests that are sent, repeated ones included; None for any number.
        tokens: the most tokens of prompts and answers, by the server's own count. A request's tokens are known when it
            is answered; until then it counts as much as the largest one so far.

    Attributes:
        sent, used: requests and tokens so far.
    """

    def __init__(self, requests: int | None = None, tokens: int | None = None):
        self.requests, self.tokens = requests, tokens
        self.sent = self.used = 0
        self._largest = self._under_way = 0
        self._lock = threading.Lock()

    def begin(self) -> None:
        """Counts a request that is about to be sent.

        Raises:
            BudgetSpentError: it would exceed the budget.
        """
        with self._lock:
            if self.requests is not None and self.sent >= self.requests:
                raise BudgetSpentError(f"the budget of {self.requests:,} requests (--max-requests) is spent")
            expected = self.used + (self._under_way + 1) * self._largest
            if self.tokens is not None and (self.used >= self.tokens or expected > self.tokens):
                raise BudgetSpentError(
                    f"the budget of {self.tokens:,} tokens (--max-tokens) is spent: {self.used:,} are used, and a "
                    f"request takes up to {self._largest:,}"
                )
            self.sent += 1
            self._under_way += 1

    def end(self, tokens: int | None) -> None:
        """Counts the tokens of a request that has ended; 0 for one that failed.

        Raises:
            ValueError: the server does not count tokens, and the budget limits them.
        """
        with self._lock:
            self._under_way -= 1
            self.used += tokens or 0
            self._largest = max(self._largest, tokens or 0)
        if tokens is None and self.tokens is not None:
            raise ValueError("the server does not report the tokens of its answers: limit --max-requests instead")
