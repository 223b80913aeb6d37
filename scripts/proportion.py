"""A share of trials, with its interval."""

from __future__ import annotations

from flamboyance.evaluation.metrics.intervals import wilson


class Proportion:
    """Something with `right` of `total` trials."""

    right: int
    total: int

    @property
    def share(self) -> float:
        return self.right / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """95 %, Wilson's."""
        return wilson(self.right, self.total)
