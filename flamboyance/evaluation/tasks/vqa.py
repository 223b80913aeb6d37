"""Questions with ten annotators' answers each, in the format of VQA: two files, joined by the questions' ids.

{"questions": [{"question_id": 1, "image_id": 42, "question": "What is this?"}, …]}
{"annotations": [{"question_id": 1, "answers": [{"answer": "a cat", "answer_confidence": "yes"}, …]}, …]}
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flamboyance import templates
from flamboyance.evaluation import metrics
from flamboyance.evaluation.metrics.vqa import submitted_answer
from flamboyance.evaluation.task import Example, Metric, Prediction
from flamboyance.evaluation.tasks.protocols import OPENFLAMINGO, shown_answer
from flamboyance.evaluation.tasks.reading import (
    Record,
    check,
    listed,
    number_or_text,
    records,
    some,
    unique,
    value,
)
from flamboyance.files import read_json

MAX_NEW_TOKENS = 5


@dataclass(frozen=True)
class Asked:
    """A question as the files have it.

    Attributes:
        id, image_id: as text.
        answers: the annotators', each with at least "answer"; none in a test split.
    """

    id: str
    question: str
    image_id: str
    answers: tuple[Record, ...] = ()

    @property
    def said(self) -> tuple[str, ...]:
        return tuple(one["answer"] for one in self.answers)


def accuracy(protocol: str) -> Metric:
    """VQA accuracy: the benchmark's own; under "openflamingo" with every question's answers normalized."""
    return metrics.VQA_ACCURACY if protocol == OPENFLAMINGO else metrics.VQA_ACCURACY_OFFICIAL


def first_part(answer: str) -> str:
    """An answer up to its first comma: models go on with "yes, it is"."""
    return answer.split(", ", 1)[0].strip()


def read_vqa(questions: Path, annotations: Path | None) -> list[Asked]:
    """The questions in their file's order, each with its annotators' answers; none where there is no such file.

    Raises:
        ValueError: a question has no annotation, or the other way round; or as `reading` says.
    """
    asked = records(read_json(questions), "questions", questions)
    found = unique(
        ((number_or_text(one, "question_id", place), place, (place, one)) for place, one in asked), "question"
    )
    answers = {} if annotations is None else _read_annotations(annotations)
    if annotations is not None:
        _check_pairs(found.keys(), questions, answers.keys(), annotations)
    return [
        Asked(
            key,
            value(one, "question", str, place),
            number_or_text(one, "image_id", place),
            answers.get(key, ()),
        )
        for key, (place, one) in found.items()
    ]


def _read_annotations(file: Path) -> dict[str, tuple[Record, ...]]:
    found = records(read_json(file), "annotations", file)
    return unique(
        ((number_or_text(one, "question_id", at), at, read_answers(one, at)) for at, one in found), "question"
    )


def read_answers(record: Record, place: str) -> tuple[Record, ...]:
    """The answers of `record`, each an object with "answer". Fewer than ten are allowed."""
    answers = tuple(value(record, "answers", list, place))
    if not answers:
        raise ValueError(f"{place}: answers is empty; expected what annotators answered")
    # The tests below, which name what is wrong, take too long for VQAv2's four million answers.
    if not all(type(one) is dict and type(one.get("answer")) is str for one in answers):
        for inside, one in listed(list(answers), place, "answers"):
            value(one, "answer", str, inside)
    return answers


def _check_pairs(asked: Collection[str], questions: Path, answered: Collection[str], annotations: Path) -> None:
    alone = [key for key in asked if key not in answered]
    if alone:
        raise ValueError(
            f"{questions}: question {some(alone)} has no annotation in {annotations}; are the files of one split?"
        )
    alone = [key for key in answered if key not in asked]
    if alone:
        raise ValueError(
            f"{annotations}: the annotation of question {some(alone)} has no question in {questions}; are the files "
            "of one split?"
        )


Read = Callable[[Path, Path | None], list[Asked]]
"""(a file of questions, one of annotations or None) -> the questions with their answers."""

Images = Callable[[Path], Callable[[Asked], Path]]
"""A folder -> which of its images a question is about."""


def read_splits(
    files: Mapping[str, Path], protocol: str, images: Images, read: Read = read_vqa
) -> tuple[list[Example], list[Example]]:
    """What demonstrations are taken from, and what is asked (nothing where `files` names no questions for it).

    Args:
        files: "train_questions", "train_annotations", "train_images", and the same without "train_"; "images" serves
            both where there is no "train_images".
    """
    support = _read_split(files, "train_", protocol, images, read)
    return support, _read_split(files, "", protocol, images, read) if "questions" in files else []


def _read_split(files: Mapping[str, Path], prefix: str, protocol: str, images: Images, read: Read) -> list[Example]:
    questions, shown = files[f"{prefix}questions"], bool(prefix)
    asked = read(questions, files.get(f"{prefix}annotations"))
    image = images(files[f"{prefix}images"] if f"{prefix}images" in files else files["images"])
    if shown and not all(one.answers for one in asked):
        raise ValueError(f"{questions} has no answers to show in demonstrations; give the file of annotations as well")
    made = [
        Example(
            one.id,
            image(one),
            shown_answer(one.said, protocol) if one.answers else "",
            (one.question,),
            () if shown else one.said,
        )
        for one in asked
    ]
    check(made, templates.vqa, questions, "train" if shown else "test", solved=shown)
    return made


def coco_images(folder: Path) -> Callable[[Asked], Path]:
    """By number: COCO_val2014_000000000042.jpg, whatever part of COCO the folder holds; 000000000042.jpg as of 2017."""
    named = re.compile(r"(?:COCO_\w+_)?(\d{12})\.jpg")
    with os.scandir(folder) as entries:
        names = {int(match[1]): match[0] for entry in entries if (match := named.fullmatch(entry.name))}

    def image(asked: Asked) -> Path:
        if not asked.image_id.isascii() or not asked.image_id.isdecimal():
            raise ValueError(f"question {asked.id}: image_id is {asked.image_id!r}; expected a number of COCO's")
        number = int(asked.image_id)
        return folder / names.get(number, f"COCO_{folder.name}_{number:012d}.jpg")

    return image


def named_images(folder: Path, suffix: str = "") -> Callable[[Asked], Path]:
    """By name: the image's id, and a suffix."""

    def image(asked: Asked) -> Path:
        name = asked.image_id
        if not name or name in (".", "..") or "/" in name or "\\" in name or "\0" in name:
            raise ValueError(f"question {asked.id}: its image is {name!r}; expected a name, without folders")
        return folder / f"{name}{suffix}"

    return image


def answers_by_question(every: Sequence[str]) -> Callable[[Sequence[Example], Sequence[Prediction]], object]:
    """The file that VQA's test server takes: an answer to every question of its split, "" where none was asked.

    Args:
        every: the ids of the split's questions.
    """

    def file(queries: Sequence[Example], predictions: Sequence[Prediction]) -> list[Record]:
        said = {query.id: one.answer for query, one in zip(queries, predictions, strict=True)}
        return [
            {"question_id": int(key) if key.isdecimal() else key, "answer": submitted_answer(said.get(key, ""))}
            for key in every
        ]

    return file


def answers_by_image(every: Sequence[str]) -> Callable[[Sequence[Example], Sequence[Prediction]], object]:
    """The file that VizWiz's test server takes: an answer for every image of its split, "" where none was asked.

    Args:
        every: the names of the split's images.
    """

    def file(queries: Sequence[Example], predictions: Sequence[Prediction]) -> list[Record]:
        said = {query.image.name: one.answer for query, one in zip(queries, predictions, strict=True)}
        return [{"image": name, "answer": submitted_answer(said.get(name, ""))} for name in every]

    return file
