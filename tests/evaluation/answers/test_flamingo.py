"""Scores of a batch are those of its queries."""

from dataclasses import replace

import pytest

from flamboyance import templates
from flamboyance.evaluation.answers.flamingo import FlamingoAnswers
from flamboyance.evaluation.prompts import Prompt
from tests.evaluation.small_tasks import questions
from tests.model.families import make
from tests.test_few_shot import word_beginnings


@pytest.mark.parametrize("shots", [0, 2])
@pytest.mark.parametrize("bare_labels", [False, True])
def test_labels_are_read_after_each_query_of_a_batch(bare_labels, shots, tmp_path):
    """After an empty question the label is `▁cat`, after `x` it is `cat`."""
    answers = FlamingoAnswers(make("llama"), word_beginnings(), beams=1, bare_labels=bare_labels)
    task = questions(tmp_path, labels=("cat", "dog"))
    queries = [replace(one, asked=("x" * (i % 2),)) for i, one in enumerate(task.queries)]
    task = replace(task, queries=queries, template=templates.Template("<image>{question}{text}"))
    prompts = [Prompt.of(task, i, range(shots), shots) for i in range(4)]
    alone = [answers.score([prompt])[0] for prompt in prompts]
    assert answers.score(prompts) == [pytest.approx(row, abs=1e-4) for row in alone]
