"""FlamingoProcessor as transformers uses processors: Auto classes, options of a call, chats, pipelines."""

import base64
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, BatchFeature, ProcessorMixin, pipeline

import flamboyance as fl
from flamboyance import names, templates
from flamboyance.images import ImageProcessor
from flamboyance.processing import FlamingoProcessor
from tests.processes import python
from tests.test_processing import byte_level, picture, word_level
from tests.tiny import save_tiny_flamingo

EOC, IMAGE, PAD = "<|endofchunk|>", "<image>", "<PAD>"
A, B, C = (picture(seed) for seed in range(3))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_flamingo(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def processor() -> FlamingoProcessor:
    return FlamingoProcessor(ImageProcessor.clip(8), byte_level())


def same(first: Any, second: Any) -> bool:
    return set(first) == set(second) and all(torch.equal(first[name], second[name]) for name in first)


def asked(question: str, image: Any = None, **part: Any) -> dict[str, Any]:
    picture = {"type": "image"} | ({} if image is None else {"image": image}) | part
    return {"role": "user", "content": [picture, {"type": "text", "text": question}]}


def answered(answer: str) -> dict[str, Any]:
    return {"role": "assistant", "content": [{"type": "text", "text": answer}]}


# Which text owns which image ----------------------------------------------------------------------------------------


def test_images_may_be_one_flat_or_nested(processor: FlamingoProcessor, tmp_path: Path) -> None:
    A.save(tmp_path / "a.png")
    one = processor(f"{IMAGE}two cats", [A])
    array, data = np.asarray(A), (tmp_path / "a.png").read_bytes()
    for images in (A, tmp_path / "a.png", str(tmp_path / "a.png"), data, array, array[None], torch.tensor(array)):
        assert same(processor(f"{IMAGE}two cats", images), one)
        assert same(processor([f"{IMAGE}two cats"], images), one)
    assert same(processor(f"{IMAGE}two cats", [[A]]), one)
    texts = [f"{IMAGE}two{EOC}{IMAGE}cats", "two", f"{IMAGE}a sofa"]
    nested = processor(texts, [[A, B], [], [C]])
    for images in ([A, B, C], (A, B, C), [[A, B], None, C], [(A, B), [], [C]]):
        assert same(processor(texts, images), nested)
    pair = processor(f"{IMAGE}two{IMAGE}cats", [A, B])
    for images in ([[A, B]], ((A, B),), np.stack([np.asarray(A), np.asarray(B)])):
        assert same(processor(f"{IMAGE}two{IMAGE}cats", images), pair)
    video = processor(f"{IMAGE}two", [[A, B]])
    assert video.pixel_values.shape[:3] == (1, 1, 2)  # one <image>: two frames
    assert same(processor([f"{IMAGE}a", f"{IMAGE}b"], [A, B]), processor([f"{IMAGE}a", f"{IMAGE}b"], [[A], [B]]))


# Options of a call --------------------------------------------------------------------------------------------------


def test_padding(processor: FlamingoProcessor) -> None:
    texts = ["two", "two cats on a sofa."]
    lengths = [len(row) for row in processor.tokenize(texts)]
    for padding in (True, "longest", None):
        assert same(processor(texts, padding=padding), processor(texts))
    wide = processor(texts, padding="max_length", max_length=40)
    assert wide.input_ids.shape == (2, 40) and wide.attention_mask.sum(1).tolist() == lengths
    assert (wide.input_ids[0, : 40 - lengths[0]] == processor.pad_token_id).all()
    assert processor(texts, pad_to_multiple_of=16).input_ids.shape[1] % 16 == 0
    assert processor("two", padding=False).input_ids.shape == (1, lengths[0])
    lists = processor(texts, padding=False, return_tensors=None)
    assert lists["input_ids"] == processor.tokenize(texts)
    assert lists["attention_mask"] == [[1] * length for length in lengths]
    assert "attention_mask" not in processor(texts, return_attention_mask=False)
    assert same(processor(texts, text_kwargs={"padding_side": "right"}), processor(texts, padding_side="right"))
    assert same(processor(texts, common_kwargs={"return_tensors": "pt"}, images_kwargs={}), processor(texts))


def test_kinds_of_results(processor: FlamingoProcessor) -> None:
    texts, images = [f"{IMAGE}two{IMAGE}cats", "a sofa"], [[A, B], []]
    tensors = processor(texts, images)
    arrays = processor(texts, images, return_tensors="np")
    lists = processor(texts, images, return_tensors=None)
    assert isinstance(tensors, BatchFeature)
    for name in tensors:
        assert isinstance(arrays[name], np.ndarray) and np.array_equal(arrays[name], tensors[name].numpy())
    assert lists["input_ids"] == tensors.input_ids.tolist() and lists["media_counts"] == [2, 0]
    assert [len(row) for row in lists["pixel_values"]] == [2, 0]
    assert torch.equal(lists["pixel_values"][0][1], tensors.pixel_values[0, 1])
    assert set(tensors) <= set(processor.model_input_names)


@pytest.mark.parametrize("template", ["$A", "<s> $A", "<s> $A </s>"])
def test_an_image_is_cut_off_with_its_token(template: str) -> None:
    processor = FlamingoProcessor(ImageProcessor.clip(8), byte_level(template=template))
    images, text = [A, B, C], f"{IMAGE}two{EOC}{IMAGE}cats{EOC}{IMAGE}a sofa"
    whole = processor(text, images)
    begin = 1 if "<s> $A" in template else 0
    for length in range(begin + 1, whole.input_ids.shape[1] + 1):
        for side, kept in (("left", slice(-(length - begin), None)), ("right", slice(begin, length))):
            cut = processor(text, images, truncation=True, max_length=length, truncation_side=side)
            assert cut.input_ids[0, begin:].tolist() == whole.input_ids[0, kept].tolist()
            assert cut.input_ids[0, :begin].tolist() == whole.input_ids[0, :begin].tolist()
            count = int((cut.input_ids == processor.image_token_id).sum())
            assert cut.media_counts.tolist() == [count]
            expected = whole.pixel_values[0, 3 - count :] if side == "left" else whole.pixel_values[0, :count]
            assert count == 0 or torch.equal(cut.pixel_values[0], expected)
    assert same(processor(text, images, truncation=True, max_length=100), whole)
    # To generate, the query stays; to train, the beginning.
    query = processor(text, images, truncation=True, max_length=begin + 5)
    assert query.input_ids[0, -1] == whole.input_ids[0, -1]
    begun = processor(text, images, truncation="longest_first", max_length=begin + 5, padding_side="right")
    assert begun.input_ids[0, begin] == whole.input_ids[0, begin]


def test_a_tokenizers_own_length_is_the_limit(processor: FlamingoProcessor) -> None:
    processor.tokenizer.model_max_length = 4
    assert processor("two cats on a sofa.", truncation=True).input_ids.shape == (1, 4)


def test_rows_that_are_cut_keep_their_own_images(processor: FlamingoProcessor) -> None:
    texts = [f"{IMAGE}two{EOC}{IMAGE}cats", f"{IMAGE}a"]
    cut = processor(texts, [A, B, C], truncation=True, max_length=3)
    assert cut.media_counts.tolist() == [(cut.input_ids[0] == processor.image_token_id).sum(), 1]
    assert torch.equal(cut.pixel_values[1, 0, 0], ImageProcessor.clip(8)(C))


def test_halves_of_surrogate_pairs_become_question_marks(processor: FlamingoProcessor) -> None:
    broken, mended = f"{IMAGE}two \ud83d cats\udc00", f"{IMAGE}two ? cats?"
    assert same(processor(broken, A), processor(mended, A))
    assert processor.tokenize([broken]) == processor.tokenize([mended])
    chat = [asked("two \ud83d cats", A)]
    assert processor.apply_chat_template(chat) == f"{IMAGE}two ? cats"


def test_unknown_arguments(processor: FlamingoProcessor) -> None:
    with pytest.raises(TypeError, match=r"'paddding'.*'padding'"):
        processor("two", paddding=True)
    with pytest.raises(TypeError, match="'image'"):
        processor("two", image=A)
    with pytest.raises(TypeError, match="images_kwargs"):
        processor("two", images_kwargs={"size": 4})
    with pytest.raises(TypeError, match=r"tokenizer.*ImageProcessor"):
        FlamingoProcessor(byte_level(), ImageProcessor.clip(8))  # ty: ignore[invalid-argument-type]
    with pytest.raises(TypeError, match="'chache_dir'"):
        FlamingoProcessor.from_pretrained("mini", chache_dir="x")


# Chats --------------------------------------------------------------------------------------------------------------


def test_a_chat_is_a_few_shot_prompt(processor: FlamingoProcessor) -> None:
    chat = [asked("What is this?", A), answered("A cat."), asked("What is this?", B)]
    text = f"{IMAGE}What is this? A cat.{EOC}{IMAGE}What is this?"
    assert processor.apply_chat_template(chat) == text
    assert processor.apply_chat_template(chat, add_generation_prompt=True) == text
    assert processor.apply_chat_template([chat, chat[:2]]) == [text, f"{IMAGE}What is this? A cat.{EOC}"]
    direct = processor(text, [A, B])
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    assert same(processor.apply_chat_template(chat, **options, add_generation_prompt=True), direct)
    assert torch.equal(processor.apply_chat_template(chat, tokenize=True), direct.input_ids)
    rows = processor.apply_chat_template([chat, chat[2:]], tokenize=True, return_dict=True, padding=True)
    assert same(rows, processor([text, f"{IMAGE}What is this?"], [[A, B], [B]]))
    cut = processor.apply_chat_template(
        chat, tokenize=True, return_dict=True, processor_kwargs={"truncation": True, "max_length": 9}
    )
    assert cut.input_ids.shape == (1, 9)


def test_openflamingos_prompts_as_chats(processor: FlamingoProcessor) -> None:
    caption, vqa = templates.caption, templates.vqa
    chat = [asked("Output:", A), answered("two cats"), asked("Output:", B)]
    assert processor.apply_chat_template(chat) == caption.demonstration("two cats") + caption.query()
    chat = [asked("Question:how many? Short answer:", A), answered("two"), asked("Question:what? Short answer:", B)]
    assert processor.apply_chat_template(chat) == vqa.demonstration("how many?", "two") + vqa.query("what?")


def test_contents_of_messages(processor: FlamingoProcessor) -> None:
    def write(*chat: dict[str, Any], **options: Any) -> str:
        return processor.apply_chat_template(list(chat), **options)

    both = {"role": "user", "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": " which? "}]}
    assert write(both) == f"{IMAGE}{IMAGE}which?"
    assert write({"role": "user", "content": "hello "}) == "hello"
    assert write({"role": "system", "content": "Be brief."}, asked("a?", A)) == f"Be brief.{IMAGE}a?"
    assert write(asked("", A), answered("two cats")) == f"{IMAGE}two cats{EOC}"
    assert write({"role": "user", "content": "a"}, {"role": "user", "content": "b"}) == "a b"
    begun = [asked("what?", A), answered("two c")]
    assert write(*begun, continue_final_message=True) == f"{IMAGE}what? two c"
    assert write(*begun, chat_template="{{ messages | length }}{{ mark }}", mark="!") == "2!"
    kept = [asked("what?", A)]
    write(*kept)
    assert kept == [asked("what?", A)]  # a chat is not changed


