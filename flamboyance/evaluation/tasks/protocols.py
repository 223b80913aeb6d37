"""Differences between the papers and the code of the published numbers; each is a row in docs/evaluation.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

PAPERS, OPENFLAMINGO = "papers", "openflamingo"


def check_protocol(protocol: str) -> None:
    if protocol not in (PAPERS, OPENFLAMINGO):
        raise ValueError(f"protocol={protocol!r}: expected {PAPERS!r} or {OPENFLAMINGO!r}")


def separator(protocol: str) -> str:
    """The text after a demonstration of captions and questions: nothing, as in training; a newline in the code."""
    return "\n" if protocol == OPENFLAMINGO else ""


def shown_answer(answers: Sequence[str], protocol: str) -> str:
    """The answer of a demonstration: the most frequent one, the first of equals; in the code the first annotator's."""
    if protocol == OPENFLAMINGO:
        return answers[0]
    counts = Counter(answer for answer in answers if answer.strip())
    return max(counts, key=counts.__getitem__, default=answers[0])
