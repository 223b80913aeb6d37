"""Bad images, texts, tensors, demonstrations and candidates."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from flamboyance import FewShotTask, FlamingoForConditionalGeneration, create_model_and_transforms, templates
from flamboyance.images import ImageError, load_image
from tests.bad_input import case

open_model = FlamingoForConditionalGeneration.from_pretrained

# Images -------------------------------------------------------------------------------------------------------------


@case(ImageError, "'gone.png'")
def image_that_is_not_there(given):
    load_image("gone.png")


@case(ImageError, "x.png", "empty")
def image_file_that_is_empty(given):
    (given.tmp / "x.png").touch()
    load_image(given.tmp / "x.png")


@case(ImageError, "row 0", "image 0", "x.jpg")
def image_file_that_is_truncated(given):
    Image.effect_noise((64, 64), 50).save(given.tmp / "x.jpg")
    (given.tmp / "x.jpg").write_bytes((given.tmp / "x.jpg").read_bytes()[:600])
    given.processor("<image>", [given.tmp / "x.jpg"])


@case(ImageError, "x.png")
def text_instead_of_an_image(given):
    (given.tmp / "x.png").write_text("not an image", encoding="utf-8")
    load_image(given.tmp / "x.png")


@case(
    ImageError,
    "(4, 4, 3)",
    "255",
    "uint8",
)
def floats_of_another_range(given):
    load_image(np.linspace(0, 255, 48).reshape(4, 4, 3))


@case(ImageError, "http://x.org/a.png", "URL")
def url_of_an_image(given):
    load_image("http://x.org/a.png")


# Text and counts ----------------------------------------------------------------------------------------------------


@case(
    ValueError,
    "row 1",
    "2",
    "<image>",
    "1",
)
def fewer_images_than_tokens(given):
    given.processor(["<image>a", "<image>a<image>b"], [[given.image], [given.image]])


@case(ValueError, "row 0", "1", "<image>", "2")
def more_images_than_tokens(given):
    given.processor("<image>a", [given.image, given.image])


@case(ValueError, "2 texts", "1 ")
def rows_of_images_that_do_not_match(given):
    given.processor(["<image>a", "<image>b"], [[given.image]])


@case(ValueError, "row 0", "2", "<image>", "1")
def model_given_more_tokens_than_images(given):
    ids = torch.cat([given.inputs.input_ids, given.inputs.input_ids], dim=1)
    given.model(ids, pixel_values=given.inputs.pixel_values)


@case(ValueError, "row 0", "1", "<image>", "2")
def model_given_more_images_than_tokens(given):
    given.model.generate(given.inputs.input_ids, pixel_values=given.inputs.pixel_values.repeat(1, 2, 1, 1, 1, 1))


@case(ValueError, "row 0", "1", "<image>", "0")
def model_given_no_images(given):
    given.model.score(given.inputs.input_ids, ["cat"])


@case(ValueError, "row 0", "empty")
def empty_text(given):
    given.processor("")


@case(ValueError, "row 0", "3", "max_length", "2")
def text_that_is_too_long(given):
    given.processor("a cat dog", max_length=2)


# Tensors ------------------------------------------------------------------------------------------------------------


@case(
    ValueError,
    "pixel_values",
    "(3, 16, 16)",
    "pixels[None, None, None]",
)
def pixels_without_rows(given):
    given.model.encode_media(torch.zeros(3, 16, 16))


@case(ValueError, "8x8", "16x16")
def pixels_of_another_size(given):
    given.model.encode_media(torch.zeros(1, 1, 1, 3, 8, 8))


@case(
    ValueError,
    "media_counts",
    "[2]",
    "pixel_values",
    "(1, 1, 1, 3, 16, 16)",
    "1",
    "0",
)
def media_counts_beyond_the_pixels(given):
    given.model.encode_media(given.inputs.pixel_values, [2])


@case(
    ValueError,
    "media_counts",
    "[1, 1]",
    "pixel_values",
    "(1, 1, 1, 3, 16, 16)",
    "1",
    "0",
)
def media_counts_of_other_rows(given):
    given.model.encode_media(given.inputs.pixel_values, torch.tensor([1, 1]))


@case(ValueError, "media", "pixel_values")
def media_twice(given):
    given.model(**given.inputs, media=given.model.encode_media(given.inputs.pixel_values))


@case(ValueError, "3 rows", "2 prompts")
def media_of_other_rows(given):
    media = given.model.encode_media(given.inputs.pixel_values.repeat(2, 1, 1, 1, 1, 1))
    given.model(given.inputs.input_ids.repeat(3, 1), media=media)


@case(
    ValueError,
    "media of 1",
    "2",
    "media_counts",
)
def conversation_continued_with_other_rows(given):
    media = given.model.encode_media(given.inputs.pixel_values)
    media.append(given.model.encode_media(given.inputs.pixel_values.repeat(2, 1, 1, 1, 1, 1)))


@case(ValueError, "row 0", "2", "<image>", "1")
def conversation_continued_without_its_new_image(given):
    media = given.model.encode_media(given.inputs.pixel_values)
    cache = given.model(given.inputs.input_ids, media=media, use_cache=True).past_key_values
    ids = torch.cat([given.inputs.input_ids, given.inputs.input_ids], dim=1)
    given.model.generate(ids, media=media, past_key_values=cache, attention_mask=torch.ones_like(ids))


@case(
    ValueError,
    "input_ids",
    "999",
    "24",
    "<|endofchunk|>",
)
def tokens_of_another_tokenizer(given):
    given.model(torch.tensor([[1, 999]]))


@case(ValueError, "input_ids", "-100", "24")
def labels_given_as_tokens(given):
    given.model(torch.tensor([[1, -100]]))


@case(
    ValueError,
    "labels",
    "(1, 2)",
    "(1, 3)",
)
def labels_of_another_length(given):
    given.model(**given.inputs, labels=torch.tensor([[1, 2]]))


@case(
    ValueError,
    "attention_mask",
    "(1, 2)",
    "input_ids",
    "(1, 3)",
)
def mask_that_is_too_short(given):
    given.model.generate(**{**given.inputs, "attention_mask": torch.ones(1, 2)})


@case(
    ValueError,
    "row 1",
    "padding",
    "padding_side='left'",
)
def generation_from_padding(given):
    given.model.generate(**given.processor(["a cat dog", "a cat"], padding_side="right"))


@case(ValueError, "row 1", "padding")
def score_after_padding(given):
    given.model.score(**given.processor(["a cat dog", "a cat"], padding_side="right"), candidates=["yes"])


@case(ValueError, "vision_x", "(1, 3, 16, 16)", "lang_x", "(1, 3)")
def drop_in_given_pixels_without_rows(given):
    args = (str(given.directory / part) for part in ("vision", "language"))
    vision, language = args
    model, _, _ = create_model_and_transforms(vision, None, language, str(given.directory))
    model(torch.zeros(1, 3, 16, 16), given.inputs.input_ids)


# Few-shot, templates, scoring ---------------------------------------------------------------------------------------


@case(ValueError, "demonstration 1", "'a'", "'b'")
def demonstration_with_too_many_fields(given):
    FewShotTask(given.model, given.processor, [(given.image, "a"), (given.image, "a", "b")])


@case(ValueError, "query 0", "x.png", "question")
def query_without_its_question(given):
    FewShotTask(given.model, given.processor, [], templates.vqa)(["x.png"])


@case(ValueError, "labels", "twice")
def label_given_twice(given):
    FewShotTask(given.model, given.processor).classify([given.image], ["cat", "cat"])


@case(ValueError, "task.json", "prefix.safetensors")
def task_that_is_not_there(given):
    FewShotTask.load(given.tmp, given.model, given.processor)


@case(ValueError, "another model")
def task_of_another_model(given):
    FewShotTask(given.model, given.processor, [(given.image, "cat")]).save(given.tmp)
    other = open_model(given.directory, dtype=torch.bfloat16)
    FewShotTask.load(given.tmp, other, given.processor)


@case(ValueError, "'Output:{text}'", "<image>")
def template_without_an_image(given):
    templates.Template("Output:{text}")


@case(ValueError, "text='a <image>'", "'<image>'")
def special_token_in_an_answer(given):
    FewShotTask(given.model, given.processor, [(given.image, "a <image>")])


@case(ValueError, "candidates", "'yes'")
def candidates_that_are_one_text(given):
    given.model.score(**given.inputs, candidates="yes")


@case(ValueError, "''")
def candidate_without_tokens(given):
    given.model.score(**given.inputs, candidates=["yes", ""])


@case(ValueError, "normalize='max'", "'sum'", "'mean'")
def unknown_normalisation(given):
    given.model.score(**given.inputs, candidates=["yes"], normalize="max")


@case(
    ValueError,
    "model.tokenizer",
    "processor.tokenizer",
)
def candidates_without_a_tokenizer(given):
    model = open_model(given.directory)
    model.tokenizer = None
    model.score(**given.inputs, candidates=["yes"])


@case(ValueError, "candidates[0]", "7")
def candidates_that_are_ids_alone(given):
    given.model.score(**given.inputs, candidates=[7, 8])


@case(ValueError, "[10000]", "0")
def candidate_with_ids_of_another_model(given):
    given.model.score(**given.inputs, candidates=[[10_000]])


@case(ValueError, "input_ids", "<image>a cat")
def text_given_to_the_model(given):
    given.model.generate("<image>a cat", pixel_values=given.inputs.pixel_values)


@case(ValueError, "input_ids", "(3,)")
def ids_without_rows(given):
    given.model.score(given.inputs.input_ids[0], ["yes", "no"], pixel_values=given.inputs.pixel_values)


@case(ValueError, "swapped")
def swapped_model_and_processor(given):
    FewShotTask(given.processor, given.model, [(given.image, "a cat")])


@case(ValueError, "processor", "FlamingoProcessor")
def tokenizer_as_processor(given):
    FewShotTask(given.model, given.processor.tokenizer)


@case(ValueError, "tuple", "fl.load_mini")
def model_and_processor_in_one(given):
    FewShotTask((given.model, given.processor), [(given.image, "a cat")])


@case(ValueError, "template='vqa'", "flamboyance.templates.vqa")
def template_by_its_name(given):
    FewShotTask(given.model, given.processor, template="vqa")


@case(ValueError, "demonstrations", "'captioned/'")
def demonstrations_that_are_a_path(given):
    FewShotTask(given.model, given.processor, "captioned/")


@case(ValueError, "demonstration 0", "<PIL", "text")
def demonstration_in_another_order(given):
    FewShotTask(given.model, given.processor, [("a cat", given.image)])


@case(ValueError, "query 0", "question", "3")
def question_that_is_no_text(given):
    FewShotTask(given.model, given.processor, template=templates.vqa)([(given.image, 3)])


def one_query(query):
    def give(given):
        FewShotTask(given.model, given.processor)(query)

    return give


for query, name in (
    (np.zeros((64, 64, 3), np.uint8), "an array of shape (64, 64, 3)"),
    (torch.zeros(3, 16, 16), "a Tensor of shape (3, 16, 16)"),
    ("cat.png", "'cat.png'"),
    (Path("cat.png"), "PosixPath('cat.png')"),
    (b"\x89PNG", "PNG'"),
    (Image.new("RGB", (4, 4)), "<PIL"),
    (None, "None"),
    ({"a": 1}, "{'a': 1}"),
):
    case(ValueError, "queries", f"{name}")(one_query(query))


def one_size(size):
    def give(given):
        FewShotTask(given.model, given.processor)([given.image], batch_size=size)

    return give


for size in (0, -1, 2.5, True, "8", None):
    case(ValueError, f"batch_size={size!r}")(one_size(size))


@case(ValueError, "batch_size=0", "1")
def batch_size_of_scores(given):
    given.model.score(**given.inputs, candidates=["yes"], batch_size=0)


@case(ValueError, "num_beams=0", "1")
def no_beams(given):
    FewShotTask(given.model, given.processor)([given.image], num_beams=0)


def some_labels(labels):
    def give(given):
        FewShotTask(given.model, given.processor).classify([given.image], labels)

    return give


for labels, values in (
    ("ab", ("labels", "'ab'")),
    ([], ("labels", "empty")),
    (["cat", 3], ("labels[1]", "3")),
    (["cat", " "], ("labels[1]", "' '")),
    (None, ("labels", "None")),
):
    case(ValueError, *values)(some_labels(labels))


@case(ValueError, "input_ids", "[[1, 2]]")
def ids_as_lists(given):
    given.model([[1, 2]])


@case(ValueError, "input_ids", "(1, 2)")
def ids_that_are_floats(given):
    given.model.generate(torch.ones(1, 2))


@case(ValueError, "media", "'cat.png'", "model.encode_media")
def media_that_are_a_path(given):
    given.model.generate(given.inputs.input_ids, media="cat.png")


@case(ValueError, "pixel_values", "'cat.png'")
def pixels_that_are_a_path(given):
    given.model.generate(given.inputs.input_ids, pixel_values="cat.png")
