"""Bad files, in one table: what is spoiled, and what the message must name: the file and the item."""

import pytest

from flamboyance.evaluation.tasks import open_task
from tests.evaluation.tasks.files import WRITE, change, put

TABLE = []
QUESTIONS, ANNOTATIONS = "v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json"


def case(task, error, *values, **options):
    """`spoil` gets the task's folder; each of `values` is in the error's message."""

    def add(spoil):
        TABLE.append(pytest.param(task, spoil, options, error, values, id=spoil.__name__.strip("_")))
        return spoil

    return add


@pytest.mark.parametrize("task, spoil, options, error, values", TABLE)
def test_message(task, spoil, options, error, values, tmp_path):
    name = task.partition(":")[0]
    if name in WRITE:
        WRITE[name](tmp_path / name)
    spoil(tmp_path / name)
    with pytest.raises(error) as refused:
        open_task(task, tmp_path, **options)
    missing = [value for value in values if value.lower() not in str(refused.value).lower()]
    assert not missing, str(refused.value)


# ---- names and files ------------------------------------------------------------------------------------------------


@case("cocoa", ValueError, "'cocoa'", "coco", "imagenet")
def unknown_task(folder):
    pass


@case("vqav2:dev", ValueError, "vqav2", "'dev'", "vqav2:test-dev")
def unknown_split(folder):
    pass


@case("coco", ValueError, "protocol='paper'", "'papers'", "'openflamingo'", protocol="paper")
def unknown_protocol(folder):
    pass


@case("coco", ValueError, "coco", "'json'", "karpathy, train_images, images", files={"json": "a"})
def unknown_file_name(folder):
    pass


@case("coco", ValueError, "coco.images", "empty", files={"images": ""})
def empty_path(folder):
    pass


@case(
    "vqav2",
    FileNotFoundError,
    "VQAv2",
    "/vqav2/train2014",
    "--file vqav2.train_images=PATH",
    f"/{QUESTIONS}",
    "--file vqav2.questions=PATH",
)
def missing_files_all_at_once(folder):
    (folder / "train2014").rename(folder / "pictures")
    (folder / QUESTIONS).unlink()


@case("textvqa", FileNotFoundError, "TextVQA_0.5.1_val.json", "val_questions_vqa_format.json")
def missing_file_of_two_formats(folder):
    (folder / "TextVQA_0.5.1_val.json").unlink()


@case("coco", FileNotFoundError, "dataset_coco.json", "file")
def folder_for_a_file(folder):
    (folder / "dataset_coco.json").unlink()
    (folder / "dataset_coco.json").mkdir()


@case("coco", FileNotFoundError, "val2014", "folder", "coco.images=PATH")
def file_for_a_folder(folder):
    (folder / "val2014").rename(folder / "moved")
    put(folder / "val2014", "")


@case("coco", FileNotFoundError, "nowhere.json", "coco.karpathy=PATH", files={"karpathy": "nowhere.json"})
def missing_file_that_was_given(folder):
    pass


# ---- JSON -----------------------------------------------------------------------------------------------------------


@case("coco", ValueError, "dataset_coco.json, line 2, column 3", "JSON")
def wrong_json(folder):
    put(folder / "dataset_coco.json", '{"images": [\n  oops]}')


@case("coco", ValueError, "dataset_coco.json, line 1", "JSON")
def empty_file(folder):
    put(folder / "dataset_coco.json", "")


@case("coco", ValueError, "dataset_coco.json, line 1", "UTF-8")
def not_text(folder):
    (folder / "dataset_coco.json").write_bytes(b"\xff\xd8\xff")


@case("coco", ValueError, "dataset_coco.json", "JSON")
def deep_json(folder):
    put(folder / "dataset_coco.json", "[" * 100_000)


@case(
    "coco",
    ValueError,
    "dataset_coco.json",
    "list",
    "'images'",
)
def list_for_an_object(folder):
    put(folder / "dataset_coco.json", [])


@case("vqav2", ValueError, f"{QUESTIONS}", "annotations", "'questions'")
def files_mixed_up(folder):
    (folder / QUESTIONS).write_text((folder / ANNOTATIONS).read_text(encoding="utf-8"), encoding="utf-8")


@case("vqav2", ValueError, f"{ANNOTATIONS}", "annotations", "list")
def object_for_a_list(folder):
    put(folder / ANNOTATIONS, {"annotations": {}})


@case("coco", ValueError, "dataset_coco.json", "images[1]", "'oops'")
def text_for_an_object(folder):
    change(folder / "dataset_coco.json", lambda content: content["images"].__setitem__(1, "oops"))


