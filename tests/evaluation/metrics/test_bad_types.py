"""A metric that is given another type says so, with the value."""

import pytest

from flamboyance.evaluation import metrics


@pytest.mark.parametrize(
    ("call", "given"),
    [
        (lambda: metrics.vqa_accuracy(["yes"], ["yes"]), r"\['yes'\]"),
        (lambda: metrics.vqa_accuracy(["yes"], None), "None"),
        (lambda: metrics.vqa_accuracy(["yes", 3], "yes"), "3"),
        (lambda: metrics.vqa_accuracy(None, "yes"), "None"),
        (lambda: metrics.vqa_accuracy("yes", "yes"), "'yes'"),
        (lambda: metrics.vqa_accuracy({"yes": 10}, "yes"), "'yes': 10"),
        (lambda: metrics.vqa_accuracy_without_ids(["yes"], 3, "yes"), "3"),
        (lambda: metrics.vqa_accuracy_without_ids(["yes"], ["yes"], 3), "3"),
        (lambda: metrics.ptb_tokenize(3), "3"),
        (lambda: metrics.ptb_tokenize(["a cat"]), r"\['a cat'\]"),
        (lambda: metrics.ptb_tokenize_all("a cat"), "'a cat'"),
        (lambda: metrics.ptb_tokenize_all(["a cat", None]), "None"),
        (lambda: metrics.cider(["a cat"], ["a cat"]), r"\['a cat'\]"),
        (lambda: metrics.cider({1: ["a cat"]}, ["a cat"]), r"\['a cat'\]"),
        (lambda: metrics.cider({1: ["a cat"]}, {1: ["a cat"]}), r"\['a cat'\]"),
        (lambda: metrics.cider({1: ["a cat", 3]}, {1: "a cat"}), "3"),
        (lambda: metrics.cider({1: 3}, {1: "a cat"}), "3"),
        (lambda: metrics.cider({1: "a cat"}, {1: "a cat"}), "'a cat'"),
    ],
)
def test_the_type_is_named(call, given: str) -> None:
    with pytest.raises(ValueError, match=given):
        call()
