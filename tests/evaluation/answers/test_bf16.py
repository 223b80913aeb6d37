"""In bfloat16, shared demonstrations and batches change an answer only where two tokens are equally likely."""

import pytest
import torch

import flamboyance as fl
from flamboyance.evaluation.answers.flamingo import FlamingoAnswers
from flamboyance.evaluation.answers.transformers_vlm import TransformersAnswers
from flamboyance.evaluation.prompts import Prompt
from flamboyance.images import load_image
from flamboyance.prompting import ending_tokens
from tests.evaluation.answers import tiny_vlms
from tests.evaluation.small_tasks import captions, questions
from tests.tiny import save_tiny_flamingo

ROUNDING = 2**-6  # of the largest logit: a few roundings to 8 bits
QUERIES = 24


def vlm(kind, folder):
    found = TransformersAnswers.open(str(tiny_vlms.KINDS[kind](folder)), "cpu", torch.bfloat16, beams=1)
    return lambda: TransformersAnswers(found.model, found.processor, beams=1)


def flamingo(folder):
    directory = save_tiny_flamingo(folder)
    model = fl.FlamingoForConditionalGeneration.from_pretrained(str(directory)).to(torch.bfloat16)
    processor = fl.FlamingoProcessor.from_pretrained(directory)
    return lambda: FlamingoAnswers(model, processor, beams=1)


@pytest.fixture(scope="module", params=["llava", "qwen2.5-vl", "idefics3", "flamingo"])
def opened(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    return flamingo(folder) if request.param == "flamingo" else vlm(request.param, folder)


def batched(answer, prompts):
    """In two batches, the second larger."""
    return [*answer(prompts[: QUERIES // 3]), *answer(prompts[QUERIES // 3 :])]


def alone(opened, ask, prompts):
    """Each query with its whole prompt: a new cache and a first batch have nothing to share."""
    return [ask(opened(), [prompt])[0] for prompt in prompts]


def gap(answers, prompt, one, other) -> float:
    """The difference of the logits where two answers to a prompt part, as a share of the largest."""
    tokenizer, model = answers.processor.tokenizer, answers.model
    endings = ending_tokens(model, tokenizer)
    rows = [[*tokenizer(text, add_special_tokens=False).input_ids, endings[0]] for text in (one, other)]
    same = next(i for i, (a, b) in enumerate(zip(*rows, strict=False)) if a != b)
    text = prompt.text if isinstance(answers, FlamingoAnswers) else answers._text(prompt)
    said = tokenizer.decode(rows[0][:same])
    inputs = answers.processor(
        text=[text + said], images=[[load_image(image) for image in prompt.images]], return_tensors="pt"
    )
    with torch.inference_mode():
        logits = model(**inputs.to("cpu", torch.bfloat16)).logits[0, -1].float()
    likely = [logits[endings].max() if row[same] in endings else logits[row[same]] for row in rows]
    return float((likely[0] - likely[1]).abs() / logits.abs().max())


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
def test_answers_differ_only_where_two_tokens_are_equally_likely(opened, shared, tmp_path):
    task = captions(tmp_path, queries=QUERIES)
    shown = [range(4) if shared else range(i % 6, i % 6 + 4) for i in range(QUERIES)]
    prompts = [Prompt.of(task, i, demonstrations, 4) for i, demonstrations in enumerate(shown)]
    answers = opened()
    found = batched(answers.generate, prompts)
    assert (answers._prefix is not None) == shared
    expected = alone(opened, lambda one, some: one.generate(some), prompts)
    differ = [i for i in range(QUERIES) if found[i] != expected[i]]
    assert len(differ) <= QUERIES // 4
    for i in differ:
        assert gap(answers, prompts[i], found[i], expected[i]) < ROUNDING, (found[i], expected[i])


def test_labels_keep_their_log_probabilities(opened, tmp_path):
    task = questions(tmp_path, queries=QUERIES)
    prompts = [Prompt.of(task, i, range(4), 4) for i in range(QUERIES)]
    found = torch.tensor(batched(opened().score, prompts))
    expected = torch.tensor(alone(opened, lambda one, some: one.score(some), prompts))
    assert (found - expected).abs().max() < ROUNDING * expected.abs().max()
