"""How far a score can be trusted: the bootstrap over queries (Efron and Tibshirani, 1993, chapter 13)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95
AT_ONCE = 2**22  # items of resamples held at a time


def interval_of_mean(values: Sequence[float]) -> tuple[float, float]:
    """95 % percentile interval of the mean of values, each of one query."""
    items = np.asarray(values, dtype=np.float64)
    return interval(len(items), lambda chosen: items[chosen].mean(1))


def interval(items: int, measure: Callable[[np.ndarray], np.ndarray]) -> tuple[float, float]:
    """95 % percentile interval of a measure of queries drawn again with replacement; the same for the same numbers.

    Args:
        items: how many queries there are.
        measure: (resamples, items) of their numbers -> (resamples,) values; NaN where a resample has none.
    """
    random = np.random.default_rng(0)
    at_once = max(1, AT_ONCE // max(items, 1))
    values = []
    for start in range(0, RESAMPLES, at_once):
        drawn = random.integers(0, items, (min(at_once, RESAMPLES - start), items))
        values.append(measure(drawn))
    found = np.concatenate(values)
    found = found[~np.isnan(found)]
    if not len(found):
        return float("nan"), float("nan")
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
