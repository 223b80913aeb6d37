"""CIDEr, VQA accuracy, ROC AUC and accuracy, equal to the official tools' values, without Java."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from flamboyance.evaluation.metrics import classification
from flamboyance.evaluation.metrics.cider import cider
from flamboyance.evaluation.metrics.intervals import interval_of_mean
from flamboyance.evaluation.metrics.ptb.tokenizer import ptb_tokenize, ptb_tokenize_all
from flamboyance.evaluation.metrics.vqa import (
    ALWAYS,
    OFFICIAL,
    PREDICTION,
    vqa_accuracy,
    vqa_accuracy_without_ids,
)
from flamboyance.evaluation.task import Example, Metric, Prediction, Score

__all__ = [
    "CASELESS_MATCH",
    "CIDER",
    "EXACT_MATCH",
    "TOP_1",
    "VQA_ACCURACY",
    "VQA_ACCURACY_OFFICIAL",
    "VQA_ACCURACY_VIZWIZ",
    "cider",
    "ptb_tokenize",
    "ptb_tokenize_all",
    "roc_auc",
    "vqa_accuracy",
    "vqa_accuracy_by_entry",
    "vqa_accuracy_without_ids",
]


def _score(items: Mapping[str, float]) -> Score:
    """The mean of items from 0 to 1 (CIDEr: to 10), times 100."""
    scaled = {key: 100 * value for key, value in items.items()}
    values = list(scaled.values())
    return Score(float(np.mean(values)), scaled, interval_of_mean(values))


def _cider(examples: Sequence[Example], predictions: Sequence[Prediction]) -> Score:
    # The bootstrap resamples the scores of the whole set: the weights of n-grams are not computed again.
    references = {example.id: list(example.references) for example in examples}
    answers = {example.id: one.answer for example, one in zip(examples, predictions, strict=True)}
    return _score(cider(references, answers)[1])


def _vqa(examples: Sequence[Example], predictions: Sequence[Prediction], normalize: str) -> Score:
    pairs = zip(examples, predictions, strict=True)
    return _rounded(
        _score({example.id: vqa_accuracy(example.references, one.answer, normalize) for example, one in pairs})
    )


def _rounded(score: Score) -> Score:
    """Rounds to two decimals, as the official script does, both for the set and for each question."""
    return Score(round(score.value, 2), {key: round(value, 2) for key, value in score.items.items()}, score.interval)


def vqa_accuracy_by_entry(entries: Mapping[str, Sequence[Mapping[str, Any]]]) -> Metric:
    """VQA accuracy with OpenFlamingo's error for VizWiz: see `vqa_accuracy_without_ids`.

    Args:
        entries: question id -> the annotators' entries of the file, in the order of the references.
    """

    def measure(examples: Sequence[Example], predictions: Sequence[Prediction]) -> Score:
        items = {}
        for example, one in zip(examples, predictions, strict=True):
            rest = [_without_answer(entry) for entry in entries[example.id]]
            items[example.id] = vqa_accuracy_without_ids(example.references, rest, one.answer)
        return _rounded(_score(items))

    return Metric("VQA accuracy", measure, "annotators told apart by their entries, all answers normalized")


def _without_answer(entry: Mapping[str, Any]) -> str:
    """An entry without its answer, as a text that can be compared; answers are compared normalized."""
    return json.dumps({key: entry[key] for key in sorted(entry) if key != "answer"})


def roc_auc(positive: str, labels: Sequence[str]) -> Metric:
    """Area under the ROC curve of a label's probability among the task's labels."""
    return Metric("ROC AUC", partial(classification.area, labels=tuple(labels), positive=positive))


CIDER = Metric("CIDEr", _cider)
VQA_ACCURACY = Metric("VQA accuracy", partial(_vqa, normalize=ALWAYS), "all answers normalized")
VQA_ACCURACY_OFFICIAL = Metric(
    "VQA accuracy", partial(_vqa, normalize=OFFICIAL), "answers normalized where annotators differ"
)
VQA_ACCURACY_VIZWIZ = Metric("VQA accuracy", partial(_vqa, normalize=PREDICTION), "predictions normalized")
TOP_1 = Metric("top-1", classification.right)
EXACT_MATCH = Metric("exact match", classification.right)
CASELESS_MATCH = Metric("accuracy", classification.right_without_case, "without case")