@case("coco", ValueError, "dataset_coco.json", "images[0]", "'cocoid'")
def missing_key(folder):
    change(folder / "dataset_coco.json", lambda content: content["images"][0].pop("cocoid"))


@case("vqav2", ValueError, f"{QUESTIONS}, questions[0]", "question", "null")
def null_for_a_text(folder):
    change(folder / QUESTIONS, lambda content: content["questions"][0].update(question=None))


@case("vqav2", ValueError, f"{QUESTIONS}, questions[0]", "question_id", "True")
def truth_for_an_id(folder):
    change(folder / QUESTIONS, lambda content: content["questions"][0].update(question_id=True))


@case("hateful_memes", ValueError, "train.jsonl, line 2", "JSON")
def wrong_json_line(folder):
    put(folder / "train.jsonl", '{"id": 1, "img": "img/00001.png", "label": 0, "text": "a"}\noops\n')


@case("hateful_memes", ValueError, "train.jsonl, line 1", "list")
def list_for_a_line(folder):
    put(folder / "train.jsonl", "[]")


# ---- items ----------------------------------------------------------------------------------------------------------


@case("coco", ValueError, "dataset_coco.json", "'test'")
def empty_split(folder):
    change(
        folder / "dataset_coco.json", lambda c: c.update(images=[one for one in c["images"] if one["split"] != "test"])
    )


@case("vqav2", ValueError, f"{QUESTIONS}", "'test'")
def no_questions(folder):
    put(folder / QUESTIONS, {"questions": []})
    put(folder / ANNOTATIONS, {"annotations": []})


@case("coco", ValueError, "dataset_coco.json", "test", "id 4")
def same_image_twice(folder):
    change(folder / "dataset_coco.json", lambda content: content["images"].append(content["images"][3]))


@case("vqav2", ValueError, f"{QUESTIONS}", "questions[2]", "question 5")
def same_question_twice(folder):
    change(folder / QUESTIONS, lambda content: content["questions"].append(content["questions"][0]))


@case("vqav2", ValueError, f"{ANNOTATIONS}", "annotations[2]", "question 6")
def same_annotation_twice(folder):
    change(folder / ANNOTATIONS, lambda content: content["annotations"].append(content["annotations"][0]))


@case("vqav2", ValueError, f"{QUESTIONS}", "question 6", f"{ANNOTATIONS}")
def question_without_annotation(folder):
    change(folder / ANNOTATIONS, lambda content: content["annotations"].pop(0))


@case("vqav2", ValueError, f"{ANNOTATIONS}", "question 6", f"{QUESTIONS}")
def annotation_without_question(folder):
    change(folder / QUESTIONS, lambda content: content["questions"].pop(1))


@case("vqav2", ValueError, f"{ANNOTATIONS}, annotations[0]", "answers")
def no_answers(folder):
    change(folder / ANNOTATIONS, lambda content: content["annotations"][0].update(answers=[]))


@case("vqav2", ValueError, f"{ANNOTATIONS}", "annotations[0], answers[1]", "'answer'")
def answer_without_text(folder):
    change(folder / ANNOTATIONS, lambda content: content["annotations"][0]["answers"][1].pop("answer"))


@case("textvqa", ValueError, "TextVQA_0.5.1_val.json, data[0]", "answers")
def no_answers_in_textvqa(folder):
    change(folder / "TextVQA_0.5.1_val.json", lambda content: content["data"][0].update(answers=[]))


@case("textvqa", ValueError, "TextVQA_0.5.1_train.json", "answers")
def no_answers_to_show(folder):
    change(folder / "TextVQA_0.5.1_train.json", lambda content: content["data"][0].pop("answers"))


@case(
    "vizwiz",
    ValueError,
    "vizwiz",
    "--file vizwiz.annotations=PATH",
    "vizwiz:test",
)
def queries_without_answers(folder):
    (folder / "val.json").write_text(
        (folder / "test.json").read_text(encoding="utf-8").replace("VizWiz_test", "VizWiz_val"), encoding="utf-8"
    )


@case("hateful_memes", ValueError, "hateful_memes", "--file hateful_memes.queries=PATH")
def memes_without_labels(folder):
    put(folder / "test_seen.jsonl", '{"id": 4, "img": "img/00004.png", "text": "a"}')


@case("coco", ValueError, "dataset_coco.json, images[0]", "sentences")
def no_captions(folder):
    change(folder / "dataset_coco.json", lambda content: content["images"][0].update(sentences=[{"raw": " "}]))


@case("coco", ValueError, "images[0]", "filepath", "'train2017'", "train2014")
def image_of_another_coco(folder):
    change(folder / "dataset_coco.json", lambda content: content["images"][0].update(filepath="train2017"))


