"""A model of transformers answers the same prompts: LLaVA's architecture, tiny, with and without a chat template."""

import json

import pytest
import torch
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from flamboyance import catalog
from flamboyance.cli import main
from flamboyance.evaluation import run
from flamboyance.evaluation.answers.transformers_vlm import TransformersAnswers
from flamboyance.evaluation.prompts import Prompt
from flamboyance.evaluation.run import Settings
from flamboyance.images import load_image
from tests.evaluation.answers import tiny_vlms
from tests.evaluation.small_tasks import captions, questions
from tests.tiny import IMAGE_SIZE, tiny_tokenizer

CHAT = (
    "{% for message in messages %}{{ message.role }} : {% for part in message.content %}"
    "{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %} {% endfor %}. {% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)


def save_tiny_llava(folder, chat: bool):
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"], "pad_token": "<pad>"})
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=IMAGE_SIZE,
            patch_size=8,
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.3,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=4,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    side = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    LlavaProcessor(
        CLIPImageProcessor(size=side, crop_size=side), tokenizer, patch_size=8, image_token="<image>",
        vision_feature_select_strategy="default", num_additional_image_tokens=1, chat_template=CHAT if chat else None,
    ).save_pretrained(folder)  # fmt: skip
    return folder


@pytest.fixture(scope="module", params=["chat", "plain"])
def llava(request, tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("llava"), request.param == "chat")


@pytest.fixture
def answers(llava):
    return TransformersAnswers.open(str(llava), "cpu", torch.float32)


def alone(answers, text, images):
    return answers.processor(text=[text], images=[[load_image(i) for i in images]], return_tensors="pt")


def test_texts(answers, tmp_path):
    prompt = Prompt.of(questions(tmp_path), 1, [3], 1)
    if answers.chat:
        assert answers._text(prompt) == (
            "user : <image>Question:what is this ? Short answer: . assistant : no . "
            "user : <image>Question:is this a cat ? Short answer: . assistant : "
        ).replace("<image>", "<image> ")
    else:
        assert answers._text(prompt) == prompt.text


def test_another_processor_counts_as_another_model(answers, monkeypatch):
    before = answers.describe()
    assert (before["chat_template"] is not None) == answers.chat != answers.continues
    monkeypatch.setattr(answers.processor.image_processor, "image_mean", [0.0, 0.0, 0.0])
    assert {key for key, value in answers.describe().items() if value != before[key]} == {"preprocessing"}
    monkeypatch.setattr(answers.processor, "chat_template", "{{ messages }}")
    other = TransformersAnswers(answers.model, answers.processor)
    assert other.describe()["chat_template"] not in (None, before["chat_template"])


def test_blind_demonstrations_have_no_image(answers, tmp_path):
    prompt = Prompt.of(captions(tmp_path), 0, [3, 4], 0)
    assert answers._text(prompt).count("<image>") == 1 == len(prompt.images)


def test_batches_answer_as_one_by_one(answers, tmp_path):
    task = captions(tmp_path)
    prompts = [Prompt.of(task, i, range(i % 3), i % 3 or 1) for i in range(6)]
    together = answers.generate(prompts)
    assert together == [answers.generate([prompt])[0] for prompt in prompts]
    inputs = alone(answers, answers._text(prompts[2]), prompts[2].images)
    out = answers.model.generate(**inputs, max_new_tokens=4, num_beams=3, length_penalty=0.0, do_sample=False)
    assert together[2] == answers.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def test_scores(answers, tmp_path):
    task = questions(tmp_path)
    prompts = [Prompt.of(task, i, range(i), i) for i in range(1, 4)]
    found = answers.score(prompts)
    for prompt, row in zip(prompts, found, strict=True):
        for label, score in zip(task.labels, row, strict=True):
            text = answers._text(prompt)
            both = alone(answers, text + label, prompt.images)
            new = both["input_ids"].shape[1] - alone(answers, text, prompt.images)["input_ids"].shape[1]
            logits = answers.model(**both).logits[0, -new - 1 : -1].log_softmax(-1)
            assert score == pytest.approx(logits.gather(1, both["input_ids"][0, -new:, None]).mean().item(), abs=1e-4)


TEMPLATES = {
    "as LLaVA's and SmolVLM's": ("llava", tiny_vlms.chat("<image>")),  # ends in `assistant :`, and shows `: cat`
    "that ends in a space": ("llava", tiny_vlms.chat("<image>").replace("assistant :{% endif", "assistant : {% endif")),
    "as Qwen's": ("qwen2.5-vl", tiny_vlms.CHAT_ML),
}


@pytest.mark.parametrize("kind, template", TEMPLATES.values(), ids=list(TEMPLATES))
def test_a_label_is_scored_as_demonstrations_show_it(kind, template, tmp_path):
    answers = TransformersAnswers.open(str(tiny_vlms.KINDS[kind](tmp_path / "model")), "cpu", torch.float32)
    answers.processor.chat_template = template
    task = questions(tmp_path / "data")
    prompts = [Prompt.of(task, i, range(2), 2) for i in range(2)]
    before = "" if "qwen" in kind else " "  # " no" is one token
    assert f"{before}no" in answers._text(prompts[0])
    for prompt, row in zip(prompts, answers.score(prompts), strict=True):
        inputs = alone(answers, answers._text(prompt).rstrip(" "), prompt.images)
        likely = answers.model(**inputs).logits[0, -1].log_softmax(-1)
        for label, score in zip(("yes", "no"), row, strict=False):
            token = answers.tokenizer.convert_tokens_to_ids(before + label)
            assert score == pytest.approx(likely[token].item(), abs=1e-4)


def test_lengths_count_images(answers, tmp_path):
    prompts = [Prompt.of(captions(tmp_path), i, range(i), i) for i in range(1, 4)]
    true = [alone(answers, answers._text(p), p.images)["input_ids"].shape[1] for p in prompts]
    assert answers.lengths(prompts) == true


def test_a_whole_run(answers, tmp_path):
    about = {"model": answers.describe(), "protocol": "papers", "fixed": {}, "tasks": {}}
    tasks = [captions(tmp_path / "c"), questions(tmp_path / "q")]
    found = run.evaluate(tasks, answers, Settings(tmp_path / "run", shots=(0, 2), seeds=(0,)), about)
    assert set(found) == {"captions", "questions"} and set(found["captions"]["random"]) == {"0", "2"}


def test_the_command_opens_it(llava, tmp_path, capsys):
    assert not catalog.resolve(llava).is_flamingo() and catalog.resolve("mini").is_flamingo()
    captions(tmp_path)
    lines = [f"shown/{i}.png,{('cat', 'dog')[i % 2]}" for i in range(12)]
    (tmp_path / "pets.csv").write_text("\n".join(["image,label", *lines]) + "\n", encoding="utf-8")
    arguments = ["--model", llava, "--shots", "0,2", "--seeds", "0", "--output", tmp_path / "run", "--debug"]
    assert main(["evaluate", str(tmp_path / "pets.csv"), *map(str, arguments)]) == 0
    score = json.loads((tmp_path / "run" / "pets" / "2-random-0" / "score.json").read_text(encoding="utf-8"))
    assert score["queries"] == 12
