"""The eight benchmarks in small: the official files' formats with images of the mini world.

    python -m flamboyance.mini.benchmarks DIR
    flamboyance evaluate all --data DIR --demonstrations random,rices

The queries are of the kinds that flamingo-mini was trained on, about images that it has not seen. In `imagenet` the
classes are made-up words, which demonstrations alone explain; in `hateful_memes` an image of something red is hateful.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np

from flamboyance.files import naming, read_json, write_json, write_text
from flamboyance.mini import world
from flamboyance.mini.world import Scene
from flamboyance.mini.world.words import COLORS, COLUMNS, COUNTS, DIGITS, SHAPES, SIZES, draw_words

SEED = 50_000_000  # of scenes that nothing was trained on
VERSION = 2  # of the content; increase it when the content changes
ANNOTATORS = 10
ERRORS = 3  # the most annotators who are wrong, each with a different answer, worth at most 0.3
CLASSES = 16
RED = "red"
ANSWERS = {
    "color": COLORS,
    "shape": SHAPES,
    "size": SIZES,
    "position": COLUMNS,
    "count": COUNTS[1:],
    "yes-no": ("yes", "no"),
    "digit": DIGITS,
}

ANSWER_TYPES = {"yes-no": "yes/no", "count": "number", "digit": "number"}  # VQA's names; the rest is "other"

Asked = tuple[Scene, str, str, str]  # picture, question, answer, the question's kind
Ask = Callable[[np.random.Generator], Asked]


def write(
    folder: Path | str, support: int = 200, queries: int = 48, seed: int = 0, tasks: Collection[str] | None = None
) -> Path:
    """Writes `folder/coco`, `folder/vqav2` and so on; the same files for the same numbers. Returns the folder.

    Args:
        support: images of each task to take demonstrations from.
        queries: images of each task to ask about.
        tasks: those to write; None: all eight.

    Raises:
        ValueError: a number is too small, or the folder was written with other arguments.
        ImportError: scikit-learn, which has the handwritten digits, is not installed.
    """
    folder = Path(folder)
    if support < CLASSES or queries < 1:
        raise ValueError(f"support={support}, queries={queries}: expected at least {CLASSES} and 1")
    made: dict[str, Any] = {"support": support, "queries": queries, "seed": seed, "version": VERSION}
    if tasks is not None:
        made["tasks"] = sorted(tasks)
    note = folder / "made.json"
    if note.is_file():
        if (before := read_json(note)) != made:
            raise ValueError(f"{folder} was written with {before}, not {made}; give another folder")
        return folder
    for number, (name, write_task) in enumerate(TASKS.items()):
        if tasks is None or name in tasks:
            write_task(folder / name, support, queries, np.random.default_rng((SEED + seed, number)))
    write_json(note, made, None)
    return folder


# ---- captions -------------------------------------------------------------------------------------------------------


def _coco(folder: Path, support: int, queries: int, rng: np.random.Generator) -> None:
    entries = []
    for number, split in enumerate(["train"] * support + ["test"] * queries):
        scene = world.scene(rng, int(rng.integers(1, 3)))
        part = "train2014" if split == "train" else "val2014"
        name = _save(scene, folder / part / f"COCO_{part}_{number:012d}.jpg")
        entries.append(_captioned(scene, number, name, split) | {"filepath": part, "cocoid": number})
    _json(folder / "dataset_coco.json", {"images": entries, "dataset": "coco"})


def _flickr30k(folder: Path, support: int, queries: int, rng: np.random.Generator) -> None:
    entries = []
    for number, split in enumerate(["train"] * support + ["test"] * queries):
        scene = world.scene(rng, 1) if rng.random() < 0.5 else _digit(rng, split)
        name = _save(scene, folder / "flickr30k-images" / f"{1_000_000 + number}.jpg")
        entries.append(_captioned(scene, number, name, split))
    _json(folder / "dataset_flickr30k.json", {"images": entries, "dataset": "flickr30k"})


def _captioned(scene: Scene, number: int, name: str, split: str) -> dict[str, Any]:
    """Five captions: three complete, one without sizes, one from right to left."""
    whole = world.caption(scene)
    brief = " and ".join(f"a {thing.color} {thing.shape}" for thing in scene.things) or whole
    back = " and ".join(f"a {thing.size} {thing.color} {thing.shape}" for thing in reversed(scene.things)) or whole
    sentences = [
        {"raw": raw, "tokens": raw.replace(",", "").split(), "imgid": number, "sentid": number * 5 + i}
        for i, raw in enumerate((whole, whole, brief, back, whole))
    ]
    ids = [sentence["sentid"] for sentence in sentences]
    return {"filename": name, "imgid": number, "split": split, "sentences": sentences, "sentids": ids}


# ---- questions ------------------------------------------------------------------------------------------------------


def _about(*kinds: str) -> Ask:
    """A function that draws a question of one of these kinds, all equally likely."""

    def ask(rng: np.random.Generator) -> Asked:
        scene, question = world.draw_question(rng, kinds[rng.integers(len(kinds))])
        return scene, question.text, question.answer, question.kind

    return ask


def _vqav2(folder: Path, support: int, queries: int, rng: np.random.Generator) -> None:
    ask = _about("color", "shape", "count", "yes-no")
    _vqa_files(folder, "v2_", support, queries, rng, ask)
    asked = [_numbered(number, ask(rng)) for number in range(queries)]
    for question, scene, _ in asked:
        _save(scene, folder / "test2015" / f"COCO_test2015_{question['image_id']:012d}.jpg")
    for name, part in (("test2015", asked), ("test-dev2015", asked[: max(queries // 2, 1)])):
        _questions(folder / f"v2_OpenEnded_mscoco_{name}_questions.json", [one[0] for one in part], name)


def _ok_vqa(folder: Path, support: int, queries: int, rng: np.random.Generator) -> None:
    _vqa_files(folder, "", support, queries, rng, _about("shape", "size", "position"))


def _vqa_files(folder: Path, prefix: str, support: int, queries: int, rng: np.random.Generator, ask: Ask) -> None:
    """VQA's and OK-VQA's files: questions and annotations in separate files, images with COCO's names."""
    for part, count in (("train2014", support), ("val2014", queries)):
        asked = [_numbered(number, ask(rng)) for number in range(count)]
        for question, scene, _ in asked:
            _save(scene, folder / part / f"COCO_{part}_{question['image_id']:012d}.jpg")
        _questions(folder / f"{prefix}OpenEnded_mscoco_{part}_questions.json", [one[0] for one in asked], part)
        entries = [
            {"question_id": question["question_id"], "image_id": question["image_id"], **_answers(rng, answer, kind)}
            for question, _, (answer, kind) in asked
        ]
        # In another order than the questions: only the ids connect them.
        shuffled = [entries[i] for i in rng.permutation(len(entries))]
        _json(folder / f"{prefix}mscoco_{part}_annotations.json", {"annotations": shuffled, "data_subtype": part})


