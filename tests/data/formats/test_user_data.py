"""A user's own data, in the forms that docs/data.md shows."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from flamboyance import templates
from flamboyance.commands.inputs import read_demonstrations
from flamboyance.data.documents import Record
from flamboyance.data.formats.user_data import UserData
from tests.data.records import BLUE, GREEN, RED, in_base64, json_record, read, reason

SOURCE = UserData(shards="", batch_size=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for name, image in {"a.jpg": RED, "images/b.jpg": GREEN, "images/c": BLUE}.items():
        (tmp_path / name).write_bytes(image)
    return tmp_path


def test_a_captioned_image_is_written_as_a_demonstration(folder: Path) -> None:
    document = read(SOURCE, json_record({"image": "images/b.jpg", "text": " A cat.\n", "id": 7}, folder))
    assert document.text == "<image>Output:A cat.<|endofchunk|>"
    assert document.images == (GREEN,)
    assert document.learned == "all"


def test_a_question_is_written_as_a_demonstration(folder: Path) -> None:
    given = {"image": "a.jpg", "question": "How many? ", "answer": " two"}
    document = read(SOURCE, json_record(given, folder))
    assert document.text == "<image>Question:How many? Short answer:two<|endofchunk|>"


def test_it_is_what_few_shot_tasks_make_of_the_same_file(folder: Path) -> None:
    line = json.dumps({"image": "a.jpg", "question": "How many?\n", "answer": " two"})
    (folder / "data.jsonl").write_text(line, encoding="utf-8")
    ((_, *values),) = read_demonstrations(folder / "data.jsonl")
    assert read(SOURCE, json_record(line.encode(), folder)).text == templates.vqa.demonstration(*values)


def test_an_own_template(folder: Path) -> None:
    source = UserData(shards="", batch_size=1, template="<image>A photo of {what} in {place}.")
    document = read(source, json_record({"image": "a.jpg", "what": "a cat", "place": "Rome"}, folder))
    assert document.text == "<image>A photo of a cat in Rome.<|endofchunk|>"
    assert reason(source, json_record({"image": "a.jpg", "what": "a cat"}, folder)) == "no place"
    for wrong in ("{text}", "<image>{a}<image>", "<image>"):
        with pytest.raises(ValueError, match="template"):
            UserData(shards="", batch_size=1, template=wrong)


@pytest.mark.parametrize(
    "content, text",
    [
        ({"Image": "a.jpg", "Text": "a cat"}, "Output:a cat"),
        ({"image": "a.jpg", "label": "cat", "caption": "a cat on a sofa"}, "Output:cat"),
        ({"image": "a.jpg", "captions": ["two", "three"], "CAPTION": "one"}, "Output:one"),
        ({"image": "a.jpg", "Question": "how many?", "Label": "two"}, "Question:how many? Short answer:two"),
        ({"image": "a.jpg", "text": "a cat", "Text": "a dog"}, "Output:a cat"),
    ],
)
def test_names_are_those_of_the_commands(folder: Path, content: dict[str, Any], text: str) -> None:
    """In any case, and of several the same one has precedence."""
    (folder / "data.jsonl").write_text(json.dumps(content), encoding="utf-8")
    ((_, *values),) = read_demonstrations(folder / "data.jsonl")
    written = templates.vqa if len(values) == 2 else templates.caption
    assert written.demonstration(*values) == f"<image>{text}<|endofchunk|>"
    assert read(SOURCE, json_record(content, folder)).text == f"<image>{text}<|endofchunk|>"


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("Look: <image> a cat. <image> a dog.", "Look:<image>a cat.<|endofchunk|><image>a dog.<|endofchunk|>"),
        ("<image>a cat<image>", "<image>a cat<|endofchunk|><image><|endofchunk|>"),
        ("<image>a cat<|endofchunk|> and <image>b", "<image>a cat<|endofchunk|> and <image>b<|endofchunk|>"),
        ("<image>a <image>b<|endofchunk|>\n", "<image>a <image>b<|endofchunk|>"),
    ],
)
def test_an_interleaved_document(folder: Path, text: str, written: str) -> None:
    document = read(SOURCE, json_record({"text": text, "images": ["a.jpg", "images/b.jpg"]}, folder))
    assert document.text == written
    assert document.images == (RED, GREEN)
    assert document.learned == "after_image"


def test_ways_to_give_an_image(folder: Path) -> None:
    text = "<image>a<image>b<image>c<image>d"
    images = ["images/c", in_base64(RED), f"data:image/jpeg;base64,{in_base64(GREEN)}", "a.jpg"]
    assert read(SOURCE, json_record({"text": text, "images": images}, folder)).images == (BLUE, RED, GREEN, RED)
    # Among the files of a tar.
    given = json_record({"text": "<image>a", "images": ["0.jpg"]}, **{"0.jpg": BLUE})
    assert read(SOURCE, given).images == (BLUE,)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"png": RED, "txt": b"A cat."}, "<image>Output:A cat.<|endofchunk|>"),
        ({"jpg": RED, "json": b'{"caption": "A cat."}'}, "<image>Output:A cat.<|endofchunk|>"),
        ({"jpg": RED, "txt": b"A cat.", "json": b'{"url": ""}'}, "<image>Output:A cat.<|endofchunk|>"),
        (
            {"webp": RED, "json": b'{"question": "What?", "answer": "cat"}'},
            "<image>Question:What? Short answer:cat<|endofchunk|>",
        ),
        ({"jpg": RED, "txt": b"Here: <image> a cat."}, "Here:<image>a cat.<|endofchunk|>"),
    ],
)
def test_an_image_with_its_text_beside_it(fields: dict[str, bytes], text: str) -> None:
    document = read(SOURCE, Record("cat", fields, "photos"))
    assert document.text == text
    assert document.images == (RED,)


def test_metadata_of_a_folder_of_images(folder: Path) -> None:
    # Hugging Face's imagefolder calls the image file_name.
    given = json_record({"file_name": "a.jpg", "text": "A cat."}, folder)
    assert read(SOURCE, given).images == (RED,)


def test_images_stay_in_the_folder(folder: Path) -> None:
    inside = folder / "images"
    (inside / "link.jpg").symlink_to(folder / "a.jpg")
    for path in ("../a.jpg", str(folder / "a.jpg"), "link.jpg", "x/../../a.jpg"):
        given = json_record({"image": path, "text": "a"}, inside)
        assert reason(SOURCE, given) == "image outside the folder"
    free = UserData(shards="", batch_size=1, outside=True)
    for path in ("../a.jpg", str(folder / "a.jpg"), "link.jpg"):
        assert read(free, json_record({"image": path, "text": "a"}, inside)).images == (RED,)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ({"image": "gone.jpg", "text": "a"}, "missing image"),
        ({"image": "images", "text": "a"}, "missing image"),
        ({"image": "x" * 301, "text": "a"}, "missing image"),
        ({"image": "a\0b", "text": "a"}, "missing image"),
        ({"image": 3, "text": "a"}, "missing image"),
        ({"image": "", "text": "a"}, "missing image"),
        ({"text": "a"}, "no image"),
        ({"image": "a.jpg"}, "no text"),
        ({"image": "a.jpg", "text": " "}, "no text"),
        ({"image": "a.jpg", "text": None}, "no text"),
        ({"image": "a.jpg", "question": "a", "answer": 3.5}, "no answer"),
        ({"images": ["a.jpg", "a.jpg"], "text": "a"}, "images and <image> differ in number"),
        ({"image": "data:image/png;base64,a", "text": "a"}, "damaged image"),
        ({"image": "x" * 5001, "text": "a"}, "damaged image"),
        (b"{", "broken JSON"),
    ],
)
def test_what_cannot_be_used_is_rejected(folder: Path, content: Any, why: str) -> None:
    assert reason(SOURCE, json_record(content, folder)) == why


def test_a_fifo_is_not_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "pipe.jpg")
    assert reason(SOURCE, json_record({"image": "pipe.jpg", "text": "a"}, folder)) == "missing image"


def test_a_large_file_is_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flamboyance.data.formats.fields.FILE_LIMIT", len(RED) - 1)
    assert reason(SOURCE, json_record({"image": "a.jpg", "text": "a"}, folder)) == "image too large"


def test_tokens_in_values_are_taken_out(folder: Path) -> None:
    given = {"image": "a.jpg", "question": "What <image>is it?", "answer": "a cat<|endofchunk|>"}
    assert (
        read(SOURCE, json_record(given, folder)).text == "<image>Question:What is it? Short answer:a cat<|endofchunk|>"
    )


def test_images_of_a_remote_file(folder: Path) -> None:
    import fsspec

    system = fsspec.filesystem("memory")
    system.pipe("/own/images/b.jpg", GREEN)
    record = Record("0", {"json": b'{"image": "images/b.jpg", "text": "a"}'}, "memory://own")
    assert read(SOURCE, record).images == (GREEN,)
    for path, why in {"gone.jpg": "missing image", "../b.jpg": "image outside the folder"}.items():
        record = Record("0", {"json": json.dumps({"image": path, "text": "a"}).encode()}, "memory://own")
        assert reason(SOURCE, record) == why


def test_white_space_around_a_path_is_left_out(folder: Path) -> None:
    assert read(SOURCE, json_record({"image": " images/b.jpg \n", "text": "a"}, folder)).images == (GREEN,)


@pytest.mark.parametrize("image", ["a.jpg", "./a.jpg"])
def test_a_file_that_is_named_very_often_is_counted_before_it_is_read(
    folder: Path, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = []
    monkeypatch.setattr("flamboyance.data.formats.fields._local", lambda *given: reads.append(given) or RED)
    assert reason(SOURCE, json_record({"image": [image] * 100_000, "text": "a"}, folder)) == (
        "images and <image> differ in number"
    )
    assert not reads
    found = read(SOURCE, json_record({"images": [image] * 100, "text": "<image>a" * 100}, folder))
    assert len(found.images) == 100 and len(reads) == 1
    assert all(one is found.images[0] for one in found.images)


def test_images_of_one_record_have_a_limit_together(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flamboyance.data.formats.user_data.FILE_LIMIT", 3 * len(RED) - 1)
    given = {"images": ["a.jpg"] * 2, "text": "<image>a<image>b"}
    assert len(read(SOURCE, json_record(given, folder)).images) == 2
    given = {"images": ["a.jpg", "a.jpg", "a.jpg"], "text": "<image>a<image>b<image>c"}
    assert reason(SOURCE, json_record(given, folder)) == "image too large"


@pytest.mark.parametrize("field", ["text", "question", "answer", "caption"])
def test_a_text_of_megabytes_is_rejected_before_it_is_tokenized(folder: Path, field: str) -> None:
    content = (
        {"image": "a.jpg", "question": "a", "answer": "b"} if field in ("question", "answer") else {"image": "a.jpg"}
    )
    assert reason(SOURCE, json_record(content | {field: "word " * 300_000}, folder)) == "text too long"
    assert reason(SOURCE, Record("a", {"jpg": RED, "txt": b"word " * 300_000})) == "text too long"


def test_halves_of_surrogate_pairs_become_question_marks(folder: Path) -> None:
    line = rb'{"image": "a.jpg", "question": "what\ud83d?", "answer": "\uDE00a"}'
    assert read(SOURCE, json_record(line, folder)).text == "<image>Question:what?? Short answer:?a<|endofchunk|>"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"label": "cat"}, "<image>Output:cat<|endofchunk|>"),
        ({"label": 7}, "<image>Output:7<|endofchunk|>"),
        ({"captions": ["A cat.", "B."]}, "<image>Output:A cat.<|endofchunk|>"),
        ({"question": "Is it?", "label": "yes"}, "<image>Question:Is it? Short answer:yes<|endofchunk|>"),
        (
            {"question": "Is it?", "answers": ["no", "yes", "yes"]},
            "<image>Question:Is it? Short answer:yes<|endofchunk|>",
        ),
    ],
)
def test_what_evaluate_reads_can_be_trained_on(folder: Path, content: dict[str, Any], text: str) -> None:
    assert read(SOURCE, json_record({"image": "a.jpg"} | content, folder)).text == text


def test_a_question_without_an_answer_and_a_mark_without_an_image(folder: Path) -> None:
    assert (
        reason(SOURCE, json_record({"image": "a.jpg", "question": "what colour?", "text": "red"}, folder))
        == "no answer"
    )
    own = UserData(shards="", batch_size=1, template="<image>{question} {text}")
    given = {"image": "a.jpg", "question": "what colour?", "text": "red"}
    assert read(own, json_record(given, folder)).text.startswith("<image>what colour? red")
    assert "differ in number" in reason(SOURCE, json_record({"text": "before <image> after"}, folder))
