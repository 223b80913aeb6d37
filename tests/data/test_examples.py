"""Document -> Example, against ids and labels worked out by hand from OpenFlamingo's rules (facts 4.1, 4.2, 4.5)."""

import io
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import PreTrainedTokenizerFast

from flamboyance import FlamingoProcessor
from flamboyance.data.documents import Document, Rejected, Source
from flamboyance.data.examples import WorkerProcessor, make_example
from flamboyance.data.formats.interleaved import Interleaved, clean, interleave
from flamboyance.images import ImageProcessor
from tests.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
PROCESSOR = FlamingoProcessor(ImageProcessor.clip(8), TOKENIZER)
WORKER = WorkerProcessor.of(PROCESSOR)
IMAGE, END, EOS = WORKER.image_token_id, WORKER.eoc_token_id, TOKENIZER.eos_token_id
WORDS = TOKENIZER.get_vocab()


def picture(colour: str = "red", size: tuple[int, int] = (8, 8), form: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, form)
    return file.getvalue()


def source(kind: type[Source] = Source, **options: Any) -> Any:
    return kind(shards="", batch_size=1, **({"flip": 0.0} | options))


def document(text: str, learned: str = "after_image") -> Document:
    colours = ["#100000", "#200000", "#300000", "#400000"]
    return Document(text, tuple(picture(c) for c in colours[: text.count("<image>")]), learned)  # ty: ignore


def example(text: str, given: Source, learned: str = "after_image", seed: int = 0, processor: WorkerProcessor = WORKER):
    return make_example(document(text, learned), given, processor, np.random.default_rng(seed))


def ids(words: str) -> list[int]:
    marks = {"I": IMAGE, "E": END, "$": EOS, "-": -100}
    return [marks[w] if w in marks else WORDS[w] for w in words.split()]


def test_a_pair_learns_everything_but_the_image_token() -> None:
    made = example("<image>a red cat<|endofchunk|>", source(), "all")
    assert made.input_ids.tolist() == ids("I a red cat E $")
    assert made.labels.tolist() == ids("- a red cat E $")
    assert made.images_seen.tolist() == [1] * 6
    assert made.images.shape == (1, 3, 8, 8) and made.images.dtype == torch.uint8
    assert made.input_ids.dtype == made.labels.dtype == made.images_seen.dtype == torch.long


def test_a_long_caption_loses_its_end() -> None:
    made = example("<image>a red cat<|endofchunk|>", source(max_tokens=3), "all")
    assert made.input_ids.tolist() == ids("I a red")


TEXT = "this is<image>a cat<|endofchunk|>what<image>a dog<|endofchunk|>yes"


def test_a_document_learns_what_follows_an_image_up_to_the_end_of_chunk() -> None:
    made = example(TEXT, source(Interleaved))
    assert made.input_ids.tolist() == ids("this is I a cat E what I a dog E yes $")
    assert made.labels.tolist() == ids("- - - a cat E - - a dog E - -")
    assert made.images_seen.tolist() == [0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2]
    assert made.images[:, 0, 0, 0].tolist() == [0x10, 0x20]


def test_looking_at_the_next_image() -> None:
    made = example(TEXT, source(Interleaved, next_image=1.0))
    assert made.images_seen.tolist() == [1, 1, 1, 2, 2, 2, 2, 2, 0, 0, 0, 0, 0]
    assert made.labels.tolist() == ids("this is - a cat E what - - - - - -")


def test_a_document_looks_back_where_looking_ahead_teaches_nothing() -> None:
    made = example("<image>a cat<|endofchunk|>", source(Interleaved, next_image=1.0))
    assert made.images_seen.tolist() == [1] * 5
    assert made.labels.tolist() == ids("- a cat E -")


def test_half_of_the_documents_look_ahead() -> None:
    given = source(Interleaved, next_image=0.5)
    ahead = sum(example(TEXT, given, seed=s).images_seen[0].item() for s in range(200))
    assert 70 < ahead < 130