def test_images_of_chats(processor: FlamingoProcessor, tmp_path: Path) -> None:
    A.save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    coded = base64.b64encode(data).decode()
    expected = processor(f"{IMAGE}what?", A)
    parts: list[dict[str, Any]] = [{"image": A}, {"path": str(tmp_path / "a.png")}, {"url": str(tmp_path / "a.png")}]
    parts += [
        {"image": data},
        {"base64": coded},
        {"url": f"data:image/png;base64,{coded}"},
        {"image": io.BytesIO(data)},
    ]
    parts += [{"type": "image_url", "image_url": {"url": (tmp_path / "a.png").as_uri()}}]
    for part in parts:
        inputs = processor.apply_chat_template([asked("what?", **part)], tokenize=True, return_dict=True)
        assert same(inputs, expected), part
    given = processor.apply_chat_template([asked("what?")], tokenize=True, return_dict=True, images=[A])
    assert same(given, expected)
    video = {"role": "user", "content": [{"type": "video", "video": [A, B]}, {"type": "text", "text": "what?"}]}
    frames = processor.apply_chat_template([video], tokenize=True, return_dict=True)
    assert same(frames, processor(f"{IMAGE}what?", [[A, B]]))


def saying(*texts: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "text", "text": text} for text in texts]}


BAD_CHATS: dict[str, tuple[Any, str]] = {
    "no message": ([], "messages"),
    "no role": ([{"content": "a"}], "message 0.*system, user, assistant"),
    "another role": ([{"role": "tool", "content": "a"}], "message 0.*role"),
    "no content": ([{"role": "user"}], "message 0.*role"),
    "another part": (
        [{"role": "user", "content": [{"type": "audio"}]}],
        "message 0, part 0.*type",
    ),
    "a token in a text": ([asked("what <image>?", A)], "message 0, part 1.*'<image>'"),
    "an end in a text": ([asked("a", A), answered(f"b{EOC}")], "message 1, part 0.*'<|endofchunk|>'"),
    "a token in two texts": ([saying("a<ima", "ge>b")], "message 0.*'<image>'"),
    "an end in three texts": ([saying("a", "b<|endof", "", "chunk|>c")], "message 0.*'<|endofchunk|>'"),
    "two answers": ([asked("a", A), answered("b"), answered("c")], "message 2"),
    "no image": ([asked("a")], "message 0, part 0.*image"),
    "no base64": ([asked("a", base64="ä")], "message 0, part 0.*base64"),
    "a URL": ([asked("a", url="https://example.org/a.png")], "URL"),
    "no file": ([asked("a", path="gone.png")], "row 0, image 0.*'gone.png'"),
}


