"""From times to frames."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence


def shown_at(starts: Sequence[float], times: Sequence[float]) -> list[int]:
    """The number of the frame that is shown at each time: the last one that has begun.

    Args:
        starts: when each frame begins, in seconds, in order; frames may last differently long.
    """
    return [max(0, bisect_right(starts, time) - 1) for time in times]
