"""95 % confidence intervals: the bootstrap over queries (Efron and Tibshirani, 1993, chapter 13), and Wilson's."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95
AT_ONCE = 2**22  # items of resamples held at a time


def interval_of_mean(values: Sequence[float]) -> tuple[float, float]:
    """95 % percentile interval of the mean of values, each of one query."""
    items = np.asarray(values, dtype=np.float64)
    return interval(len(items), lambda chosen: items[chosen].mean(1))


def interval(
    items: int, measure: Callable[[np.ndarray], np.ndarray], resamples: int = RESAMPLES
) -> tuple[float, float]:
    """95 % percentile interval of a measure of queries that are drawn with replacement; deterministic.

    Args:
        items: number of queries.
        measure: indices of queries (resamples, items) -> values (resamples,); NaN where a resample has none.

    Returns:
        NaN for both ends if no resample has a value.
    """
    random = np.random.default_rng(0)
    at_once = max(1, AT_ONCE // max(items, 1))
    values = []
    for start in range(0, resamples, at_once):
        values.append(measure(random.integers(0, items, (min(at_once, resamples - start), items))))
    measured = np.concatenate(values)
    measured = measured[~np.isnan(measured)]
    if not len(measured):
        return math.nan, math.nan
    low, high = np.quantile(measured, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def wilson(right: int, total: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    z, share = 1.96, right / total
    middle = share + z * z / (2 * total)
    spread = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(0.0, (middle - spread) / (1 + z * z / total)), min(1.0, (middle + spread) / (1 + z * z / total))
