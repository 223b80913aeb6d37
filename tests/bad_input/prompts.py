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


@case(ImageError, "no such image file: 'gone.png' (looked in …)")
def image_that_is_not_there(given):
    load_image("gone.png")


@case(ImageError, "'…x.png' is empty (0 bytes); fetch or save it again")
def image_file_that_is_empty(given):
    (given.tmp / "x.png").touch()
    load_image(given.tmp / "x.png")


@case(ImageError, "row 0, image 0: '…x.jpg' is truncated or damaged (…); fetch or save it again")
def image_file_that_is_truncated(given):
    Image.effect_noise((64, 64), 50).save(given.tmp / "x.jpg")
    (given.tmp / "x.jpg").write_bytes((given.tmp / "x.jpg").read_bytes()[:600])
    given.processor("<image>", [given.tmp / "x.jpg"])


@case(ImageError, "'…x.png' is not an image of a known kind (it starts with b'not an i'); use JPEG, PNG or WebP")
def text_instead_of_an_image(given):
    (given.tmp / "x.png").write_text("not an image", encoding="utf-8")
    load_image(given.tmp / "x.png")


@case(
    ImageError,
    "the array of shape (4, 4, 3) holds floats from 0 to 255; expected 0 to 1: undo a normalisation, or cast levels of "
    "0 to 255 to uint8",
)
def floats_of_another_range(given):
    load_image(np.linspace(0, 255, 48).reshape(4, 4, 3))


@case(ImageError, "'http://x.org/a.png' is a URL, and URLs are not fetched; pass a file or its bytes")
def url_of_an_image(given):
    load_image("http://x.org/a.png")


# Text and counts ----------------------------------------------------------------------------------------------------


@case(
    ValueError,
    "row 1 has 2 <image> in its text and 1 image(s); give one image for each <image> (a list within a row is one "
    "video, its frames)",
)
def fewer_images_than_tokens(given):
    given.processor(["<image>a", "<image>a<image>b"], [[given.image], [given.image]])


@case(ValueError, "row 0 has 1 <image> in its text and 2 image(s); give one image for each <image> (…)")
def more_images_than_tokens(given):
    given.processor("<image>a", [given.image, given.image])


@case(ValueError, "there are 2 texts, but images holds 1 rows; give a list of images for each text")
def rows_of_images_that_do_not_match(given):
    given.processor(["<image>a", "<image>b"], [[given.image]])


@case(
    ValueError, "Row 0 has 2 <image> token(s) in its text but 1 image(s). Give exactly one image (or video) for each …"
)
def model_given_more_tokens_than_images(given):
    ids = torch.cat([given.inputs.input_ids, given.inputs.input_ids], dim=1)
    given.model(ids, pixel_values=given.inputs.pixel_values)


@case(
    ValueError, "Row 0 has 1 <image> token(s) in its text but 2 image(s). Give exactly one image (or video) for each …"
)
def model_given_more_images_than_tokens(given):
    given.model.generate(given.inputs.input_ids, pixel_values=given.inputs.pixel_values.repeat(1, 2, 1, 1, 1, 1))


@case(
    ValueError, "Row 0 has 1 <image> token(s) in its text but 0 image(s). Give exactly one image (or video) for each …"
)
def model_given_no_images(given):
    given.model.score(given.inputs.input_ids, ["cat"])


@case(ValueError, "row 0: the text is empty, and the tokenizer puts nothing before it; give some text")
def empty_text(given):
    given.processor("")


@case(ValueError, "row 0 has 3 tokens, max_length is 2; texts are not cut: give fewer …")
def text_that_is_too_long(given):
    given.processor("a cat dog", max_length=2)


# Tensors ------------------------------------------------------------------------------------------------------------


@case(
    ValueError,
    "pixel_values has shape (3, 16, 16); expected six dimensions: (rows, media per row, frames, channels, height, "
    "width). A single image is pixels[None, None, None].",
)
def pixels_without_rows(given):
    given.model.encode_media(torch.zeros(3, 16, 16))


@case(ValueError, "vision tower …: images are 8x8 pixels; expected 16x16 (…)")
def pixels_of_another_size(given):
    given.model.encode_media(torch.zeros(1, 1, 1, 3, 8, 8))


@case(
    ValueError,
    "media_counts [2] does not fit pixel_values of shape (1, 1, 1, 3, 16, 16): expected 1 counts between 0 and 1.",
)
def media_counts_beyond_the_pixels(given):
    given.model.encode_media(given.inputs.pixel_values, [2])


@case(
    ValueError,
    "media_counts [1, 1] does not fit pixel_values of shape (1, 1, 1, 3, 16, 16): expected 1 counts between 0 and 1.",
)
def media_counts_of_other_rows(given):
    given.model.encode_media(given.inputs.pixel_values, torch.tensor([1, 1]))


@case(ValueError, "Give media or pixel_values, not both: they say the same thing.")
def media_twice(given):
    given.model(**given.inputs, media=given.model.encode_media(given.inputs.pixel_values))


