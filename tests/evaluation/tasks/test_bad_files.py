"""Bad files, in one table: what is spoiled, and the message, which names the file and the item. No model is near."""

import re

import pytest

from flamboyance.evaluation.tasks import open_task
from tests.evaluation.tasks.files import WRITE, change, put

TABLE = []
QUESTIONS, ANNOTATIONS = "v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json"


def case(task, error, message, **options):
    """`spoil` gets the task's folder; `message` is the error's whole text, `…` for any."""

    def add(spoil):
        pattern = ".*".join(map(re.escape, message.split("…")))
        TABLE.append(pytest.param(task, spoil, options, error, f"(?s)^{pattern}$", id=spoil.__name__.strip("_")))
        return spoil

    return add


@pytest.mark.parametrize("task, spoil, options, error, pattern", TABLE)
def test_message(task, spoil, options, error, pattern, tmp_path):
    name = task.partition(":")[0]
    if name in WRITE:
        WRITE[name](tmp_path / name)
    spoil(tmp_path / name)
    with pytest.raises(error) as refused:
        open_task(task, tmp_path, **options)
    assert re.match(pattern, str(refused.value)), str(refused.value)


# ---- names and files ------------------------------------------------------------------------------------------------


@case("cocoa", ValueError, "there is no task 'cocoa'. Did you mean coco? There are coco, …, imagenet")
def unknown_task(folder):
    pass


@case("vqav2:dev", ValueError, "vqav2 has no split 'dev'; there is vqav2, and vqav2:test-dev, vqav2:test")
def unknown_split(folder):
    pass


@case("coco", ValueError, "protocol='paper': expected 'papers' or 'openflamingo'", protocol="paper")
def unknown_protocol(folder):
    pass


@case("coco", ValueError, "coco reads no 'json'; its files are karpathy, train_images, images", files={"json": "a"})
def unknown_file_name(folder):
    pass


@case("coco", ValueError, "coco.images is empty; expected the path of a folder", files={"images": ""})
def empty_path(folder):
    pass


@case(
    "vqav2",
    FileNotFoundError,
    "VQAv2 needs what is not there:\n"
    "  …/vqav2/train2014: expected a folder; if it lies elsewhere, --file vqav2.train_images=PATH\n"
    f"  …/{QUESTIONS}: expected a file; if it lies elsewhere, --file vqav2.questions=PATH",
)
def missing_files_all_at_once(folder):
    (folder / "train2014").rename(folder / "pictures")
    (folder / QUESTIONS).unlink()


@case("textvqa", FileNotFoundError, "…TextVQA_0.5.1_val.json or val_questions_vqa_format.json: expected a file…")
def missing_file_of_two_formats(folder):
    (folder / "TextVQA_0.5.1_val.json").unlink()


@case("coco", FileNotFoundError, "…dataset_coco.json is not one: expected a file;…")
def folder_for_a_file(folder):
    (folder / "dataset_coco.json").unlink()
    (folder / "dataset_coco.json").mkdir()


@case("coco", FileNotFoundError, "…val2014 is not one: expected a folder;…coco.images=PATH")
def file_for_a_folder(folder):
    (folder / "val2014").rename(folder / "moved")
    put(folder / "val2014", "")


@case(
    "coco", FileNotFoundError, "…nowhere.json: expected a file…coco.karpathy=PATH", files={"karpathy": "nowhere.json"}
)
def missing_file_that_was_given(folder):
    pass


# ---- JSON -----------------------------------------------------------------------------------------------------------


@case("coco", ValueError, "…/dataset_coco.json, line 2, column 3 is not JSON: …")
def wrong_json(folder):
    put(folder / "dataset_coco.json", '{"images": [\n  oops]}')


@case("coco", ValueError, "…/dataset_coco.json, line 1, column 1 is not JSON: …")
def empty_file(folder):
    put(folder / "dataset_coco.json", "")


