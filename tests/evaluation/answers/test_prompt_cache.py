"""Shared demonstrations are computed once: logits, answers and scores stay those of whole prompts, for every model."""

from dataclasses import replace

import pytest
import torch

from flamboyance.evaluation.answers.prompt_cache import Prefix
from flamboyance.evaluation.answers.transformers_vlm import TransformersAnswers
from flamboyance.evaluation.prompts import Prompt
from tests.evaluation.answers import tiny_vlms
from tests.evaluation.small_tasks import captions, questions


@pytest.fixture(scope="module", params=list(tiny_vlms.KINDS))
def opened(request, tmp_path_factory):
    folder = tiny_vlms.KINDS[request.param](tmp_path_factory.mktemp("model"))
    return TransformersAnswers.open(str(folder), "cpu", torch.float32, beams=1)


def fresh(opened, beams=1, whole=False) -> TransformersAnswers:
    answers = TransformersAnswers(opened.model, opened.processor, beams)
    answers._caches = False if whole else None
    return answers


def shared(task, number=5, shots=3):
    return [Prompt.of(task, i, range(shots), shots) for i in range(number)]


def alone(answers, prompt) -> torch.Tensor:
    """The logits after a whole prompt, by itself: no cache, no padding, no positions but the model's own."""
    with torch.inference_mode():
        return answers.model(**answers._inputs([answers._text(prompt)], [prompt])).logits[0, -1]


def test_logits_of_padded_rows_are_those_of_whole_prompts(opened, tmp_path):
    answers, prompts = fresh(opened), shared(questions(tmp_path, labels=None))
    assert len({len(answers._text(prompt)) for prompt in prompts}) == 3  # so there is padding, or groups
    seen = 0
    with torch.inference_mode():
        for places, rows in answers._computed(prompts):
            assert rows is not None
            found = rows.following(answers.model, [[0]] * len(places))[:, 0]
            for i, logits in zip(places, found, strict=True):
                torch.testing.assert_close(logits, alone(answers, prompts[i]), atol=1e-4, rtol=1e-4)
                seen += 1
    assert seen == 5 and answers._prefix is not None


@pytest.mark.parametrize("beams", [1, 3])
def test_answers_are_those_of_whole_prompts(opened, beams, tmp_path):
    task = captions(tmp_path / "c")
    prompts = [*shared(task, 4), *shared(replace(task, name="blind"), 0)]
    assert fresh(opened, beams).generate(prompts) == fresh(opened, beams, whole=True).generate(prompts)
    blind = [replace(prompt, blind=True) for prompt in prompts]
    assert fresh(opened, beams).generate(blind) == fresh(opened, beams, whole=True).generate(blind)


@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
def test_scores_are_those_of_whole_prompts(opened, own, tmp_path):
    task = questions(tmp_path)
    prompts = [Prompt.of(task, i, range(i, i + 2), 2) for i in range(3)] if own else shared(task, 4, 2)
    answers = fresh(opened)
    found, expected = (torch.tensor(one.score(prompts)) for one in (answers, fresh(opened, whole=True)))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert answers._caches


def test_demonstrations_are_computed_once(opened, tmp_path, monkeypatch):
    computed = []
    of = Prefix.of.__func__
    monkeypatch.setattr(Prefix, "of", classmethod(lambda cls, *given: computed.append(1) or of(cls, *given)))
    answers, prompts = fresh(opened), shared(captions(tmp_path), 6)
    tokens = []
    forward = answers.model.forward
    monkeypatch.setattr(
        answers.model, "forward", lambda *a, **k: tokens.append(k["input_ids"].numel()) or forward(*a, **k)
    )
    for start in (0, 2, 4):
        answers.generate(prompts[start : start + 2])
    assert len(computed) == 1
    whole = sum(answers.lengths(prompts[:1]))
    assert sum(sorted(tokens)[:-2]) < 6 * whole / 2  # but the prefix and the prompt that is compared
    answers.generate([Prompt.of(captions(tmp_path), i, (4, 5), 2) for i in range(2)])
    assert len(computed) == 2


def test_one_query_at_a_time_uses_the_prefix_from_the_second_on(opened, tmp_path):
    answers, prompts = fresh(opened), shared(captions(tmp_path), 3)
    found = [answers.generate([prompt])[0] for prompt in prompts]
    assert answers._prefix is not None and found == fresh(opened, whole=True).generate(prompts)


def test_a_model_that_a_cache_does_not_suit_is_answered_by_whole_prompts(tmp_path):
    folder = tiny_vlms.llava(tmp_path / "model")
    answers = TransformersAnswers.open(str(folder), "cpu", torch.float32, beams=1)
    prompts = shared(captions(tmp_path / "data"), 3)
    expected = fresh(answers, whole=True).generate(prompts)
    layer = answers.model.model.language_model.layers[0]
    # A model whose state several tokens do not continue: behind a cache their first hidden state counts double.
    layer.register_forward_pre_hook(_doubled, with_kwargs=True)
    assert answers.generate(prompts) == expected and answers._caches is False


def _doubled(module, args, kwargs):
    cache = kwargs.get("past_key_values")
    if args[0].shape[1] > 1 and cache is not None and cache.get_seq_length() > 0:
        return (args[0] * torch.tensor([2.0] + [1.0] * (args[0].shape[1] - 1))[:, None], *args[1:]), kwargs
    return None
