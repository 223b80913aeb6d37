"""FlamingoProcessor: its tensors, its tokens with several kinds of tokenizer, and what it refuses."""

import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import CLIPImageProcessor, PreTrainedTokenizerFast

from flamboyance.images import ImageError, ImageProcessor
from flamboyance.processing import FlamingoProcessor

EOC, IMAGE, PAD = "<|endofchunk|>", "<image>", "<PAD>"
SENTENCES = ["two cats on a sofa.", "an image of a bathroom sink.", "Question:how many? Short answer:two"]


def byte_level(*, pad: bool = False, template: str = "") -> PreTrainedTokenizerFast:
    """Byte-level BPE; `template` such as "<s> $A </s>" puts tokens around every text."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>"] + ["<pad>"] * pad
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        SENTENCES, trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=alphabet)
    )
    if template:
        ends = [("<s>", 0), ("</s>", 1)]
        inner.post_processor = processors.TemplateProcessing(single=template, pair=None, special_tokens=ends)
    names: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>" if pad else None}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **names)


def word_level(words: str = "two cats an image of a sink <unk>") -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words.split())}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")


def picture(seed: int = 0, size: tuple[int, int] = (13, 9)) -> Image.Image:
    levels = np.random.default_rng(seed).integers(0, 256, (*reversed(size), 3), dtype=np.uint8)
    return Image.fromarray(levels)


@pytest.fixture
def processor() -> FlamingoProcessor:
    return FlamingoProcessor(ImageProcessor.clip(8), byte_level())


@pytest.mark.parametrize("make", [byte_level, word_level])
def test_tokens_are_added_in_open_flamingos_order(make: Any) -> None:
    size = len(make())
    processor = FlamingoProcessor(None, make())
    assert processor.added_tokens == [EOC, IMAGE, PAD]
    assert [processor.eoc_token_id, processor.image_token_id, processor.pad_token_id] == [size, size + 1, size + 2]
    assert processor.base_vocab_size == size
    again = FlamingoProcessor(None, processor.tokenizer)
    assert len(again.tokenizer) == size + 3
    assert (again.base_vocab_size, again.added_tokens) == (size, processor.added_tokens)


def test_a_tokenizer_with_padding_keeps_it() -> None:
    tokenizer = byte_level(pad=True)
    size = len(tokenizer)
    processor = FlamingoProcessor(None, tokenizer)
    assert processor.added_tokens == [EOC, IMAGE]
    assert processor.pad_token_id == tokenizer.convert_tokens_to_ids("<pad>")
    assert processor.base_vocab_size == size


def test_tokens_that_the_language_model_has_are_its_own() -> None:
    processor = FlamingoProcessor(None, word_level(f"two cats {IMAGE} <unk>"))
    assert (processor.image_token_id, processor.eoc_token_id, processor.pad_token_id) == (2, 4, 5)
    assert (processor.added_tokens, processor.base_vocab_size) == ([EOC, PAD], 4)
    padded = word_level(f"two cats <unk> {PAD}")
    padded.pad_token = PAD
    processor = FlamingoProcessor(None, padded)
    assert (processor.added_tokens, processor.base_vocab_size) == ([EOC, IMAGE], 4)


def test_the_language_models_other_special_tokens_stay_special() -> None:
    tokenizer = byte_level()
    tokenizer.add_special_tokens({"extra_special_tokens": ["<turn>"]})
    processor = FlamingoProcessor(None, tokenizer)
    assert processor.decode(tokenizer("<turn>two<image> cats<|endofchunk|>").input_ids) == "two cats"
    assert set(tokenizer.all_special_tokens) >= {"<turn>", EOC, IMAGE, PAD}


def test_rows_are_padded_and_images_zero_filled(processor: FlamingoProcessor) -> None:
    a, b, c = (picture(seed) for seed in range(3))
    texts = [f"{IMAGE}two cats.{EOC}{IMAGE}an image of", f"{IMAGE}a sofa", "no image at all"]
    batch = processor(texts, [[a, b], [c], []])
    assert set(batch) == {"input_ids", "attention_mask", "pixel_values", "media_counts"}
    assert batch.pixel_values.shape == (3, 2, 1, 3, 8, 8)
    assert batch.pixel_values.dtype == torch.float32
    assert batch.media_counts.tolist() == [2, 1, 0]
    clip = ImageProcessor.clip(8)
    assert torch.equal(batch.pixel_values[0, 1, 0], clip(b))
    assert torch.equal(batch.pixel_values[1, 0, 0], clip(c))
    assert not batch.pixel_values[1, 1].any()
    assert not batch.pixel_values[2].any()
    right = processor(texts, [[a, b], [c], None], padding_side="right")
    for row, text in enumerate(texts):
        ids = processor.tokenizer(text).input_ids
        n = len(ids)
        assert batch.input_ids[row, -n:].tolist() == right.input_ids[row, :n].tolist() == ids
        assert batch.attention_mask[row].tolist() == [0] * (batch.input_ids.shape[1] - n) + [1] * n
        assert right.attention_mask[row].tolist() == [1] * n + [0] * (batch.input_ids.shape[1] - n)
        assert (batch.input_ids[row, :-n] == processor.pad_token_id).all()
    for name in ("input_ids", "attention_mask", "media_counts"):
        assert batch[name].dtype == torch.long
    assert batch.to(torch.float64).pixel_values.dtype == torch.float64
    assert batch.input_ids.dtype == torch.long


def test_a_single_text_and_texts_without_images(processor: FlamingoProcessor) -> None:
    one = processor(f"{IMAGE}two cats", [picture()])
    many = processor([f"{IMAGE}two cats"], [[picture()]])
    assert all(torch.equal(one[name], many[name]) for name in many)
    for text, images in (("two cats", None), ("two cats", []), (["two", "two cats"], None), (["two"], [[]])):
        batch = processor(text, images)
        assert "pixel_values" not in batch
        assert not batch.media_counts.any()
    assert FlamingoProcessor(None, byte_level())("two cats").input_ids.shape[0] == 1


def test_videos_and_shared_images(processor: FlamingoProcessor, tmp_path: Path) -> None:
    frames = [picture(seed) for seed in range(3)]
    batch = processor(f"{IMAGE}a{IMAGE}b", [frames, np.stack([np.asarray(frame) for frame in frames])])
    assert batch.pixel_values.shape == (1, 2, 3, 3, 8, 8)
    assert torch.equal(batch.pixel_values[0, 0], batch.pixel_values[0, 1])
    calls = []
    counted = FlamingoProcessor(lambda image: calls.append(image) or torch.ones(3, 2, 2), processor.tokenizer)
    path = tmp_path / "a.png"
    picture().save(path)
    shared = counted([f"{IMAGE}{IMAGE}{IMAGE}"] * 4, [[frames[0], path, str(path)]] * 4)
    assert shared.pixel_values.sum() == 4 * 3 * 12
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("template", "before"), [("$A", []), ("<s> $A", [0]), ("<s> $A </s>", [0]), ("$A </s>", []), ("</s> $A", [1])]
)
def test_a_beginning_is_kept_and_an_end_is_not(tmp_path: Path, template: str, before: list[int]) -> None:
    processor = FlamingoProcessor(ImageProcessor.clip(8), byte_level(template=template))
    text = f"{IMAGE}two cats.{EOC}"
    expected = before + processor.tokenizer(text, add_special_tokens=False).input_ids
    assert processor(text, [picture()]).input_ids[0].tolist() == expected
    assert expected[-1] == processor.eoc_token_id
    assert processor("a</s>").input_ids[0, -1] == 1  # written by the user, so it stays
    processor.save_pretrained(tmp_path)
    assert FlamingoProcessor.from_pretrained(tmp_path)(text, [picture()]).input_ids[0].tolist() == expected


@pytest.mark.parametrize("make", [byte_level, word_level, lambda: byte_level(pad=True, template="<s> $A </s>")])
def test_saved_and_opened_again(tmp_path: Path, make: Any) -> None:
    processor = FlamingoProcessor(ImageProcessor.clip(8), make())
    processor.save_pretrained(tmp_path / "new" / "directory")
    again = FlamingoProcessor.from_pretrained(tmp_path / "new" / "directory", local_files_only=True)
    for name in ("image_token_id", "eoc_token_id", "pad_token_id", "base_vocab_size", "added_tokens"):
        assert getattr(again, name) == getattr(processor, name)
    assert again.image_processor == processor.image_processor
    texts, images = [f"{IMAGE}two cats{EOC}{IMAGE}a", f"{IMAGE}an image of"], [[picture(), picture(1)], [picture(2)]]
    first, second = processor(texts, images), again(texts, images)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_tokens_alone(processor: FlamingoProcessor) -> None:
    rows = processor.tokenize([f"{IMAGE}two cats", "two"])
    padded = processor.pad(rows)
    assert set(padded) == {"input_ids", "attention_mask"}
    assert padded["input_ids"][0].tolist() == rows[0]
    assert padded["attention_mask"].sum(1).tolist() == [len(row) for row in rows]


def test_decoding(processor: FlamingoProcessor) -> None:
    batch = processor([f"{IMAGE}two cats.{EOC}", "an image of a sofa."], [[picture()], []])
    assert processor.batch_decode(batch.input_ids) == ["two cats.", "an image of a sofa."]
    assert processor.decode(batch.input_ids[0]) == "two cats."
    assert processor.batch_decode(batch.input_ids, skip_special_tokens=False)[0].endswith(f"{IMAGE}two cats.{EOC}")


def test_image_processors_of_others(processor: FlamingoProcessor, tmp_path: Path) -> None:
    theirs = FlamingoProcessor(CLIPImageProcessor(size={"shortest_edge": 8}, crop_size=8), byte_level())
    assert theirs.image_processor == ImageProcessor.clip(8)
    plain = FlamingoProcessor(lambda image: torch.zeros(3, *image.size), byte_level())
    assert plain(IMAGE, [picture()]).pixel_values.shape == (1, 1, 1, 3, 13, 9)
    with pytest.raises(TypeError, match="function"):
        plain.save_pretrained(tmp_path)


A, B = picture(0), picture(1)
BAD_CALLS: dict[str, tuple[dict[str, Any], str]] = {
    "too few images": (
        {"text": [f"{IMAGE}a", f"{IMAGE}a{IMAGE}b"], "images": [[A], [A]]},
        r"row 1 has 2 <image> in its text and 1 image\(s\)",
    ),
    "too many images": ({"text": IMAGE, "images": [A, B]}, r"row 0 has 1 <image> in its text and 2 image\(s\)"),
    "images for none": ({"text": "two cats", "images": [A]}, "row 0 has 0 <image> in its text and 1 image"),
    "none for an image": ({"text": f"{IMAGE}two"}, "row 0 has 1 <image> in its text and 0 image"),
    "a row nested twice": ({"text": f"{IMAGE}{IMAGE}{IMAGE}", "images": [[A, B]]}, "a list within a row is one video"),
    "rows do not match": ({"text": [IMAGE, IMAGE], "images": [[A]]}, "there are 2 texts, but images holds 1 rows"),
    "a flat list that is too short": (
        {"text": [IMAGE, IMAGE, f"{IMAGE}{IMAGE}"], "images": [A, B]},
        r"images is a flat list of 2, and the 3 text\(s\) have 1, 1, 2 <image>",
    ),
    "a flat list that is too long": (
        {"text": ["two", IMAGE], "images": [A, B, A]},
        "a flat list of 3, .* 0, 1 <image>",
    ),
    "one image for two": ({"text": f"{IMAGE}{IMAGE}", "images": A}, r"row 0 has 2 <image> in its text and 1 image"),
    "images first": ({"text": A, "images": IMAGE}, "list of .*str"),
    "images alone": ({"images": A}, "list of .*str"),
    "no text": ({"text": []}, r"\[\].*str"),
    "text of bytes": ({"text": b"two cats"}, "b'two cats'"),
    "text None": ({"text": ["two", None]}, "list of .*str"),
    "empty text": ({"text": ["two", ""]}, "row 1: the text is empty"),
    "too long": (
        {"text": "two " * 40, "max_length": 20},
        r"row 0 has \d\d tokens, max_length is 20; texts are not cut",
    ),
    "padding side": ({"text": "two", "padding_side": "middle"}, "padding_side='middle'.*'left'"),
    "other tensors": ({"text": "two", "return_tensors": "tf"}, "return_tensors='tf'.*'pt', 'np'"),
    "padding": ({"text": "two", "padding": "longst"}, "padding='longst'.*'longest', 'max_length'"),
    "padding without length": ({"text": "two", "padding": "max_length"}, "max_length"),
    "no padding": ({"text": ["two", "two cats"], "padding": False}, "padding=False"),
    "truncation": ({"text": "two", "truncation": "only_second"}, "truncation='only_second'.*True or False"),
    "truncation without length": ({"text": "two", "truncation": True}, "length"),
    "length": ({"text": "two", "max_length": 0}, "max_length=0"),
    "videos": ({"text": "two", "videos": [[A]]}, "videos.*images"),
    "empty video": ({"text": IMAGE, "images": [[]]}, r"row 0, image 0.*empty"),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_calls(processor: FlamingoProcessor, case: str) -> None:
    arguments, message = BAD_CALLS[case]
    with pytest.raises(ValueError, match=message):
        processor(**arguments)


def test_a_bad_image_is_named_by_row_and_place(processor: FlamingoProcessor, tmp_path: Path) -> None:
    path = tmp_path / "half.png"
    picture(0, (200, 200)).save(path)
    path.write_bytes(path.read_bytes()[:5000])
    texts = [f"{IMAGE}a", f"{IMAGE}a{IMAGE}b"]
    with pytest.raises(ImageError, match=r"row 1, image 1.*half\.png.*truncated"):
        processor(texts, [[A], [B, path]])
    with pytest.raises(ImageError, match=r"row 0, image 0.*'nowhere\.jpg'"):
        processor(IMAGE, ["nowhere.jpg"])
    with pytest.raises(ValueError, match="image processor"):
        FlamingoProcessor(None, byte_level())(IMAGE, [A])


def test_a_directory_that_holds_no_processor(processor: FlamingoProcessor, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"no tokenizer.*save_pretrained"):
        FlamingoProcessor.from_pretrained(tmp_path)
    processor.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(OSError, match=r"preprocessor_config\.json"):
        FlamingoProcessor.from_pretrained(tmp_path)


def test_pictures_are_small_again_before_the_next_one_is_opened(tmp_path: Path) -> None:
    """A batch of large pictures takes the memory of one."""
    alive: list[weakref.ref[Image.Image]] = []

    def shrink(image: Image.Image) -> torch.Tensor:
        assert not any(earlier() is not None for earlier in alive)
        alive.append(weakref.ref(image))
        return torch.ones(3, 2, 2)

    paths = [tmp_path / f"{number}.png" for number in range(4)]
    for number, path in enumerate(paths):
        picture(number).save(path)
    processor = FlamingoProcessor(shrink, byte_level())
    batch = processor([f"{IMAGE}a{IMAGE}b", IMAGE], [[paths[0], paths[1]], [paths[2]]])
    assert batch.pixel_values.shape == (2, 2, 1, 3, 2, 2)
    assert processor(IMAGE, [paths]).pixel_values.shape == (1, 1, 4, 3, 2, 2)
    assert len(alive) == 7
