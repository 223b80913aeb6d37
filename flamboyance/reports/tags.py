"""What can be told of a single answer: the kind of its question, and what is odd about it.

Tags are the groups in which reports average scores, and filters on the page of predictions:

answer type, question type   as the benchmark's files say, such as "yes/no"
empty                        nothing is left of the answer
cut off                      generation ended at its longest length, not by itself, within the answer
verbose                      twice as many words as in the longest reference, and three or more words longer
counting                     the question asks for a number: its answer type is "number", or it begins with "how many"
copied                       the free answer is that of a demonstration in the prompt
probability                  of the chosen label among all labels, in tenths

Empty, cut-off and verbose answers, and wrong counts, are failures that OpenFlamingo's report shows (arXiv:2308.01390,
section 5.2 and Table 6).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from flamboyance.evaluation.results import Row, finite

EMPTY, CUT, VERBOSE, COUNTING, COPIED = "empty", "cut off", "verbose", "counting", "copied"
FLAGS = (EMPTY, CUT, VERBOSE, COUNTING, COPIED)
COUNTED = ("how many", "what number of", "number of")


def kinds(row: Row) -> dict[str, str]:
    """What the benchmark's files say of the question, as {"answer type": "yes/no"}."""
    found = row.get("kinds")
    return {str(name): str(kind) for name, kind in found.items()} if isinstance(found, dict) else {}


def flags(row: Row, labels: Sequence[str] | None = None) -> list[str]:
    """Those of `FLAGS` that hold for a prediction.

    Args:
        labels: the task's labels; None if answers are free texts.
    """
    answer = str(row.get("answer") or "").strip()
    found = []
    if not answer:
        found.append(EMPTY)
    if row.get("cut_off") is True:
        found.append(CUT)
    if labels is None and is_verbose(answer, row.get("references") or ()):
        found.append(VERBOSE)
    if is_counting(row):
        found.append(COUNTING)
    shown = {str(one.get("answer") or "").strip().casefold() for one in row.get("demonstrations") or ()}
    if labels is None and answer and answer.casefold() in shown:
        found.append(COPIED)
    return found


def is_verbose(answer: str, references: Sequence[Any]) -> bool:
    words, longest = len(answer.split()), max((len(str(one).split()) for one in references), default=0)
    return bool(references) and words >= max(2 * longest, longest + 3)


def is_counting(row: Row) -> bool:
    asked = row.get("asked") or ()
    question = str(asked[0]).strip().lower() if asked else ""
    return kinds(row).get("answer type") == "number" or question.startswith(COUNTED)


def confidence(row: Row, labels: Sequence[str] | None) -> float | None:
    """The probability of the chosen label: the softmax of all labels' scores; None unless each has one."""
    scores = row.get("scores")
    if labels is None or not isinstance(scores, dict) or row.get("answer") not in scores:
        return None
    known = [finite(scores.get(label)) for label in labels]
    mine = finite(scores[row["answer"]])
    if mine is None or any(one is None for one in known):
        return None
    return 1.0 / sum(math.exp(min(700.0, one - mine)) for one in known if one is not None)


def is_right(row: Row) -> bool:
    """Whether the answer is a reference."""
    return row.get("answer") in (row.get("references") or ())


def tags(row: Row, labels: Sequence[str] | None = None) -> list[str]:
    """All tags of a prediction, as the page's filter lists them."""
    found = [f"{name}: {kind}" for name, kind in kinds(row).items()]
    found += flags(row, labels)
    chance = confidence(row, labels)
    if chance is not None:
        tenth = min(9, int(10 * chance))
        found.append(f"probability: {10 * tenth} to {10 * tenth + 10} %")
    return found
