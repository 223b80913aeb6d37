"""Where the papers and the code behind their published numbers part ways; each a row in docs/evaluation.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

PAPERS, OPENFLAMINGO = "papers", "openflamingo"


def check_protocol(protocol: str) -> None:
    if protocol not in (PAPERS, OPENFLAMINGO):
        raise ValueError(f"protocol={protocol!r}: expected {PAPERS!r} or {OPENFLAMINGO!r}")


def separator(protocol: str) -> str:
    """What stands after a demonstration of captions and questions: nothing, as in training; the code had a newline."""
    return "\n" if protocol == OPENFLAMINGO else ""


def shown_answer(answers: Sequence[str], protocol: str) -> str:
    """What a demonstration answers: what most annotators say, the first of equals; the code took the first one's."""
    if protocol == OPENFLAMINGO:
        return answers[0]
    counts = Counter(answer for answer in answers if answer.strip())
    return max(counts, key=counts.__getitem__, default=answers[0])