def _numbered(number: int, asked: Asked) -> tuple[dict[str, Any], Scene, tuple[str, str]]:
    scene, text, answer, kind = asked
    image = 7 * number + 9
    return {"question_id": image * 1000, "image_id": image, "question": text}, scene, (answer, kind)


def _questions(file: Path, questions: list[dict[str, Any]], part: str) -> None:
    _json(file, {"questions": questions, "task_type": "Open-Ended", "data_type": "mscoco", "data_subtype": part})


def _answers(rng: np.random.Generator, answer: str, kind: str) -> dict[str, Any]:
    said = _annotators(rng, answer, kind)
    answers = [{"answer_id": i, "answer": one, "answer_confidence": "yes"} for i, one in enumerate(said, 1)]
    return {
        "question_type": kind,
        "answer_type": answer_type(kind),
        "multiple_choice_answer": answer,
        "answers": answers,
    }


def answer_type(kind: str) -> str:
    """ "yes/no", "number" or "other", the answer types of VQA's files."""
    return ANSWER_TYPES.get(kind, "other")


def _annotators(rng: np.random.Generator, answer: str, kind: str) -> list[str]:
    """Ten answers in random order: seven to ten are right, and no two of the others are the same."""
    wrong = [other for other in ANSWERS[kind] if other != answer]
    mistakes = [wrong[i] for i in rng.permutation(len(wrong))[: rng.integers(ERRORS + 1)]]
    said = mistakes + [answer] * (ANNOTATORS - len(mistakes))
    return [said[i] for i in rng.permutation(ANNOTATORS)]


def _textvqa(folder: Path, support: int, queries: int, rng: np.random.Generator) -> None:
    for split, count in (("train", support), ("val", queries)):
        data = []
        for number in range(count):
            scene = _digit(rng, split)
            answer = scene.digit.value if scene.digit else ""
            key = f"{int(rng.integers(2**48)):016x}"
            _save(scene, folder / "train_images" / f"{key}.jpg")
            said = _annotators(rng, answer, "digit")
            identity = {"question_id": number + (support if split == "val" else 0), "image_id": key}
            data.append({"question": world.DIGIT_QUESTION, **identity, "answers": said, "set_name": split})
        content = {"dataset_type": split, "dataset_name": "textvqa", "dataset_version": "0.5.1", "data": data}
        _json(folder / f"TextVQA_0.5.1_{split}.json", content)


