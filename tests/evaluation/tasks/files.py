"""Tiny benchmarks in their official formats: two or three images to show and two to ask about."""

import json
from pathlib import Path

from PIL import Image


def picture(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (2, 2)).save(file, "PNG")  # readers look at names, not at what is inside
    return file


def put(file: Path, content) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return file


def change(file: Path, edit) -> None:
    """Reads a JSON file, lets `edit` change the content in place, and writes it."""
    content = json.loads(file.read_text(encoding="utf-8"))
    edit(content)
    file.write_text(json.dumps(content), encoding="utf-8")


# ---- captions -------------------------------------------------------------------------------------------------------


def _captioned(name, split, *captions, **more):
    return {"filename": name, "split": split, "sentences": [{"raw": raw} for raw in captions], **more}


def coco(folder):
    images = [
        ("train2014", 1, "train", [" A cat on a sofa. ", "A sofa."]),
        ("val2014", 2, "restval", ["Nobody reads this."]),
        ("val2014", 3, "val", ["Nor this."]),
        ("val2014", 4, "test", ["A red bus.", "A bus."]),
        ("train2014", 5, "train", ["Two dogs"]),
        ("val2014", 6, "test", ["A boat"]),
    ]
    entries = []
    for path, number, split, captions in images:
        name = f"COCO_{path}_{number:012d}.jpg"
        if split in ("train", "test"):
            picture(folder / path / name)
        entries.append(_captioned(name, split, *captions, filepath=path, cocoid=number))
    put(folder / "dataset_coco.json", {"images": entries, "dataset": "coco"})


def flickr30k(folder):
    images = [("11", "train", "A man runs"), ("12", "test", "A dog"), ("13", "train", "A kite"), ("14", "val", "No")]
    for name, split, _ in images:
        if split != "val":
            picture(folder / "flickr30k-images" / f"{name}.jpg")
    put(
        folder / "dataset_flickr30k.json",
        {"images": [_captioned(f"{name}.jpg", split, caption) for name, split, caption in images]},
    )


# ---- questions ------------------------------------------------------------------------------------------------------

TRAIN = [(1, 21, "What is this?", ["a cat", "cat", "cat"]), (2, 22, "What color is the bus?", ["red"] * 3)]
ASKED = [(5, 25, "How many dogs?", ["2"] * 9 + ["two dogs"]), (6, 26, "Is it day?", ["yes"] * 7 + ["no"] * 3)]


def vqa(folder, prefix=""):
    for part, rows in (("train2014", TRAIN), ("val2014", ASKED)):
        for _, image, *_ in rows:
            picture(folder / part / f"COCO_{part}_{image:012d}.jpg")
        vqa_pair(
            folder / f"{prefix}OpenEnded_mscoco_{part}_questions.json",
            folder / f"{prefix}mscoco_{part}_annotations.json",
            rows,
        )


def vqa_pair(questions, annotations, rows, with_ids=True):
    """The annotations stand in the other order: what belongs together is said by the ids."""
    put(questions, {"questions": [{"question_id": q, "image_id": i, "question": t} for q, i, t, _ in rows]})
    entries = []
    for question, image, _, answers in reversed(rows):
        said = [{"answer": one, "answer_confidence": "yes"} for one in answers]
        said = [{"answer_id": n, **one} for n, one in enumerate(said, 1)] if with_ids else said
        entries.append({"question_id": question, "image_id": image, "answers": said})
    put(annotations, {"annotations": entries})


def vqav2(folder):
    vqa(folder, "v2_")
    asked = [{"question_id": 100 + n, "image_id": 40 + n, "question": "What?"} for n in range(3)]
    for one in asked:
        picture(folder / "test2015" / f"COCO_test2015_{one['image_id']:012d}.jpg")
    put(folder / "v2_OpenEnded_mscoco_test2015_questions.json", {"questions": asked})
    put(folder / "v2_OpenEnded_mscoco_test-dev2015_questions.json", {"questions": asked[1:2]})


def ok_vqa(folder):
    vqa(folder)


def textvqa(folder):
    for split, rows in (("train", TRAIN), ("val", ASKED)):
        data = []
        for question, image, text, answers in rows:
            picture(folder / "train_images" / f"{image:016x}.jpg")
            data.append({"question_id": question, "image_id": f"{image:016x}", "question": text, "answers": answers})
        put(folder / f"TextVQA_0.5.1_{split}.json", {"data": data, "dataset_name": "textvqa"})


def textvqa_pair(folder):
    """TextVQA as open_flamingo ships it."""
    for split, rows in (("train", TRAIN), ("val", ASKED)):
        rows = [(question, f"{image:016x}", text, answers) for question, image, text, answers in rows]
        for _, image, *_ in rows:
            picture(folder / "train_images" / f"{image}.jpg")
        questions, annotations = (folder / f"{split}_{kind}_vqa_format.json" for kind in ("questions", "annotations"))
        vqa_pair(questions, annotations, rows)


def vizwiz(folder):
    for split, rows in (("train", TRAIN), ("val", ASKED), ("test", ASKED)):
        data = []
        for _, image, text, answers in rows:
            name = picture(folder / split / f"VizWiz_{split}_{image:08d}.jpg").name
            said = [{"answer": one, "answer_confidence": "yes"} for one in answers]
            data.append({"image": name, "question": text, **({} if split == "test" else {"answers": said})})
        put(folder / f"{split}.json", data)


def vizwiz_pair(folder):
    """VizWiz as open_flamingo ships it: its answers have no ids."""
    for split, rows in (("train", TRAIN), ("val", ASKED)):
        rows = [(question, f"VizWiz_{split}_{image:08d}.jpg", text, answers) for question, image, text, answers in rows]
        for _, image, *_ in rows:
            picture(folder / split / image)
        questions, annotations = (folder / f"{split}_{kind}_vqa_format.json" for kind in ("questions", "annotations"))
        vqa_pair(questions, annotations, rows, with_ids=False)


# ---- choices --------------------------------------------------------------------------------------------------------


def hateful_memes(folder):
    rows = {
        "train": [(1, 0, "nice day"), (2, 1, "nasty day")],
        "dev_seen": [(3, 1, "what a day")],
        "test_seen": [(4, 1, "bad, bad"), (5, 0, "  good ")],
    }
    for split, lines in rows.items():
        for number, *_ in lines:
            picture(folder / "img" / f"{number:05d}.png")
        put(
            folder / f"{split}.jsonl",
            "".join(
                json.dumps({"id": number, "img": f"img/{number:05d}.png", "label": label, "text": text}) + "\n"
                for number, label, text in lines
            ),
        )


def imagenet(folder):
    for split, images in (("train", (1, 2)), ("val", (3,))):
        for wnid in ("n02", "n01"):
            for number in images:
                picture(folder / split / wnid / f"{wnid}_{number}.JPEG")
    put(folder / "classnames.txt", "n01 tench\nn02 great white shark\n")


WRITE = {
    function.__name__: function
    for function in (coco, flickr30k, vqav2, ok_vqa, textvqa, vizwiz, hateful_memes, imagenet)
}