def test_cutting_drops_the_images_cut_away() -> None:
    made = example(TEXT, source(Interleaved, max_tokens=5))
    assert made.input_ids.tolist() == ids("this is I a cat")
    assert len(made.images) == 1


def test_images_over_the_limit_go_with_what_follows() -> None:
    made = example(TEXT, source(Interleaved, max_images=1))
    assert made.input_ids.tolist() == ids("this is I a cat E what")
    assert len(made.images) == 1


def test_a_random_window_takes_its_own_images() -> None:
    full, seen = ids("this is I a cat E what I a dog E yes $"), set()
    given = source(Interleaved, window="random", max_tokens=5)
    for seed in range(100):
        try:
            made = example(TEXT, given, seed=seed)
        except Rejected as rejected:
            seen.add(rejected.reason)
            continue
        starts = [s for s in range(9) if full[s : s + 5] == made.input_ids.tolist()]
        (start,) = starts
        levels = [0x10] * (start <= 2 < start + 5) + [0x20] * (start <= 7 < start + 5)
        assert made.images[:, 0, 0, 0].tolist() == levels
        seen.add(start)
    # From 3 on the first image is gone, at 8 the second; at 3 the second stands last and teaches nothing.
    assert seen == {0, 1, 2, 4, 5, 6, 7, "no image left", "nothing to learn"}


@pytest.mark.parametrize(
    ("text", "given", "reason"),
    [
        ("a cat", {}, "no image left"),
        ("a cat<image>", {"max_tokens": 3}, "nothing to learn"),
        ("<image>a cat", {"min_images": 2}, "too few images"),
        ("<image>a<image>cat", {"min_images": 2, "max_tokens": 2}, "too few images"),
        ("<image>a cat", {"reject_single": 1.0}, "one image only"),
    ],
)
def test_documents_that_teach_nothing_are_rejected(text: str, given: dict, reason: str) -> None:
    with pytest.raises(Rejected) as caught:
        example(text, source(Interleaved, **given))
    assert caught.value.reason == reason


def test_two_images_are_not_rejected_as_one() -> None:
    assert len(example(TEXT, source(Interleaved, reject_single=1.0)).images) == 2


@pytest.mark.parametrize(
    ("image", "max_pixels", "reason"),
    [
        (picture(form="JPEG")[:200], 9999, "damaged image"),
        (b"", 9999, "damaged image"),
        (b"GIF89a", 9999, "damaged image"),
        (picture(size=(100, 100)), 9999, "image too large"),
        (picture(size=(1, 3_000_000)), 10**9, "image too large"),  # as resized: 8 x 24 million
    ],
)
def test_images_that_cannot_be_used(image: bytes, max_pixels: int, reason: str) -> None:
    with pytest.raises(Rejected) as caught:
        WORKER.levels(image, source(max_pixels=max_pixels))
    assert caught.value.reason == reason
    given = Document("<image>a<image>a", (picture(), image), "all")
    with pytest.raises(Rejected) as caught:
        make_example(given, source(max_pixels=max_pixels), WORKER, np.random.default_rng(0))
    assert caught.value.reason == reason


def test_a_large_image_is_known_by_its_header() -> None:
    image = picture(size=(100, 100))
    with pytest.raises(Rejected, match="too large"):
        WORKER.levels(image[:60], source(max_pixels=9999))  # its pixels are not there


def test_images_and_tokens_must_agree() -> None:
    with pytest.raises(Rejected, match="differ in number"):
        make_example(Document("<image>a<image>b", (picture(),), "all"), source(), WORKER, np.random.default_rng(0))


def test_each_image_is_mirrored_by_itself() -> None:
    half = Image.new("RGB", (8, 8))
    half.paste((255, 255, 255), (0, 0, 4, 8))
    file = io.BytesIO()
    half.save(file, "PNG")
    made = Document("<image>a" * 6, (file.getvalue(),) * 6, "all")
    mirrored = 0
    for seed in range(30):
        images = make_example(made, source(flip=0.5), WORKER, np.random.default_rng(seed)).images
        left = images[:, 0, 0, 0] == 255
        assert torch.equal(left, images[:, 0, 0, 7] == 0)
        mirrored += int((~left).sum())
        if seed == 0:
            assert left.any() and not left.all()
    assert 60 < mirrored < 120
    assert not (make_example(made, source(flip=0.0), WORKER, np.random.default_rng(0)).images[:, 0, 0, 0] == 0).any()