@pytest.mark.parametrize("case", BAD_CHATS)
def test_bad_chats(processor: FlamingoProcessor, case: str) -> None:
    chat, message = BAD_CHATS[case]
    with pytest.raises(ValueError, match=message.replace("|", r"\|")):
        processor.apply_chat_template(chat, tokenize=True)
    if chat:
        with pytest.raises(ValueError, match="conversation 1, message"):
            processor.apply_chat_template([[asked("a", A)], [{"role": "user"}]], tokenize=True)


def test_options_of_chats_that_do_not_go_together(processor: FlamingoProcessor) -> None:
    chat = [asked("a", A)]
    with pytest.raises(ValueError, match="continue_final_message"):
        processor.apply_chat_template(chat, add_generation_prompt=True, continue_final_message=True)
    with pytest.raises(ValueError, match="tools"):
        processor.apply_chat_template(chat, tools=[{"type": "function"}])
    with pytest.raises(ValueError, match="images="):
        processor.apply_chat_template(chat, tokenize=True, images=[A])


# Files --------------------------------------------------------------------------------------------------------------

OPENED = """
import sys, json
from transformers import AutoProcessor
import flamboyance, torch
from PIL import Image
directory, chat = sys.argv[1], sys.argv[2]
processor = AutoProcessor.from_pretrained(directory)
assert type(processor) is flamboyance.FlamingoProcessor, type(processor)
image = Image.effect_mandelbrot((20, 20), (-3, -2.5, 2, 2.5), 100)
inputs = processor(["<image>a cat<|endofchunk|><image>a", "<image>a"], [image, image, image])
print(json.dumps({
    "ids": inputs.input_ids.tolist(), "pixels": inputs.pixel_values.double().sum().item(),
    "counts": inputs.media_counts.tolist(), "chat": processor.apply_chat_template(json.loads(chat)),
    "own": processor.tokenizer.chat_template, "added": processor.added_tokens, "base": processor.base_vocab_size,
}))
"""


