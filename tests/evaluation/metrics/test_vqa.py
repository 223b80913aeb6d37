"""VQA accuracy by hand, and what a wrong leave-one-out costs."""

import re

import pytest

from flamboyance.evaluation.metrics import VQA_ACCURACY, vqa_accuracy, vqa_accuracy_by_entry
from flamboyance.evaluation.metrics.vqa import (
    CONTRACTIONS,
    normalize_answer,
    submitted_answer,
    vqa_accuracy_without_ids,
)
from flamboyance.evaluation.task import Example, Prediction


@pytest.mark.parametrize("agreeing, accuracy", [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_by_number_of_annotators(agreeing: int, accuracy: float) -> None:
    others = [f"other {number}" for number in range(10 - agreeing)]
    assert vqa_accuracy(["cat"] * agreeing + others, "cat") == pytest.approx(accuracy)


@pytest.mark.parametrize(
    "answer, normal",
    [
        ("  Two\tdogs.\n", "2 dogs"),
        ("the cat and a dog", "cat and dog"),
        ("red/blue", "red blue"),
        ("red / blue", "red blue"),
        ("yes , no", "yes no"),  # beside a space a mark goes, and parts nothing
        ("1,000", "1000"),
        ("1,000/year", "1000year"),  # a number with a comma: all marks go
        ("3.5", "3.5"),
        ("3. 5", "3 5"),
        ("U.S.", "us"),
        ("10:30", "10:30"),  # not on the list
        ("$5", "$5"),
        ("dont", "don't"),
        ("Couldn'tve", "couldn't've"),
        ("couldntve", "couldntve"),
        ("somebody'd", "somebodyd"),
        ("none", "0"),
        ("a", ""),
    ],
)
def test_normal_form(answer: str, normal: str) -> None:
    assert normalize_answer(answer) == normal


def test_the_script_drops_32_periods() -> None:
    # It hands re.UNICODE to `sub` as the count.
    assert normalize_answer("a." * 40) == "a" * 32 + "a." * 8
    assert int(re.UNICODE) == 32


def test_contractions() -> None:
    assert CONTRACTIONS["aint"] == "ain't" and CONTRACTIONS["twas"] == "'twas"
    assert CONTRACTIONS["hed've"] == CONTRACTIONS["he'dve"] == "he'd've" and "hedve" not in CONTRACTIONS
    assert all(key.count("'") + 1 == whole.count("'") for key, whole in CONTRACTIONS.items() if key != "somebody'd")


@pytest.mark.parametrize(
    "answers, prediction, always, official",
    [
        # All gave the same answer: the official script compares it as it is, but for white space.
        (["yes"] * 10, "Yes", 1, 0),
        (["yes"] * 10, "yes", 1, 1),
        (["yes"] * 10, " yes\n", 1, 1),
        (["yes\n", " yes"] * 5, "yes", 1, 1),
        (["ten"] * 10, "10", 1, 0),
        (["a"] * 10, "", 1, 0),
        (["New\tYork"] * 10, "New York", 1, 1),
        (["New York."] * 10, "New York.", 1, 1),
        (["yes"], "yes", 0, 0),
        # They gave different answers: both sides are normalized.
        (["yes"] * 9 + ["no"], "Yes", 1, 1),
        (["yes"] * 9 + ["Yes"], "YES!", 1, 1),
        (["ten"] * 9 + ["10"], "the 10", 1, 1),
        (["a"] * 2 + ["b"] * 8, "the", 0.6, 0.6),
        (["red/blue"] * 9 + ["red"], "red blue", 1, 1),
    ],
)
def test_always_normalized_or_only_where_annotators_differ(answers, prediction, always, official) -> None:
    assert vqa_accuracy(answers, prediction) == pytest.approx(always)
    assert vqa_accuracy(answers, prediction, normalize="always") == pytest.approx(always)
    assert vqa_accuracy(answers, prediction, normalize="official") == pytest.approx(official)


def test_another_normalization_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'never'.*'always'.*'official'"):
        vqa_accuracy(["yes"] * 10, "yes", normalize="never")


def test_a_sent_answer_is_normalized_unless_nothing_is_left() -> None:
    assert [submitted_answer(one) for one in ("Two, the dogs!", "A", "...", "the", "", "an a", "A.")] == [
        "2 dogs", "A", "...", "the", "", "an a", "A.",
    ]  # fmt: skip


def test_both_sides_are_normalised() -> None:
    assert vqa_accuracy(["The U.S."] * 10, "us") == 1
    assert vqa_accuracy(["two"] * 2 + ["2"] * 2 + ["x"] * 6, "2") == 1


def test_entries_told_apart_by_confidence_alone() -> None:
    """OpenFlamingo's error: a majority of one mind is left out as one."""
    answers = ["cat"] * 10
    assert vqa_accuracy_without_ids(answers, ["yes"] * 10, "cat") == 0
    assert vqa_accuracy_without_ids(answers, [str(number) for number in range(10)], "cat") == 1
    # Six of one mind see none left; four others see six: 0.4.
    answers, sure = ["cat"] * 6 + ["dog"] * 4, ["yes"] * 10
    assert vqa_accuracy_without_ids(answers, sure, "cat") == pytest.approx(0.4)
    # Answers are compared once they are normalised: "Cat." is "cat".
    assert vqa_accuracy_without_ids(["Cat."] * 5 + ["cat"] * 5, sure, "cat") == 0


def test_the_metric_with_that_error_reads_the_files_entries() -> None:
    entries = [{"answer": "cat", "answer_confidence": "yes"}] * 6 + [{"answer": "dog", "answer_confidence": "no"}] * 4
    example = Example("1", None, "cat", (), tuple(entry["answer"] for entry in entries))  # type: ignore[arg-type]
    said = [Prediction("cat")]
    assert vqa_accuracy_by_entry({"1": entries}).measure([example], said).value == pytest.approx(40)
    assert VQA_ACCURACY.measure([example], said).value == pytest.approx(100)
    numbered = [entry | {"answer_id": number} for number, entry in enumerate(entries)]
    assert vqa_accuracy_by_entry({"1": numbered}).measure([example], said).value == pytest.approx(100)


@pytest.mark.parametrize("answers, message", [([], "empty"), ("yes", "list of texts")])
def test_bad_answers(answers: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vqa_accuracy(answers, "yes")


def test_as_many_confidences_as_answers() -> None:
    with pytest.raises(ValueError, match=r"2 .*1 "):
        vqa_accuracy_without_ids(["a", "b"], ["yes"], "a")


@pytest.mark.parametrize(
    ("normalize", "answers", "prediction", "accuracy"),
    [
        ("official", ["stop"] * 10, "Stop.", 0),  # VQAv2's script: all annotators agree
        ("official", ["stop"] * 9 + ["go"], "Stop.", 1),
        ("always", ["Stop"] * 10, "the stop.", 1),  # TextVQA's
        ("prediction", ["unanswerable"] * 10, "Unanswerable.", 1),  # VizWiz's
        ("prediction", ["Two Dogs"] * 9 + ["two dogs"], "two dogs", 0),  # its annotators' answers stay as they are
        ("prediction", ["2 dogs"] * 9 + ["two dogs"], "two dogs", 1),
    ],
)
def test_each_benchmark_normalizes_as_its_script(normalize, answers, prediction, accuracy) -> None:
    assert vqa_accuracy(answers, prediction, normalize) == pytest.approx(accuracy)