@case("coco", ValueError, "…/dataset_coco.json, line 1 is not UTF-8 text: …")
def not_text(folder):
    (folder / "dataset_coco.json").write_bytes(b"\xff\xd8\xff")


@case("coco", ValueError, "…/dataset_coco.json is not JSON that can be read: …")
def deep_json(folder):
    put(folder / "dataset_coco.json", "[" * 100_000)


@case(
    "coco",
    ValueError,
    "…dataset_coco.json holds a list; expected an object with the key 'images'; is it the right file?",
)
def list_for_an_object(folder):
    put(folder / "dataset_coco.json", [])


@case("vqav2", ValueError, f"…{QUESTIONS} holds the keys annotations; expected an object with the key 'questions'; …")
def files_mixed_up(folder):
    (folder / QUESTIONS).write_text((folder / ANNOTATIONS).read_text(encoding="utf-8"), encoding="utf-8")


@case("vqav2", ValueError, f"…{ANNOTATIONS}, annotations is an object; expected a list")
def object_for_a_list(folder):
    put(folder / ANNOTATIONS, {"annotations": {}})


@case("coco", ValueError, "…dataset_coco.json, images[1] is a text ('oops'); expected an object")
def text_for_an_object(folder):
    change(folder / "dataset_coco.json", lambda content: content["images"].__setitem__(1, "oops"))


@case("coco", ValueError, "…dataset_coco.json, images[0] has no 'cocoid'; it has filename, split, sentences, filepath")
def missing_key(folder):
    change(folder / "dataset_coco.json", lambda content: content["images"][0].pop("cocoid"))


@case("vqav2", ValueError, f"…{QUESTIONS}, questions[0]: question is null; expected a text")
def null_for_a_text(folder):
    change(folder / QUESTIONS, lambda content: content["questions"][0].update(question=None))


@case("vqav2", ValueError, f"…{QUESTIONS}, questions[0]: question_id is true or false (True); expected…")
def truth_for_an_id(folder):
    change(folder / QUESTIONS, lambda content: content["questions"][0].update(question_id=True))


@case("hateful_memes", ValueError, "…/train.jsonl, line 2, column 1 is not JSON: …")
def wrong_json_line(folder):
    put(folder / "train.jsonl", '{"id": 1, "img": "img/00001.png", "label": 0, "text": "a"}\noops\n')


@case("hateful_memes", ValueError, "…/train.jsonl, line 1 is a list; expected an object")
def list_for_a_line(folder):
    put(folder / "train.jsonl", "[]")


# ---- items ----------------------------------------------------------------------------------------------------------


@case("coco", ValueError, "…dataset_coco.json holds nothing to read for the split 'test'; is it the right file?")
def empty_split(folder):
    change(
        folder / "dataset_coco.json", lambda c: c.update(images=[one for one in c["images"] if one["split"] != "test"])
    )


@case("vqav2", ValueError, f"…{QUESTIONS} holds nothing to read for the split 'test'; is it the right file?")
def no_questions(folder):
    put(folder / QUESTIONS, {"questions": []})
    put(folder / ANNOTATIONS, {"annotations": []})


@case("coco", ValueError, "…dataset_coco.json, test: the id 4 is there twice; remove one of the two")
def same_image_twice(folder):
    change(folder / "dataset_coco.json", lambda content: content["images"].append(content["images"][3]))


@case("vqav2", ValueError, f"…{QUESTIONS}, questions[2]: the question 5 is there twice; remove one of the two")
def same_question_twice(folder):
    change(folder / QUESTIONS, lambda content: content["questions"].append(content["questions"][0]))


@case("vqav2", ValueError, f"…{ANNOTATIONS}, annotations[2]: the question 6 is there twice; remove one of the two")
def same_annotation_twice(folder):
    change(folder / ANNOTATIONS, lambda content: content["annotations"].append(content["annotations"][0]))


