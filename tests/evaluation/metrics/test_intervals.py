"""Metrics of tasks: values in the papers' units, and intervals that cover what they should."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

from flamboyance.evaluation import metrics
from flamboyance.evaluation.metrics.intervals import interval, interval_of_mean, wilson
from flamboyance.evaluation.task import Example, Metric, Prediction, Score


def measure(metric: Metric, references: list[tuple[str, ...]], predictions: list[Prediction]) -> Score:
    examples = [Example(str(i), Path("x.jpg"), "", (), one) for i, one in enumerate(references)]
    return metric.measure(examples, predictions)


def test_the_interval_covers_the_mean_19_times_of_20() -> None:
    random = np.random.default_rng(5)
    hits = 0
    for _ in range(400):
        low, high = interval_of_mean(random.exponential(2.0, 80).tolist())
        hits += low <= 2.0 <= high
    # 400 trials at 0.95 deviate by 0.011; percentile intervals of a skewed value fall somewhat short.
    assert 0.9 < hits / 400 < 0.98


def test_the_interval_is_that_of_the_normal_law() -> None:
    values = np.random.default_rng(1).normal(50, 10, 2_000)
    low, high = interval_of_mean(values.tolist())
    error = 1.96 * values.std() / math.sqrt(len(values))
    assert (low, high) == pytest.approx((values.mean() - error, values.mean() + error), abs=error / 10)


def test_the_interval_is_the_same_each_time() -> None:
    assert interval_of_mean([1, 2, 3, 10]) == interval_of_mean([1, 2, 3, 10])
    assert interval_of_mean([4.0]) == (4, 4)


def test_resamples_without_a_value_are_left_out() -> None:
    def share(drawn: np.ndarray) -> np.ndarray:
        return np.where(drawn.min(1) == 0, np.nan, 7.0)

    assert interval(3, share) == (7, 7)
    assert np.isnan(interval(1, share)).all()


def test_cider_is_in_the_papers_unit() -> None:
    references = [("red dog", "a dog"), ("blue bird",), ("two trees",)]
    said = ["red dog", "blue bird", "one car"]
    score = measure(metrics.CIDER, references, [Prediction(one) for one in said])
    corpus, each = metrics.cider(
        {str(i): list(one) for i, one in enumerate(references)}, {str(i): one for i, one in enumerate(said)}
    )
    assert score.value == pytest.approx(100 * corpus)
    assert score.items == pytest.approx({key: 100 * value for key, value in each.items()})
    assert score.interval[0] <= score.value <= score.interval[1]


@pytest.mark.parametrize("metric", [metrics.TOP_1, metrics.EXACT_MATCH])
def test_share_of_right_answers(metric: Metric) -> None:
    score = measure(metric, [("cat",), ("dog", "hound"), ("bird",)], [Prediction(x) for x in ("cat", "hound", "fish")])
    assert score.value == pytest.approx(200 / 3) and score.items == {"0": 100, "1": 100, "2": 0}


def probabilities(positive: np.ndarray) -> list[Prediction]:
    """Predictions whose scores, of "no" and "yes" and each less some constant, give these chances of "yes"."""
    return [Prediction("", (float(np.log(1 - one)) - 3, float(np.log(one)) - 3)) for one in positive]


def test_roc_auc_is_scikit_learns() -> None:
    from sklearn.metrics import roc_auc_score

    random = np.random.default_rng(2)
    truth = random.random(300) < 0.4
    said = np.round(np.clip(0.5 + 0.2 * truth + 0.2 * random.normal(size=300), 0.01, 0.99), 1).clip(0.1, 0.9)  # ties
    score = measure(
        metrics.roc_auc("yes", ["no", "yes"]), [("yes",) if one else ("no",) for one in truth], probabilities(said)
    )
    assert score.value == pytest.approx(100 * roc_auc_score(truth, said)) and score.items == {}

    # The interval draws examples: as a loop over scikit-learn's would have it.
    areas = []
    for _ in range(1_000):
        drawn = random.integers(0, 300, 300)
        areas.append(100 * roc_auc_score(truth[drawn], said[drawn]))
    assert score.interval == pytest.approx(np.quantile(areas, [0.025, 0.975]), abs=0.7)


def test_roc_auc_compares_labels_by_their_softmax() -> None:
    """The difference of the two scores counts, not the positive label's alone."""
    said = [Prediction("", (-1.0, -1.5)), Prediction("", (-9.0, -8.0))]
    score = measure(metrics.roc_auc("yes", ["no", "yes"]), [("no",), ("yes",)], said)
    assert score.value == 100


@pytest.mark.parametrize(
    "references, predictions, message",
    [
        ([("yes",), ("yes",)], [Prediction("", (0.0, 0.0))] * 2, "2 of 2.*'yes'"),
        ([("yes",), ("no",)], [Prediction("yes")] * 2, "labels no, yes"),
        ([("yes",), ("no",)], [Prediction("", (0.0,))] * 2, "labels no, yes"),
    ],
)
def test_roc_auc_of_bad_input(references: list, predictions: list[Prediction], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure(metrics.roc_auc("yes", ["no", "yes"]), references, predictions)


def test_roc_auc_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package is imported when it is needed: the other metrics do without."""
    monkeypatch.setitem(sys.modules, "sklearn.metrics", None)
    said = [Prediction("", (0.0, 1.0)), Prediction("", (1.0, 0.0))]
    with pytest.raises(ImportError, match="pip install scikit-learn"):
        measure(metrics.roc_auc("yes", ["no", "yes"]), [("yes",), ("no",)], said)


def test_vqa_accuracy_is_rounded_as_the_script_rounds() -> None:
    answers = ("cat",) * 2 + tuple(f"other {number}" for number in range(8))
    score = measure(metrics.VQA_ACCURACY, [answers, ("cat",) * 10, ("dog",) * 10], [Prediction("cat")] * 3)
    assert score.items == {"0": 60.0, "1": 100.0, "2": 0.0}
    assert score.value == 53.33


@pytest.mark.parametrize("right, total", [(0, 64), (64, 64), (1, 3), (50, 100), (7, 8)])
def test_wilsons_interval_is_scipys(right: int, total: int) -> None:
    scipys = binomtest(right, total).proportion_ci(0.95, method="wilson")
    assert wilson(right, total) == pytest.approx((scipys.low, scipys.high), abs=1e-4)