@case(ValueError, "3 rows of text cannot share the media of 2 prompts.")
def media_of_other_rows(given):
    media = given.model.encode_media(given.inputs.pixel_values.repeat(2, 1, 1, 1, 1, 1))
    given.model(given.inputs.input_ids.repeat(3, 1), media=media)


@case(
    ValueError,
    "Media of 1 prompts cannot be continued by media of 2: give one entry of media_counts per prompt, 0 where a prompt "
    "gets no new image.",
)
def conversation_continued_with_other_rows(given):
    media = given.model.encode_media(given.inputs.pixel_values)
    media.append(given.model.encode_media(given.inputs.pixel_values.repeat(2, 1, 1, 1, 1, 1)))


@case(
    ValueError, "Row 0 has 2 <image> token(s) in its text but 1 image(s). Give exactly one image (or video) for each …"
)
def conversation_continued_without_its_new_image(given):
    media = given.model.encode_media(given.inputs.pixel_values)
    cache = given.model(given.inputs.input_ids, media=media, use_cache=True).past_key_values
    ids = torch.cat([given.inputs.input_ids, given.inputs.input_ids], dim=1)
    given.model.generate(ids, media=media, past_key_values=cache, attention_mask=torch.ones_like(ids))


@case(
    ValueError,
    "input_ids holds 999; expected ids from 0 to 24: 22 tokens of the tokenizer, then <|endofchunk|>, <image>, <PAD>. "
    "Use the tokenizer that the model was made with; …",
)
def tokens_of_another_tokenizer(given):
    given.model(torch.tensor([[1, 999]]))


@case(ValueError, "input_ids holds -100; expected ids from 0 to 24: …")
def labels_given_as_tokens(given):
    given.model(torch.tensor([[1, -100]]))


@case(
    ValueError,
    "labels has shape (1, 2) for input_ids of shape (1, 3); expected a label for each token, -100 where nothing is to "
    "be predicted.",
)
def labels_of_another_length(given):
    given.model(**given.inputs, labels=torch.tensor([[1, 2]]))


@case(
    ValueError,
    "attention_mask has shape (1, 2) for input_ids of shape (1, 3); expected a value for each token, those in the "
    "cache included.",
)
def mask_that_is_too_short(given):
    given.model.generate(**{**given.inputs, "attention_mask": torch.ones(1, 2)})


@case(
    ValueError,
    "Row 1 ends in padding, so nothing follows its last token. Pad on the left: processor(…, padding_side='left').",
)
def generation_from_padding(given):
    given.model.generate(**given.processor(["a cat dog", "a cat"], padding_side="right"))


@case(ValueError, "Row 1 ends in padding, so nothing follows its last token. …")
def score_after_padding(given):
    given.model.score(**given.processor(["a cat dog", "a cat"], padding_side="right"), candidates=["yes"])


@case(ValueError, "vision_x has shape (1, 3, 16, 16) and lang_x (1, 3); expected (rows, images, frames, channels, …")
def drop_in_given_pixels_without_rows(given):
    args = (str(given.directory / part) for part in ("vision", "language"))
    vision, language = args
    model, _, _ = create_model_and_transforms(vision, None, language, str(given.directory))
    model(torch.zeros(1, 3, 16, 16), given.inputs.input_ids)


# Few-shot, templates, scoring ---------------------------------------------------------------------------------------


@case(ValueError, "demonstration 1 is (<PIL…, 'a', 'b')…; expected (image, text)")
def demonstration_with_too_many_fields(given):
    FewShotTask(given.model, given.processor, [(given.image, "a"), (given.image, "a", "b")])


@case(ValueError, "query 0 is '…'; expected (image, question)")
def query_without_its_question(given):
    FewShotTask(given.model, given.processor, [], templates.vqa)(["x.png"])


@case(ValueError, "labels holds one twice; give each label once")
def label_given_twice(given):
    FewShotTask(given.model, given.processor).classify([given.image], ["cat", "cat"])


@case(ValueError, "…holds no task: expected task.json and prefix.safetensors, as save writes them.")
def task_that_is_not_there(given):
    FewShotTask.load(given.tmp, given.model, given.processor)


@case(ValueError, "the task in … was computed with another model or precision …")
def task_of_another_model(given):
    FewShotTask(given.model, given.processor, [(given.image, "cat")]).save(given.tmp)
    other = open_model(given.directory, dtype=torch.bfloat16)
    FewShotTask.load(given.tmp, other, given.processor)


@case(ValueError, "template 'Output:{text}' has no <image>; put it where the picture stands")
def template_without_an_image(given):
    templates.Template("Output:{text}")


@case(ValueError, "text='a <image>' holds '<image>', which would alter the prompt; take it out")
def special_token_in_an_answer(given):
    FewShotTask(given.model, given.processor, [(given.image, "a <image>")])


@case(ValueError, "candidates is 'yes'; expected a list of texts, even for one: ['yes', 'no']")
def candidates_that_are_one_text(given):
    given.model.score(**given.inputs, candidates="yes")


@case(ValueError, "Candidate '' has no tokens, so it has no probability. Remove it.")
def candidate_without_tokens(given):
    given.model.score(**given.inputs, candidates=["yes", ""])


