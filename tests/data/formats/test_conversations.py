"""Conversations as training documents: their text is that of a chat, and the answers alone are learned."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from flamboyance import FlamingoProcessor
from flamboyance.data.convert.folder import convert_folder
from flamboyance.data.documents import Document, Record
from flamboyance.data.examples import IGNORED, WorkerProcessor, make_example
from flamboyance.data.formats.user_data import UserData
from flamboyance.data.shards import expand, records
from flamboyance.data.survey import format_of
from flamboyance.images import ImageProcessor
from flamboyance.templates import OPENING
from tests.data.records import BLUE, GREEN, RED, in_base64, json_record, read, reason

SOURCE = UserData(shards="", batch_size=1)
WORDS = "User : Flamingo what is this and a red cat green blue square ."
FORMS: dict[str, dict[str, Any]] = {
    "parts": {
        "messages": [
            {
                "role": "user",
                "content": [{"type": "image", "path": "red.jpg"}, {"type": "text", "text": "what is this"}],
            },
            {"role": "assistant", "content": "a red\n cat ."},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "and"},
                    {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{in_base64(GREEN)}"}},
                    {"type": "image", "image": "blue.jpg"},
                ],
            },
            {"role": "assistant", "content": [{"type": "text", "text": "blue"}]},
        ]
    },
    "marks": {
        "messages": [
            {"role": "user", "content": "<image>\nwhat is this"},
            {"role": "assistant", "content": " a red cat . "},
            {"role": "user", "content": "and <image><image>"},
            {"role": "assistant", "content": "blue"},
            {"role": "user", "content": "never answered <image>"},
        ],
        "images": ["red.jpg", in_base64(GREEN), "blue.jpg", "missing.jpg"],
    },
    "llava": {
        "id": 7,
        "conversations": [
            {"from": "human", "value": "what is this"},
            {"from": "gpt", "value": "a red cat ."},
            {"from": "human", "value": "<image><image>and"},
            {"from": "gpt", "value": "blue"},
        ],
        "image": ["red.jpg", in_base64(GREEN), "blue.jpg"],
    },
    "cauldron": {
        "images": ["red.jpg", in_base64(GREEN), "blue.jpg"],
        "texts": [
            {"user": "<image>what is this", "assistant": "a red cat .", "source": "x"},
            {"user": "and <image><image>", "assistant": "blue", "source": "x"},
        ],
    },
}
FORMS["llava"]["conversations"][0]["value"] += "\n<image>"
TURNS = "User: <image>what is this\nFlamingo: a red cat .\nUser: <image><image>and\nFlamingo: blue<|endofchunk|>"


def merging_tokenizer() -> PreTrainedTokenizerFast:
    """A line break is a token of its own, but for one after a full stop, as in the tokenizers of Llama 3 and Qwen."""
    vocabulary = {token: i for i, token in enumerate(["<unk>", "</s>", "\n", ".\n", *WORDS.split()])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\.\n|\n|\w+|[^\w\s]"), "isolated"),
            pre_tokenizers.Split(" ", "removed"),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, image in (("red", RED), ("green", GREEN), ("blue", BLUE)):
        (tmp_path / f"{name}.jpg").write_bytes(image)
    return tmp_path


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_text_of_a_chat(form: str, folder: Path) -> None:
    document = read(SOURCE, json_record(FORMS[form], folder))
    assert document.text == f"{OPENING}\n{TURNS}" and document.images == (RED, GREEN, BLUE)
    assert [document.text[start:end] for start, end in document.answers] == [" a red cat .", " blue"]


def test_images_without_a_mark_and_a_system_message(folder: Path) -> None:
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "what"}]
    content = {"messages": [*messages, {"role": "assistant", "content": "red"}], "image": "red.jpg"}
    document = read(SOURCE, json_record(content, folder))
    assert document.text == "Be kind.\nUser: <image>what\nFlamingo: red<|endofchunk|>"
    content["messages"].insert(1, {"role": "system", "content": "Be brief."})
    document = read(SOURCE, json_record(content, folder))
    assert document.text == "Be kind. Be brief.\nUser: <image>what\nFlamingo: red<|endofchunk|>"


def test_questions_of_the_cauldron_are_turns_about_all_images(folder: Path) -> None:
    texts = [{"user": "what", "assistant": "red", "source": "x"}, {"user": "and", "assistant": "blue", "source": "x"}]
    record = json_record({"images": ["red.jpg", "blue.jpg"], "texts": texts}, folder)
    expected = f"{OPENING}\nUser: <image><image>what\nFlamingo: red\nUser: and\nFlamingo: blue<|endofchunk|>"
    assert read(SOURCE, record).text == expected
    (folder / "a.jsonl").write_bytes(record.fields["json"] + b"\n")
    assert format_of(str(folder / "a.jsonl")) == "own"
    convert_folder(folder / "a.jsonl", folder / "shards")
    (again,) = records(*expand(f"{folder}/shards/*.tar"))
    assert isinstance(again, Record) and read(SOURCE, again).text == expected


@pytest.mark.parametrize("merging", [False, True])
def test_the_answers_and_their_ends_are_learned(merging: bool) -> None:
    worker = WorkerProcessor.of(FlamingoProcessor(ImageProcessor.clip(16), merging_tokenizer()))
    tokenizer = worker.tokenizer
    answer = "a red cat." if merging else "a red cat"
    text = f"User: <image>what\nFlamingo: {answer}\nUser: <image>and\nFlamingo: a blue square<|endofchunk|>"
    spans = [(start := text.index(one), start + len(one)) for one in (f" {answer}", " a blue square")]
    document = Document(text, (RED, BLUE), "answers", tuple(spans))
    example = make_example(document, SOURCE, worker, np.random.default_rng(0))
    ids, labels = example.input_ids.tolist(), example.labels.tolist()
    words = tokenizer.convert_ids_to_tokens(ids)
    places = [place for place, label in enumerate(labels) if label != IGNORED]
    learned = [(words[place], tokenizer.convert_ids_to_tokens(labels[place])) for place in places]
    end = "<|endofchunk|>"
    first = [("a", "a"), ("red", "red"), ("cat", "cat")]
    first += [(".\n", ".\n"), ("User", end)] if merging else [("\n", end)]
    assert learned == [*first, ("a", "a"), ("blue", "blue"), ("square", "square"), (end, end)]
    seen = dict(zip(words, example.images_seen.tolist(), strict=True))
    assert seen["red"] == 1 and seen["square"] == 2
    assert words[-1] == "</s>" and labels[-1] == IGNORED


def test_a_conversation_is_cut_with_its_labels() -> None:
    worker = WorkerProcessor.of(FlamingoProcessor(ImageProcessor.clip(16), merging_tokenizer()))
    text = "User: <image>what\nFlamingo: red\nUser: and\nFlamingo: a blue square<|endofchunk|>"
    spans = [(start := text.index(one), start + len(one)) for one in (" red", " a blue square")]
    document = Document(text, (RED,), "answers", tuple(spans))
    whole = make_example(document, SOURCE, worker, np.random.default_rng(0))
    cut = make_example(document, UserData(shards="", batch_size=1, max_tokens=17), worker, np.random.default_rng(0))
    assert len(cut.labels) == 17 < len(whole.labels)
    assert cut.labels.tolist() == whole.labels[:17].tolist() and int((cut.labels != IGNORED).sum()) == 4


def said(*turns: tuple[str, Any], **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns], **more}


@pytest.mark.parametrize(
    "content, expected",
    [
        (said(("user", "what")), "no answer"),
        (said(("user", "what"), ("assistant", "red")), "no image"),
        (said(("assistant", "red"), image="red.jpg"), "broken conversation"),
        (said(("user", "what"), ("assistant", "red"), ("assistant", "blue")), "broken conversation"),
        (said(("user", "what"), ("assistant", " ")), "empty answer"),
        (said(("user", 7), ("assistant", "red")), "broken conversation"),
        (said(("user", [{"type": "sound"}]), ("assistant", "red")), "broken conversation"),
        (said(("robot", "what"), ("assistant", "red")), "broken conversation"),
        (said(("user", "<image>"), ("assistant", "red")), "images and <image> differ in number"),
        (
            said(("user", "<image>"), ("assistant", "red"), images=["red.jpg"] * 2),
            "images and <image> differ in number",
        ),
        (said(("user", "<image>"), ("assistant", "red"), images=["gone.jpg"]), "missing image"),
        ({"messages": [["user", "what"]]}, "broken conversation"),
    ],
)
def test_what_is_left_out(content: dict[str, Any], expected: str, folder: Path) -> None:
    assert reason(SOURCE, json_record(content, folder)) == expected


def test_tokens_in_the_texts_are_removed(folder: Path) -> None:
    content = said(("user", "<image>what<|endofchunk|> is"), ("assistant", "a<|endofchunk|> red"), image="red.jpg")
    document = read(SOURCE, json_record(content, folder))
    assert document.text.endswith("User: <image>what is\nFlamingo: a red<|endofchunk|>")
    assert json.dumps(document.text).count("<image>") == 1
