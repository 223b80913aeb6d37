"""CIDEr-D against values worked out by hand."""

import time
from math import exp, sqrt

import pytest

from flamboyance.evaluation.metrics import cider

# Two images, so every n-gram that only one image's references hold weighs log 2, which cancels in a cosine.
OTHER = {"other": ["a blue bird"]}


def score(references: list[str], prediction: str) -> float:
    return cider({"image": references} | OTHER, {"image": prediction, "other": ""})[1]["image"]


@pytest.mark.parametrize(
    "references, prediction, expected",
    [
        # Unigrams and bigrams agree; there are no longer ones: 10 (1 + 1 + 0 + 0) / 4.
        (["red dog"], "Red dog.", 5),
        # One unigram of two.
        (["red dog"], "red cat", 10 * (1 / 2) / 4),
        # Said twice: (2, 1) against (1, 1), clipped to (1, 1); a bigram of two; one bigram longer.
        (["red dog"], "red red dog", 10 * (2 / sqrt(10) + 1 / sqrt(2)) / 4 * exp(-1 / 72)),
        # The mean over references.
        (["red dog", "green tree"], "red dog", 5 / 2),
        (["one two three four"], "one two three four", 10),
        # "a blue" is in the other image alone, whose references count; it is in no reference of this one.
        (["red dog"], "a blue", 0),
        (["red dog"], "", 0),
        (["red dog"], "...", 0),
    ],
)
def test_by_hand(references: list[str], prediction: str, expected: float) -> None:
    assert score(references, prediction) == pytest.approx(expected, abs=1e-12)


def test_what_every_image_says_weighs_nothing() -> None:
    references = {1: ["a dog"], 2: ["a cat"], 3: ["a dog"]}
    corpus, each = cider(references, {1: "a", 2: "a cat", 3: "dog"})
    assert each[1] == 0
    assert each[2] == pytest.approx(5)  # "cat" and "a cat"; "a" has weight 0
    # "dog", of weight log(3/2), is the whole of the unigrams; no bigram against one: a difference of 1.
    assert each[3] == pytest.approx(10 / 4 * exp(-1 / 72))
    assert corpus == pytest.approx(sum(each.values()) / 3)


def test_one_image_scores_nothing() -> None:
    assert cider({1: ["a dog"]}, {1: "a dog"}) == (0, {1: 0})


def test_order_and_kind_of_ids_do_not_matter() -> None:
    references = {"b": ["a red dog"], 7: ["two birds", "birds"], ("x", 1): ["a tree"]}
    predictions = {("x", 1): "a tree", "b": "a dog", 7: "two birds"}
    assert cider(references, predictions)[1] == cider(references, dict(reversed(predictions.items())))[1]
    assert list(cider(references, predictions)[1]) == list(references)


@pytest.mark.parametrize(
    "references, predictions, message",
    [
        ({}, {}, "references"),
        ({1: ["a"], 2: ["b"]}, {1: "a", 3: "c"}, r"\[2\].*\[3\]"),
        ({1: ["a"], 2: []}, {1: "a", 2: "b"}, r"references.*2"),
        ({1: "a"}, {1: "a"}, "list"),
    ],
)
def test_bad_input(references: dict, predictions: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cider(references, predictions)


def test_karpathys_test_split_takes_seconds() -> None:
    words = "a man woman dog red blue street plays with the ball on grass near two small cars".split()
    captions = [" ".join(words[(i * j + j) % len(words)] for j in range(1, 12)) + "." for i in range(30_000)]
    references = {image: captions[5 * image : 5 * image + 5] for image in range(5_000)}
    began = time.process_time()
    cider(references, {image: captions[25_000 + image] for image in references})
    assert time.process_time() - began < 30  # it takes 2 s
