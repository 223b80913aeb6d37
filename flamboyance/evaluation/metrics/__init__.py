"""Metrics: CIDEr, VQA accuracy, ROC AUC, accuracy; numbers as the official tools give them, without Java."""

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
from flamboyance.evaluation.metrics.vqa import ALWAYS, OFFICIAL, vqa_accuracy, vqa_accuracy_without_ids
from flamboyance.evaluation.task import Example, Metric, Prediction, Score

__all__ = [
    "CIDER",
    "EXACT_MATCH",
    "TOP_1",
    "VQA_ACCURACY",
    "VQA_ACCURACY_OFFICIAL",
    "cider",
    "ptb_tokenize",
    "ptb_tokenize_all",
    "roc_auc",
    "vqa_accuracy",
    "vqa_accuracy_by_entry",
    "vqa_accuracy_without_ids",
]


def _score(items: Mapping[str, float]) -> Score:
    """Times 100: the mean of items of 0 to 1 (CIDEr: to 10)."""
    scaled = {key: 100 * value for key, value in items.items()}
    values = list(scaled.values())
    return Score(float(np.mean(values)), scaled, interval_of_mean(values))


def _cider(examples: Sequence[Example], predictions: Sequence[Prediction]) -> Score:
    # The interval draws queries again with the scores that they have here: n-grams keep their weights.
    references = {example.id: list(example.references) for example in examples}
    said = {example.id: one.answer for example, one in zip(examples, predictions, strict=True)}
    return _score(cider(references, said)[1])


def _vqa(examples: Sequence[Example], predictions: Sequence[Prediction], normalize: str) -> Score:
    pairs = zip(examples, predictions, strict=True)
    return _rounded(
        _score({example.id: vqa_accuracy(example.references, one.answer, normalize) for example, one in pairs})
    )


def _rounded(score: Score) -> Score:
    """To two decimals, as the official script gives its accuracies: of all questions, and of each."""
    return Score(round(score.value, 2), {key: round(value, 2) for key, value in score.items.items()}, score.interval)


def vqa_accuracy_by_entry(entries: Mapping[str, Sequence[Mapping[str, Any]]]) -> Metric:
    """VQA accuracy with the error that OpenFlamingo's has for VizWiz: see `vqa_accuracy_without_ids`.

    Args:
        entries: of each question's annotators, by its id, in the order of the references, as the file has them.
    """

    def measure(examples: Sequence[Example], predictions: Sequence[Prediction]) -> Score:
        items = {}
        for example, one in zip(examples, predictions, strict=True):
            rest = [_without_answer(entry) for entry in entries[example.id]]
            items[example.id] = vqa_accuracy_without_ids(example.references, rest, one.answer)
        return _rounded(_score(items))

    return Metric("VQA accuracy", measure, "annotators told apart by their entries, all answers normalized")


def _without_answer(entry: Mapping[str, Any]) -> str:
    """What tells entries apart beside their answers, which are compared once they are normalised."""
    return json.dumps({key: entry[key] for key in sorted(entry) if key != "answer"})


def roc_auc(positive: str, labels: Sequence[str]) -> Metric:
    """Area under the ROC curve of a label's probability among the task's labels."""
    return Metric("ROC AUC", partial(classification.area, labels=tuple(labels), positive=positive))


CIDER = Metric("CIDEr", _cider)
VQA_ACCURACY = Metric("VQA accuracy", partial(_vqa, normalize=ALWAYS), "all answers normalized")
VQA_ACCURACY_OFFICIAL = Metric(
    "VQA accuracy", partial(_vqa, normalize=OFFICIAL), "answers normalized where annotators differ"
)
TOP_1 = Metric("top-1", classification.right)
EXACT_MATCH = Metric("exact match", classification.right)
