"""Puts tasks to a model: what a user would write, a FewShotTask over image files."""

from collections.abc import Callable, Sequence
from pathlib import Path

from flamboyance.demo.results import AnsweredQuery, AnsweredSet, AnsweredTask, Reply
from flamboyance.demo.tasks import Example, Set, Task
from flamboyance.few_shot import FewShotTask
from flamboyance.flamingo import FlamingoForConditionalGeneration
from flamboyance.processing import FlamingoProcessor

MAX_NEW_TOKENS = 24  # the longest caption has 16


def ask(
    model: FlamingoForConditionalGeneration,
    processor: FlamingoProcessor,
    task: Task,
    folder: Path,
    shots: Sequence[int],
    advance: Callable[[int], None] = lambda _: None,
) -> AnsweredTask:
    """Every query of the task after each number of demonstrations.

    Args:
        folder: where the examples' files are.
        advance: told how many queries were just answered.
    """
    sets = []
    for part in task.sets:
        queries = [AnsweredQuery(query, {}) for query in part.queries]
        for count in shots:
            replies = _replies(model, processor, task, part, folder, count)
            for query, reply in zip(queries, replies, strict=True):
                query.replies[count] = reply
            advance(len(queries))
        sets.append(AnsweredSet(part.demonstrations, queries, part.candidates))
    return AnsweredTask(task, sets)


def _replies(
    model: FlamingoForConditionalGeneration,
    processor: FlamingoProcessor,
    task: Task,
    part: Set,
    folder: Path,
    shots: int,
) -> list[Reply]:
    shown = [(folder / one.image, *one.asked, one.answer) for one in part.demonstrations[:shots]]
    few_shot = FewShotTask(model, processor, shown, template=task.template)
    queries = [(folder / one.image, *one.asked) for one in part.queries]
    if part.candidates is None:
        answers = few_shot(queries, max_new_tokens=MAX_NEW_TOKENS)
        return [Reply(said, _same(said, one)) for said, one in zip(answers, part.queries, strict=True)]
    chosen = few_shot.classify(queries, part.candidates)
    return [
        Reply(label, _same(label, one), round(probabilities[label], 4))
        for (label, probabilities), one in zip(chosen, part.queries, strict=True)
    ]


def _same(said: str, example: Example) -> bool:
    """Whether an answer is the true one, white space aside."""
    return said.split() == example.answer.split()