@case("vqav2", ValueError, f"…{QUESTIONS}: question 6 has no annotation in …{ANNOTATIONS}; are the files of one split?")
def question_without_annotation(folder):
    change(folder / ANNOTATIONS, lambda content: content["annotations"].pop(0))


@case("vqav2", ValueError, f"…{ANNOTATIONS}: the annotation of question 6 has no question in …{QUESTIONS}; …")
def annotation_without_question(folder):
    change(folder / QUESTIONS, lambda content: content["questions"].pop(1))


@case("vqav2", ValueError, f"…{ANNOTATIONS}, annotations[0]: answers is empty; expected what annotators answered")
def no_answers(folder):
    change(folder / ANNOTATIONS, lambda content: content["annotations"][0].update(answers=[]))


@case("vqav2", ValueError, f"…{ANNOTATIONS}, annotations[0], answers[1] has no 'answer'; it has …")
def answer_without_text(folder):
    change(folder / ANNOTATIONS, lambda content: content["annotations"][0]["answers"][1].pop("answer"))


@case("textvqa", ValueError, "…TextVQA_0.5.1_val.json, data[0]: answers is []; expected a list of texts")
def no_answers_in_textvqa(folder):
    change(folder / "TextVQA_0.5.1_val.json", lambda content: content["data"][0].update(answers=[]))


@case("textvqa", ValueError, "…TextVQA_0.5.1_train.json has no answers to show in demonstrations; …")
def no_answers_to_show(folder):
    change(folder / "TextVQA_0.5.1_train.json", lambda content: content["data"][0].pop("answers"))


@case(
    "vizwiz",
    ValueError,
    "vizwiz: the queries have no answers to compare with. Give --file vizwiz.annotations=PATH, or no PATH to get "
    "predictions alone, or ask for vizwiz:test",
)
def queries_without_answers(folder):
    (folder / "val.json").write_text(
        (folder / "test.json").read_text(encoding="utf-8").replace("VizWiz_test", "VizWiz_val"), encoding="utf-8"
    )


@case("hateful_memes", ValueError, "hateful_memes: the queries have no answers…as --file hateful_memes.queries=PATH")
def memes_without_labels(folder):
    put(folder / "test_seen.jsonl", '{"id": 4, "img": "img/00004.png", "text": "a"}')


@case("coco", ValueError, "…dataset_coco.json, images[0]: sentences holds no caption")
def no_captions(folder):
    change(folder / "dataset_coco.json", lambda content: content["images"][0].update(sentences=[{"raw": " "}]))


@case("coco", ValueError, "…images[0]: filepath is 'train2017'; expected train2014 or val2014")
def image_of_another_coco(folder):
    change(folder / "dataset_coco.json", lambda content: content["images"][0].update(filepath="train2017"))


@case("hateful_memes", ValueError, "…/train.jsonl, line 1: label is 2; expected 0 (not hateful) or 1 (hateful)")
def label_of_two(folder):
    put(folder / "train.jsonl", '{"id": 1, "img": "img/00001.png", "label": 2, "text": "a"}')


@case("hateful_memes", ValueError, "…/train.jsonl, line 1 has no 'label'; it has id, img, text")
def demonstration_without_label(folder):
    put(folder / "train.jsonl", '{"id": 1, "img": "img/00001.png", "text": "a"}')


@case("hateful_memes", ValueError, "…/train.jsonl, line 2: the id 1 is there twice; remove one of the two")
def same_meme_twice(folder):
    line = '{"id": 1, "img": "img/00001.png", "label": 0, "text": "a"}\n'
    put(folder / "train.jsonl", line * 2)


# ---- images ---------------------------------------------------------------------------------------------------------


@case(
    "vqav2",
    FileNotFoundError,
    f"…{QUESTIONS}, item 5 names the image …/val2014/COCO_val2014_000000000025.jpg, which does not exist (nor 1 more)",
)
def missing_images(folder):
    for image in (folder / "val2014").iterdir():
        image.unlink()