@case(ValueError, "normalize='max'; expected 'sum' or 'mean' (over a candidate's tokens).")
def unknown_normalisation(given):
    given.model.score(**given.inputs, candidates=["yes"], normalize="max")


@case(
    ValueError,
    "This model has no tokenizer to read candidate texts with: set model.tokenizer = processor.tokenizer, or give "
    "lists of token ids.",
)
def candidates_without_a_tokenizer(given):
    model = open_model(given.directory)
    model.tokenizer = None
    model.score(**given.inputs, candidates=["yes"])


@case(ValueError, "candidates[0] is 7; expected a text, or a list of token ids")
def candidates_that_are_ids_alone(given):
    given.model.score(**given.inputs, candidates=[7, 8])


@case(ValueError, "candidate [10000] holds ids outside of 0 to …")
def candidate_with_ids_of_another_model(given):
    given.model.score(**given.inputs, candidates=[[10_000]])


@case(ValueError, "input_ids is '<image>a cat'; expected token ids (rows, tokens), as the processor makes them: …")
def text_given_to_the_model(given):
    given.model.generate("<image>a cat", pixel_values=given.inputs.pixel_values)


@case(ValueError, "input_ids is a Tensor of shape (3,); expected token ids (rows, tokens), …")
def ids_without_rows(given):
    given.model.score(given.inputs.input_ids[0], ["yes", "no"], pixel_values=given.inputs.pixel_values)


@case(ValueError, "model and processor are swapped: …")
def swapped_model_and_processor(given):
    FewShotTask(given.processor, given.model, [(given.image, "a cat")])


@case(ValueError, "processor is …; expected a FlamingoProcessor, as FlamingoProcessor(image_processor, tokenizer)")
def tokenizer_as_processor(given):
    FewShotTask(given.model, given.processor.tokenizer)


@case(ValueError, "model is a tuple; unpack it: model, processor = fl.load_mini()")
def model_and_processor_in_one(given):
    FewShotTask((given.model, given.processor), [(given.image, "a cat")])


@case(ValueError, "template='vqa': expected a Template; did you mean flamboyance.templates.vqa?")
def template_by_its_name(given):
    FewShotTask(given.model, given.processor, template="vqa")


@case(
    ValueError, "demonstrations is 'captioned/'; expected a list of (image, text) tuples, even for one: [(image, text)]"
)
def demonstrations_that_are_a_path(given):
    FewShotTask(given.model, given.processor, "captioned/")


@case(ValueError, "demonstration 0: text is <PIL…; expected a text (the image comes first)")
def demonstration_in_another_order(given):
    FewShotTask(given.model, given.processor, [("a cat", given.image)])


@case(ValueError, "query 0: question is 3; expected a text (the image comes first)")
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
    (b"\x89PNG", "b'…PNG'"),
    (Image.new("RGB", (4, 4)), "<PIL…"),
    (None, "None"),
    ({"a": 1}, "{'a': 1}"),
):
    case(ValueError, f"queries is {name}; expected a list of images, even for one: task([image])")(one_query(query))


def one_size(size):
    def give(given):
        FewShotTask(given.model, given.processor)([given.image], batch_size=size)

    return give


for size in (0, -1, 2.5, True, "8", None):
    case(ValueError, f"batch_size={size!r}: expected a whole number, 1 or more")(one_size(size))


@case(ValueError, "batch_size=0: expected a whole number, 1 or more")
def batch_size_of_scores(given):
    given.model.score(**given.inputs, candidates=["yes"], batch_size=0)


@case(ValueError, "num_beams=0: expected a whole number, 1 or more")
def no_beams(given):
    FewShotTask(given.model, given.processor)([given.image], num_beams=0)


def some_labels(labels):
    def give(given):
        FewShotTask(given.model, given.processor).classify([given.image], labels)

    return give


for labels, message in (
    ("ab", "labels is 'ab'; expected a list of texts, even for one: ['cat', 'dog']"),
    ([], "labels is empty; expected a list of texts: ['cat', 'dog']"),
    (["cat", 3], "labels[1] is 3; expected a text that is not empty"),
    (["cat", " "], "labels[1] is ' '; expected a text that is not empty"),
    (None, "labels is None; expected a list of texts, even for one: ['cat', 'dog']"),
):
    case(ValueError, message)(some_labels(labels))


@case(ValueError, "input_ids is [[1, 2]]; expected token ids (rows, tokens), …")
def ids_as_lists(given):
    given.model([[1, 2]])


@case(ValueError, "input_ids is a Tensor of shape (1, 2); expected token ids (rows, tokens), …")
def ids_that_are_floats(given):
    given.model.generate(torch.ones(1, 2))


@case(ValueError, "media is 'cat.png'; expected a Media, as model.encode_media makes it")
def media_that_are_a_path(given):
    given.model.generate(given.inputs.input_ids, media="cat.png")


@case(ValueError, "pixel_values is 'cat.png'; expected a tensor, as the processor makes it")
def pixels_that_are_a_path(given):
    given.model.generate(given.inputs.input_ids, pixel_values="cat.png")