def opened(directory: Path | str, processor: FlamingoProcessor, log: Path | None = None) -> None:
    """AutoProcessor opens the directory in another process as this processor; without a log in one that imports
    AutoProcessor first, and then Flamboyance."""
    chat = [asked("what?"), answered("a cat"), asked("what?")]
    arguments = [str(directory), json.dumps(chat)]
    if log:
        printed = python(OPENED, *arguments, log=log)
    else:
        done = subprocess.run([sys.executable, "-c", OPENED, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        printed = done.stdout
    found = json.loads(printed.splitlines()[-1])
    image = Image.effect_mandelbrot((20, 20), (-3, -2.5, 2, 2.5), 100)
    inputs = processor(["<image>a cat<|endofchunk|><image>a", "<image>a"], [image, image, image])
    assert found["ids"] == inputs.input_ids.tolist() and found["counts"] == [2, 1]
    assert found["pixels"] == pytest.approx(inputs.pixel_values.double().sum().item(), rel=1e-6)
    assert found["chat"] == processor.apply_chat_template(chat)
    assert found["own"] == processor.tokenizer.chat_template
    assert (found["added"], found["base"]) == (processor.added_tokens, processor.base_vocab_size)


def test_auto_processor_opens_what_was_saved_in_a_new_process(tmp_path: Path) -> None:
    tokenizer = byte_level(template="<s> $A </s>")
    tokenizer.chat_template = "{{ messages[0]['content'] }}"  # the language model's own
    own = "{% for message in messages %}{{ message['role'] }} {% endfor %}"
    processor = FlamingoProcessor(ImageProcessor((8, 6), None, (0.4, 0.5, 0.6)), tokenizer, chat_template=own)
    assert processor.save_pretrained(tmp_path) == [str(tmp_path / "processor_config.json")]
    opened(tmp_path, processor, tmp_path / "log")
    again = FlamingoProcessor.from_pretrained(tmp_path)
    assert again.chat_template == own and again.tokenizer.chat_template == tokenizer.chat_template
    assert again.image_processor == processor.image_processor


def test_auto_processor_opens_models_of_earlier_versions(tiny: Path, tmp_path: Path) -> None:
    embedded, processor = names.embedded_directory("mini"), FlamingoProcessor.from_pretrained("mini")
    assert isinstance(processor, ProcessorMixin)
    opened(embedded, processor)
    old = shutil.copytree(tiny, tmp_path / "old")
    for name in ("processor_config.json", "chat_template.jinja"):
        (old / name).unlink()
    config = json.loads((old / "tokenizer_config.json").read_text(encoding="utf-8"))
    config.pop("processor_class")
    (old / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    found = AutoProcessor.from_pretrained(old)
    assert type(found) is FlamingoProcessor
    assert same(found(f"{IMAGE}a cat", A), FlamingoProcessor.from_pretrained(tiny)(f"{IMAGE}a cat", A))
    assert found.chat_template == templates.CHAT_TEMPLATE


def test_repr(processor: FlamingoProcessor) -> None:
    text = repr(processor)
    assert "ImageProcessor(size=8" in text and "<image> 309" in text and "few-shot" in text and len(text) < 600
    assert json.loads(processor.to_json_string())["processor_class"] == "FlamingoProcessor"


def test_texts_of_generated_ids(processor: FlamingoProcessor) -> None:
    ids = processor([f"{IMAGE}two cats.{EOC}", "a sofa."], [[A], []]).input_ids
    assert processor.post_process_image_text_to_text(ids) == ["two cats.", "a sofa."]
    assert processor.post_process_image_text_to_text(ids[0]) == ["two cats."]
    assert processor.post_process_image_text_to_text(ids.tolist()) == ["two cats.", "a sofa."]
    whole = processor.post_process_image_text_to_text(ids, skip_special_tokens=False)
    assert whole[0].endswith(f"{IMAGE}two cats.{EOC}")


# Pipelines ----------------------------------------------------------------------------------------------------------

IN_A_PIPELINE = """
import sys, json
import flamboyance
from transformers import pipeline
answer = pipeline("image-text-to-text", model=sys.argv[1])
text = "<image>Output:a cat<|endofchunk|><image>Output:"
options = {"images": [sys.argv[2], sys.argv[2]], "text": text, "max_new_tokens": 6}
ids = answer(**options, return_tensors=True)[0]["generated_token_ids"].tolist()
print(json.dumps([ids, answer(**options, return_full_text=False)[0]["generated_text"]]))
"""


def test_a_pipeline_in_a_new_process_answers_as_the_model(tiny: Path, tmp_path: Path) -> None:
    A.save(tmp_path / "a.png")
    done = subprocess.run(
        [sys.executable, "-c", IN_A_PIPELINE, str(tiny), str(tmp_path / "a.png")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "not supported" not in done.stderr and "Unrecognized" not in done.stderr, done.stderr
    model, processor = (
        fl.FlamingoForConditionalGeneration.from_pretrained(tiny),
        FlamingoProcessor.from_pretrained(tiny),
    )
    inputs = processor(f"{IMAGE}Output:a cat{EOC}{IMAGE}Output:", [A, A])
    ids, text = json.loads(done.stdout)
    out = model.generate(**inputs, max_new_tokens=6)
    assert ids == out[0].tolist() and len(ids) > inputs.input_ids.shape[1]
    assert text.strip() == processor.batch_decode(out[:, inputs.input_ids.shape[1] :])[0].strip()


def test_pipelines_take_texts_lists_and_chats(tiny: Path, tmp_path: Path) -> None:
    A.save(tmp_path / "a.png")
    answer = pipeline("image-text-to-text", model=str(tiny))
    assert type(answer.model) is fl.FlamingoForConditionalGeneration and type(answer.processor) is FlamingoProcessor
    model, processor = answer.model, answer.processor

    def expected(text: str, images: Any) -> str:
        inputs = processor(text, images)
        return processor.batch_decode(model.generate(**inputs, max_new_tokens=5)[:, inputs.input_ids.shape[1] :])[0]

    options: dict[str, Any] = {"max_new_tokens": 5, "return_full_text": False}
    first, second = f"{IMAGE}Output:", f"{IMAGE}Output:cat{EOC}{IMAGE}Question what"
    assert answer(images=A, text=first, **options)[0]["generated_text"].strip() == expected(first, A).strip()
    both = answer(images=[[A], [B, C]], text=[first, second], **options)
    assert [each["generated_text"].strip() for each in both] == [
        expected(first, A).strip(),
        expected(second, [B, C]).strip(),
    ]
    full = answer(images=A, text=first, max_new_tokens=5)[0]["generated_text"]
    assert full.startswith(first) and full.endswith(expected(first, A).strip())
    chat = [asked("what is this ?", path=str(tmp_path / "a.png")), answered("a cat"), asked("what is this ?", B)]
    told = answer(text=chat, max_new_tokens=5)[0]["generated_text"]
    prompt = processor.apply_chat_template(chat)
    assert told[-1]["role"] == "assistant" and told[-1]["content"].strip() == expected(prompt, [A, B]).strip()
    chats = answer(text=[chat, chat[2:]], **options)
    assert [each[0]["generated_text"].strip() for each in chats] == [
        expected(prompt, [A, B]).strip(),
        expected(f"{IMAGE}what is this ?", [B]).strip(),
    ]
    begun = [asked("what is this ?", B), answered("a red")]
    continued = answer(text=begun, **options)[0]["generated_text"]
    assert continued.strip() == expected(f"{IMAGE}what is this ? a red", [B]).strip()
    alone = answer(text="a red circle", **options)[0]["generated_text"]
    assert alone.strip() == expected("a red circle", None).strip()


def test_generation_in_a_pipeline_stops_at_the_end_of_a_chunk() -> None:
    """With the embedded model, whose answers are a few words and then `<|endofchunk|>`."""
    answer = pipeline("image-text-to-text", model=str(names.embedded_directory("mini")))
    image = fl.load_mini()[1].image_processor.image_size
    found = answer(images=Image.new("RGB", image, "white"), text=f"{IMAGE}Output:", return_tensors=True)
    ids = found[0]["generated_token_ids"].tolist()
    assert ids[-1] == answer.processor.eoc_token_id and len(ids) < 60


def test_auto_classes_open_model_and_processor(tiny: Path) -> None:
    model, processor = AutoModelForImageTextToText.from_pretrained(tiny), AutoProcessor.from_pretrained(tiny)
    inputs = processor.apply_chat_template([asked("what?", A)], tokenize=True, return_dict=True)
    assert model(**inputs).logits.shape[:2] == inputs.input_ids.shape


def test_a_picture_that_moves_is_a_video(processor: FlamingoProcessor, tmp_path: Path) -> None:
    A.save(tmp_path / "a.gif", save_all=True, append_images=[B, C])
    with Image.open(tmp_path / "a.gif") as file:
        shown = [(file.seek(frame), file.convert("RGB"))[1] for frame in (0, 2)]
    assert same(processor(IMAGE, tmp_path / "a.gif"), processor(IMAGE, [shown]))


def test_word_level_tokenizers_in_chats() -> None:
    processor = FlamingoProcessor(ImageProcessor.clip(8), word_level())
    inputs = processor.apply_chat_template([asked("two cats", A)], tokenize=True, return_dict=True)
    assert inputs.input_ids[0, 0] == processor.image_token_id and inputs.input_ids.shape == (1, 3)