@case("flickr30k", FileNotFoundError, "…dataset_flickr30k.json, item 13 names the image …/13.jpg, which does not exist")
def missing_image_of_a_demonstration(folder):
    (folder / "flickr30k-images" / "13.jpg").unlink()


@case("flickr30k", FileNotFoundError, "…dataset_flickr30k.json, item 13 names the image …/13.jpg, which does not exist")
def folder_for_an_image(folder):
    (folder / "flickr30k-images" / "13.jpg").unlink()
    (folder / "flickr30k-images" / "13.jpg").mkdir()


@case(
    "flickr30k", ValueError, "…images[0]: filename is '../secret.jpg'; expected the name of an image, without folders"
)
def image_of_another_folder(folder):
    change(folder / "dataset_flickr30k.json", lambda c: c["images"][0].update(filename="../secret.jpg"))


@case("vizwiz", ValueError, "…val.json, [0]: image is '../../a.jpg'; expected the name of an image, without folders")
def image_of_another_folder_in_vizwiz(folder):
    change(folder / "val.json", lambda content: content[0].update(image="../../a.jpg"))


@case("textvqa", ValueError, "question 5: its image is '../a'; expected a name, without folders")
def image_of_another_folder_in_textvqa(folder):
    change(folder / "TextVQA_0.5.1_val.json", lambda content: content["data"][0].update(image_id="../a"))


@case("vqav2", ValueError, "question 5: image_id is 'x'; expected a number of COCO's")
def image_without_number(folder):
    change(folder / QUESTIONS, lambda content: content["questions"][0].update(image_id="x"))


# ---- texts that would alter the prompt ------------------------------------------------------------------------------


@case(
    "vqav2",
    ValueError,
    f"…{QUESTIONS}, test, item 5: question='<image>?' holds '<image>', which would alter…edit the file",
)
def image_token_in_a_question(folder):
    change(folder / QUESTIONS, lambda content: content["questions"][0].update(question="<image>?"))


@case("coco", ValueError, "…dataset_coco.json, train, item 5: text='a<|endofchunk|>' holds '<|endofchunk|>', …")
def end_of_chunk_in_a_caption(folder):
    change(folder / "dataset_coco.json", lambda c: c["images"][4].update(sentences=[{"raw": "a<|endofchunk|>"}]))


@case("hateful_memes", ValueError, "…train.jsonl, train, item 1: text='<image>' holds '<image>', …")
def image_token_on_a_meme(folder):
    put(folder / "train.jsonl", '{"id": 1, "img": "img/00001.png", "label": 1, "text": "<image>"}')


# ---- classes --------------------------------------------------------------------------------------------------------


@case("imagenet", ValueError, "…/val has the folder n03, which …/train has not")
def class_that_is_only_asked(folder):
    (folder / "val" / "n03").mkdir()


@case("imagenet", ValueError, "…/train has no folders; expected one for each class, with its images")
def no_classes(folder):
    (folder / "train").rename(folder / "moved")
    (folder / "train").mkdir()


@case("imagenet", ValueError, "…/train/n01 holds no image (…)")
def class_without_images(folder):
    for image in (folder / "train" / "n01").iterdir():
        image.unlink()


@case("imagenet", ValueError, "…/classnames.txt names no class for the folder n02 of …/train")
def class_without_name(folder):
    put(folder / "classnames.txt", "n01 tench\n")


@case("imagenet", ValueError, "…/classnames.txt, line 2 is 'n02'; expected a folder and its name: n01440764 tench")
def class_with_an_empty_name(folder):
    put(folder / "classnames.txt", "n01 tench\nn02\n")


@case("imagenet", ValueError, "…: the class 'n02' is called 'a <image>'; expected a plain name")
def image_token_in_a_class(folder):
    put(folder / "classnames.txt", "n01 tench\nn02 a <image>\n")


@case("imagenet", ValueError, "…/train has the class tench, tench alone; expected two or more")
def one_class(folder):
    put(folder / "classnames.txt", "n01 tench\nn02 tench\n")
