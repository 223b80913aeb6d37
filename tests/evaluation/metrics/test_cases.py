"""What the official tools give: pycocoevalcap's tokens and CIDEr, the VQA script's accuracies."""

import json
from pathlib import Path

import pytest

from flamboyance.evaluation.metrics import cider, ptb_tokenize, vqa_accuracy

CASES = json.loads(Path(__file__).with_name("cases.json").read_text(encoding="utf-8"))
TOKENS = json.loads(Path(__file__).with_name("ptb_cases.json").read_text(encoding="utf-8"))
CAPTIONS, QUESTIONS = CASES["cider"], CASES["vqa"]


@pytest.mark.parametrize("image", CAPTIONS["references"])
def test_tokens_of_references(image: str) -> None:
    tokens = [ptb_tokenize(caption) for caption in CAPTIONS["references"][image]]
    assert tokens == CAPTIONS["tokenized_references"][image]


@pytest.mark.parametrize("image", CAPTIONS["predictions"])
def test_tokens_of_predictions(image: str) -> None:
    assert ptb_tokenize(CAPTIONS["predictions"][image]) == CAPTIONS["tokenized_predictions"][image]


def test_tokens_of_odd_strings() -> None:
    """Strings about the rules one by one, and 850 of test_ptb_fuzz.py's, with what Java made of them."""
    wrong = [(text, tokens, ptb_tokenize(text)) for text, tokens in TOKENS if ptb_tokenize(text) != tokens]
    assert len(TOKENS) > 850 and wrong == []


def test_cider() -> None:
    corpus, each = cider(CAPTIONS["references"], CAPTIONS["predictions"])
    assert corpus == pytest.approx(CAPTIONS["cider"], abs=1e-6)
    assert each == pytest.approx(CAPTIONS["cider_per_image"], abs=1e-6)


@pytest.mark.parametrize("normalize", ["always", "official"])
def test_vqa_accuracy(normalize: str) -> None:
    """Where all annotators agree, these predictions equal their answer or differ from it in every form."""
    pairs = zip(QUESTIONS["answers"], QUESTIONS["predictions"], strict=True)
    found = [round(100 * vqa_accuracy(answers, said, normalize), 2) for answers, said in pairs]
    assert len(found) == 400 and found == QUESTIONS["per_question"]


def test_vqa_accuracy_of_all() -> None:
    accuracies = map(vqa_accuracy, QUESTIONS["answers"], QUESTIONS["predictions"])
    assert round(100 * sum(accuracies) / len(QUESTIONS["answers"]), 2) == QUESTIONS["accuracy"]
