"""Metrics of a choice among labels: the area under the ROC curve, and accuracy."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from flamboyance.evaluation.metrics.intervals import interval, interval_of_mean
from flamboyance.evaluation.task import Example, Prediction, Score


def right(examples: Sequence[Example], predictions: Sequence[Prediction]) -> Score:
    """The share of answers that equal one of their references, times 100."""
    return _shares(examples, predictions, lambda text: text)


def right_without_case(examples: Sequence[Example], predictions: Sequence[Prediction]) -> Score:
    """As `right`, whatever the case."""
    return _shares(examples, predictions, str.lower)


def _shares(examples: Sequence[Example], predictions: Sequence[Prediction], form: Callable[[str], str]) -> Score:
    items = {
        example.id: 100.0 * (form(prediction.answer) in map(form, example.references))
        for example, prediction in zip(examples, predictions, strict=True)
    }
    values = list(items.values())
    return Score(float(np.mean(values)), items, interval_of_mean(values))


def probability(prediction: Prediction, labels: Sequence[str], label: str) -> float:
    """The probability of a label among all labels: the softmax of their scores."""
    if prediction.scores is None or len(prediction.scores) != len(labels):
        raise ValueError(f"a prediction lacks scores of the labels {', '.join(labels)}; ROC AUC needs all of them")
    scores = np.asarray(prediction.scores)
    shares = np.exp(scores - scores.max())
    return float((shares / shares.sum())[list(labels).index(label)])


def area(examples: Sequence[Example], predictions: Sequence[Prediction], labels: Sequence[str], positive: str) -> Score:
    """Area under the ROC curve of the positive label's probability, times 100. Single examples have no value.

    Raises:
        ValueError: all examples are positive, or none is.
        ImportError: scikit-learn is not installed.
    """
    try:
        from sklearn.metrics import roc_auc_score
    except ImportError as error:
        raise ImportError("ROC AUC needs scikit-learn: pip install scikit-learn") from error
    truth = np.array([positive in example.references for example in examples])
    if truth.all() or not truth.any():
        raise ValueError(f"{int(truth.sum())} of {len(truth)} examples are {positive!r}; a ROC curve needs both labels")
    scores = np.array([probability(one, labels, positive) for one in predictions])
    order = np.argsort(scores, kind="stable")
    return Score(
        100 * float(roc_auc_score(truth, scores)), {}, interval(len(truth), _areas(scores[order], truth[order]))
    )


def _areas(scores: np.ndarray, truth: np.ndarray):
    """A function from resamples to areas: the share of pairs in the right order, ties as half.

    Args:
        scores: the probabilities, in rising order.
        truth: which of these examples are positive.
    """
    groups = np.unique(scores, return_inverse=True)[1]

    def measure(drawn: np.ndarray) -> np.ndarray:
        rows = np.arange(len(drawn))[:, None] * (groups.max() + 1)
        size = len(drawn) * (groups.max() + 1)
        key = (rows + groups[drawn]).ravel()
        positives = np.bincount(key, weights=truth[drawn].ravel(), minlength=size).reshape(len(drawn), -1)
        negatives = np.bincount(key, minlength=size).reshape(len(drawn), -1) - positives
        below = negatives.cumsum(1) - negatives
        pairs = (positives * (below + negatives / 2)).sum(1)
        with np.errstate(invalid="ignore"):
            return 100 * pairs / (positives.sum(1) * negatives.sum(1))

    return measure