def test_what_the_tokenizer_puts_around_a_text() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", tokenizer.bos_token_id), ("</s>", tokenizer.eos_token_id)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer._tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    processor = WorkerProcessor.of(FlamingoProcessor(ImageProcessor.clip(8), tokenizer))
    made = example("<image>a cat<|endofchunk|>", source(), "all", processor=processor)
    start = tokenizer.bos_token_id
    words = [start, processor.image_token_id, WORDS["a"], WORDS["cat"], processor.eoc_token_id, tokenizer.eos_token_id]
    assert made.input_ids.tolist() == words
    assert made.images_seen.tolist() == [0, 1, 1, 1, 1, 1]
    # A window keeps it in front.
    given = source(Interleaved, window="random", max_tokens=4)
    for seed in range(5):
        made = example("<image>a<image>a<image>a<image>a", given, seed=seed, processor=processor)
        assert made.input_ids[0] == start and start not in made.input_ids[1:]
        assert len(made.input_ids) == 4


def test_a_tokenizer_without_an_end_adds_none() -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer()._tokenizer, unk_token="<unk>")
    processor = WorkerProcessor.of(FlamingoProcessor(ImageProcessor.clip(8), tokenizer))
    made = example("<image>a<|endofchunk|>", source(), "all", processor=processor)
    assert made.input_ids.tolist() == [processor.image_token_id, WORDS["a"], processor.eoc_token_id]


def test_a_worker_processor_can_be_pickled() -> None:
    processor = pickle.loads(pickle.dumps(WORKER))
    assert torch.equal(
        example(TEXT, source(Interleaved), processor=processor).labels, example(TEXT, source(Interleaved)).labels
    )


def test_other_image_processors_are_refused() -> None:
    with pytest.raises(TypeError, match="ImageProcessor"):
        WorkerProcessor.of(FlamingoProcessor(lambda image: torch.zeros(3, 8, 8), tiny_tokenizer()))


def test_levels_are_half_of_the_image_processor() -> None:
    processor = ImageProcessor.clip(24)
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (30, 40, 3), dtype=np.uint8) for _ in range(4)]
    levels = torch.stack([processor.levels(p) for p in pictures])
    assert levels.dtype == torch.uint8 and levels.shape == (4, 3, 24, 24)
    assert torch.equal(processor.normalized(levels), torch.stack([processor(p) for p in pictures]))
    assert torch.equal(processor.normalized(levels[None])[0, 2], processor(pictures[2]))


def test_interleaving() -> None:
    # Facts 4.2: the first end of chunk is left out, and white space around the tokens.
    assert interleave(["Hello there. ", None, " A cat. ", "It sleeps. ", None, "A dog."]) == (
        "Hello there.<image>A cat. It sleeps.<|endofchunk|><image>A dog.<|endofchunk|>"
    )
    assert interleave([None, "A cat."]) == "<image>A cat.<|endofchunk|>"
    assert interleave([None, None, "A cat."]) == "<image><|endofchunk|><image>A cat.<|endofchunk|>"


def test_text_from_outside_cannot_hold_our_tokens() -> None:
    assert clean("a <image>cat<|endofchunk|>") == "a cat"
    assert clean("<ima<image>ge>") == ""


def test_half_of_a_surrogate_pair_is_no_crash() -> None:
    assert example("<image>a \ud83d cat<|endofchunk|>", source(), "all").input_ids[-1] == EOS


def test_a_text_of_megabytes_is_rejected_before_it_is_tokenized() -> None:
    with pytest.raises(Rejected, match="text too long"):
        example("<image>" + "a cat " * 200_000, source())