@case("hateful_memes", ValueError, "train.jsonl, line 1", "label", "2")
def label_of_two(folder):
    put(folder / "train.jsonl", '{"id": 1, "img": "img/00001.png", "label": 2, "text": "a"}')


@case("hateful_memes", ValueError, "/train.jsonl", "line 1", "'label'")
def demonstration_without_label(folder):
    put(folder / "train.jsonl", '{"id": 1, "img": "img/00001.png", "text": "a"}')


@case("hateful_memes", ValueError, "train.jsonl, line 2", "id 1")
def same_meme_twice(folder):
    line = '{"id": 1, "img": "img/00001.png", "label": 0, "text": "a"}\n'
    put(folder / "train.jsonl", line * 2)


# ---- images ---------------------------------------------------------------------------------------------------------


@case(
    "vqav2",
    FileNotFoundError,
    f"{QUESTIONS}",
    "item 5",
    "/val2014/COCO_val2014_000000000025.jpg",
    "1",
)
def missing_images(folder):
    for image in (folder / "val2014").iterdir():
        image.unlink()


@case("flickr30k", FileNotFoundError, "dataset_flickr30k.json", "item 13", "/13.jpg")
def missing_image_of_a_demonstration(folder):
    (folder / "flickr30k-images" / "13.jpg").unlink()


@case("flickr30k", FileNotFoundError, "dataset_flickr30k.json", "item 13", "/13.jpg")
def folder_for_an_image(folder):
    (folder / "flickr30k-images" / "13.jpg").unlink()
    (folder / "flickr30k-images" / "13.jpg").mkdir()


@case("flickr30k", ValueError, "images[0]", "filename", "'../secret.jpg'")
def image_of_another_folder(folder):
    change(folder / "dataset_flickr30k.json", lambda c: c["images"][0].update(filename="../secret.jpg"))


@case("vizwiz", ValueError, "val.json, [0]", "image", "'../../a.jpg'")
def image_of_another_folder_in_vizwiz(folder):
    change(folder / "val.json", lambda content: content[0].update(image="../../a.jpg"))


@case("textvqa", ValueError, "question 5", "'../a'")
def image_of_another_folder_in_textvqa(folder):
    change(folder / "TextVQA_0.5.1_val.json", lambda content: content["data"][0].update(image_id="../a"))


@case("vqav2", ValueError, "question 5", "image_id", "'x'")
def image_without_number(folder):
    change(folder / QUESTIONS, lambda content: content["questions"][0].update(image_id="x"))


# ---- texts that would alter the prompt ------------------------------------------------------------------------------


@case(
    "vqav2",
    ValueError,
    f"{QUESTIONS}",
    "item 5",
    "'<image>?'",
    "'<image>'",
)
def image_token_in_a_question(folder):
    change(folder / QUESTIONS, lambda content: content["questions"][0].update(question="<image>?"))


@case("coco", ValueError, "dataset_coco.json", "item 5", "'a<|endofchunk|>'", "'<|endofchunk|>'")
def end_of_chunk_in_a_caption(folder):
    change(folder / "dataset_coco.json", lambda c: c["images"][4].update(sentences=[{"raw": "a<|endofchunk|>"}]))


@case("hateful_memes", ValueError, "train.jsonl", "item 1", "'<image>'")
def image_token_on_a_meme(folder):
    put(folder / "train.jsonl", '{"id": 1, "img": "img/00001.png", "label": 1, "text": "<image>"}')


# ---- classes --------------------------------------------------------------------------------------------------------


@case("imagenet", ValueError, "/val", "n03", "/train")
def class_that_is_only_asked(folder):
    (folder / "val" / "n03").mkdir()


@case("imagenet", ValueError, "/train", "folders")
def no_classes(folder):
    (folder / "train").rename(folder / "moved")
    (folder / "train").mkdir()


@case("imagenet", ValueError, "/train/n01")
def class_without_images(folder):
    for image in (folder / "train" / "n01").iterdir():
        image.unlink()


@case("imagenet", ValueError, "classnames.txt", "n02", "/train")
def class_without_name(folder):
    put(folder / "classnames.txt", "n01 tench\n")


@case("imagenet", ValueError, "classnames.txt, line 2", "'n02'")
def class_with_an_empty_name(folder):
    put(folder / "classnames.txt", "n01 tench\nn02\n")


@case("imagenet", ValueError, "'n02'", "'a <image>'")
def image_token_in_a_class(folder):
    put(folder / "classnames.txt", "n01 tench\nn02 a <image>\n")


@case("imagenet", ValueError, "/train", "tench")
def one_class(folder):
    put(folder / "classnames.txt", "n01 tench\nn02 tench\n")