def _vizwiz(folder: Path, support: int, queries: int, rng: np.random.Generator) -> None:
    ask = _about("color", "shape", "count")
    for split, count in (("train", support), ("val", queries), ("test", queries)):
        data = []
        for number in range(count):
            scene, text, answer, kind = ask(rng)
            name = _save(scene, folder / split / f"VizWiz_{split}_{number:08d}.jpg")
            said = _annotators(rng, answer, kind)
            answerable = rng.random() < 0.8
            if not answerable:  # most annotators say so; the others guess
                said = ["unanswerable" if one == answer else one for one in said]
            sure = [("yes", "maybe", "no")[i] for i in rng.choice(3, ANNOTATORS, p=(0.7, 0.2, 0.1))]
            pairs = zip(said, sure, strict=True)
            answers = [{"answer_confidence": confidence, "answer": one} for one, confidence in pairs]
            kind_of_answer = answer_type(kind) if answerable else "unanswerable"
            solved = {"answers": answers, "answer_type": kind_of_answer, "answerable": int(answerable)}
            data.append({"image": name, "question": text} | (solved if split != "test" else {}))
        _json(folder / "Annotations" / f"{split}.json", data)


# ---- choices --------------------------------------------------------------------------------------------------------


def _hateful_memes(folder: Path, support: int, queries: int, rng: np.random.Generator) -> None:
    calm = [color for color in COLORS if color != RED]
    for split, first, count in (("train", 0, support), ("dev_seen", support, queries), ("test_seen", 0, queries)):
        lines = []
        for number in range(count):
            label = number % 2
            scene = world.scene(rng, 1, color=RED if label else calm[rng.integers(len(calm))])
            key = first + number + (2 * support + queries if split == "test_seen" else 0)
            name = _save(scene, folder / "img" / f"{key:05d}.png")
            # The text is independent of the label.
            text = f"a {SIZES[rng.integers(len(SIZES))]} {SHAPES[rng.integers(len(SHAPES))]}"
            lines.append(json.dumps({"id": key, "img": f"img/{name}", "label": label, "text": text}))
        write_text(folder / f"{split}.jsonl", "\n".join(lines[i] for i in rng.permutation(count)) + "\n")


def _imagenet(folder: Path, support: int, queries: int, rng: np.random.Generator) -> None:
    """Classes are a colored shape or a digit; their names are made-up words that no training text had."""
    pairs = [(color, shape) for color in COLORS for shape in SHAPES]
    things = [pairs[i] for i in rng.permutation(len(pairs))[: CLASSES - CLASSES // 4]]
    digits = [DIGITS[i] for i in rng.permutation(len(DIGITS))[: CLASSES // 4]]
    words = draw_words(rng, CLASSES, "test")
    folders = [f"n{90000000 + number}" for number in range(CLASSES)]
    lines = [f"{one} {word}\n" for one, word in zip(folders, words, strict=True)]
    for split, count in (("train", support), ("val", queries)):
        for number in range(count):
            which = number % CLASSES
            if which < len(things):
                color, shape = things[which]
                scene = world.scene(rng, 1, color=color, shape=shape)
            else:
                scene = _digit(rng, split, digits[which - len(things)])
            _save(scene, folder / split / folders[which] / f"{folders[which]}_{split}_{number:05d}.JPEG")
    write_text(folder / "classnames.txt", "".join(lines))


# ---- pictures and files ---------------------------------------------------------------------------------------------


def _digit(rng: np.random.Generator, split: str, value: str | None = None) -> Scene:
    """A digit; queries show scans that nothing was trained on."""
    return world.digit_scene(rng, "train" if split == "train" else "test", value)


def _save(scene: Scene, file: Path) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    kind = "PNG" if file.suffix == ".png" else "JPEG"
    with naming(file):
        world.picture(scene).save(file, kind, **({} if kind == "PNG" else {"quality": 95, "subsampling": 0}))
    return file.name


def _json(file: Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, content, None)


TASKS: dict[str, Callable[[Path, int, int, np.random.Generator], None]] = {
    "coco": _coco,
    "flickr30k": _flickr30k,
    "vqav2": _vqav2,
    "ok_vqa": _ok_vqa,
    "textvqa": _textvqa,
    "vizwiz": _vizwiz,
    "hateful_memes": _hateful_memes,
    "imagenet": _imagenet,
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Write the eight benchmarks in small, in their official formats.")
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--support", type=int, default=200, help="images to take demonstrations from, per task (default: %(default)s)"
    )
    parser.add_argument("--queries", type=int, default=48, help="images to ask about, per task (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    try:
        folder = write(given.folder, given.support, given.queries, given.seed)
    except (ValueError, ImportError) as error:
        raise SystemExit(f"{error}") from error
    print(f"{', '.join(TASKS)}: {given.support} support images and {given.queries} queries each, in {folder}")


if __name__ == "__main__":
    main()
