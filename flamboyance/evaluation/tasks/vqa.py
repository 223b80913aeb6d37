"""VQAv2, OK-VQA, TextVQA and VizWiz: questions with ten annotators' answers each.

VQA's format is two files, joined by the ids of the questions:

{"questions": [{"question_id": 1, "image_id": 42, "question": "What is this?"}, …]}
{"annotations": [{"question_id": 1, "answers": [{"answer": "a cat", "answer_confidence": "yes"}, …]}, …]}
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flamboyance import templates
from flamboyance.evaluation import metrics
from flamboyance.evaluation.metrics.vqa import submitted_answer
from flamboyance.evaluation.task import Example, Metric, Prediction, Task
from flamboyance.evaluation.tasks.official_files import (
    Record,
    check,
    is_plain_name,
    listed,
    number_or_text,
    records,
    some,
    unique,
    value,
)
from flamboyance.evaluation.tasks.protocols import OPENFLAMINGO, separator, shown_answer
from flamboyance.files import read_json

MAX_NEW_TOKENS = 5


@dataclass(frozen=True)
class Question:
    """A question of the files.

    Attributes:
        annotations: the annotators' answers, each an object with at least "answer"; none in a test split.
        kinds: as of Example: the types of the answer and of the question, where the files have them.
    """

    id: str
    text: str
    image_id: str
    annotations: tuple[Record, ...] = ()
    kinds: tuple[tuple[str, str], ...] = ()

    @property
    def answers(self) -> tuple[str, ...]:
        return tuple(one["answer"] for one in self.annotations)


Read = Callable[[Path, Path | None], list[Question]]
"""(file of questions, file of annotations or None) -> the questions with their answers."""

Images = Callable[[Path], Callable[[Question], Path]]
"""A folder -> a function from a question to its image."""


def accuracy(protocol: str) -> Metric:
    """VQA accuracy as VQAv2's script computes it; under "openflamingo" all answers are normalized."""
    return metrics.VQA_ACCURACY if protocol == OPENFLAMINGO else metrics.VQA_ACCURACY_OFFICIAL


def first_part(answer: str) -> str:
    """An answer up to its first comma: models continue an answer, as in "yes, it is"."""
    return answer.split(", ", 1)[0].strip()


def vqa_task(
    name: str,
    title: str,
    files: Mapping[str, Path],
    protocol: str,
    images: Images,
    read: Read | None = None,
    **changes: Any,
) -> Task:
    """A task of such questions.

    Args:
        files: "train_questions", "train_annotations", "train_images", and the same without "train_". "images" serves
            both splits if there is no "train_images".
        read: reads the questions of a split; default: VQA's format.
        changes: attributes of Task that differ from those of VQAv2.
    """
    support = _read_split(files, "train_", protocol, images, read or read_vqa)
    queries = _read_split(files, "", protocol, images, read or read_vqa)
    options: dict[str, Any] = {"metric": accuracy(protocol), "max_new_tokens": MAX_NEW_TOKENS}
    options |= {"separator": separator(protocol), "post_process": first_part}
    return Task(name, title, templates.vqa, support, queries, **(options | changes))


def read_vqa(questions: Path, annotations: Path | None) -> list[Question]:
    """The questions in the order of their file, each with its annotations, if there is a file of them.

    Raises:
        ValueError: a question has no annotation, or an annotation no question; or as `reading` says.
    """
    answers = {} if annotations is None else _read_annotations(annotations)
    found = unique_questions(
        (place, read_question(one, place, *answers.get(number_or_text(one, "question_id", place), ((), ()))))
        for place, one in records(read_json(questions), "questions", questions)
    )
    if annotations is not None:
        _check_pairs([one.id for one in found], questions, answers.keys(), annotations)
    return found


def read_question(
    record: Record, place: str, annotations: tuple[Record, ...], kinds: tuple[tuple[str, str], ...] = ()
) -> Question:
    """The question of a record with "question_id", "question" and "image_id"."""
    key, image = (number_or_text(record, name, place) for name in ("question_id", "image_id"))
    return Question(key, value(record, "question", str, place), image, annotations, kinds)


def read_kinds(record: Record) -> tuple[tuple[str, str], ...]:
    """The types that a record names, of its answer ("yes/no", "number", "other") and of its question."""
    named = (("answer type", record.get("answer_type")), ("question type", record.get("question_type")))
    return tuple((name, kind) for name, kind in named if isinstance(kind, str) and kind)


def unique_questions(placed: Iterable[tuple[str, Question]], what: str = "question") -> list[Question]:
    """The questions of (place in the file, question).

    Raises:
        ValueError: two have the same id.
    """
    return list(unique(((one.id, place, one) for place, one in placed), what).values())


def _read_annotations(file: Path) -> dict[str, tuple[tuple[Record, ...], tuple[tuple[str, str], ...]]]:
    """The answers and kinds of each question."""
    found = records(read_json(file), "annotations", file)
    return unique(
        (
            (number_or_text(one, "question_id", place), place, (read_answers(one, place), read_kinds(one)))
            for place, one in found
        ),
        "question",
    )


def read_answers(record: Record, place: str) -> tuple[Record, ...]:
    """The answers of a record, each an object with "answer". There may be fewer than ten."""
    answers = tuple(value(record, "answers", list, place))
    if not answers:
        raise ValueError(f"{place}: answers is empty; expected the annotators' answers")
    # `listed` and `value`, which name what is wrong, take too long for VQAv2's four million answers.
    if not all(type(one) is dict and type(one.get("answer")) is str for one in answers):
        for inside, one in listed(list(answers), place, "answers"):
            value(one, "answer", str, inside)
    return answers


def _check_pairs(asked: Sequence[str], questions: Path, answered: Collection[str], annotations: Path) -> None:
    alone = [key for key in asked if key not in answered]
    if alone:
        raise ValueError(
            f"{questions}: question {some(alone)} has no annotation in {annotations}; are the files of one split?"
        )
    known = set(asked)
    alone = [key for key in answered if key not in known]
    if alone:
        raise ValueError(
            f"{annotations}: the annotation of question {some(alone)} has no question in {questions}; are the files "
            "of one split?"
        )


def _read_split(files: Mapping[str, Path], prefix: str, protocol: str, images: Images, read: Read) -> list[Example]:
    file, shown = files[f"{prefix}questions"], bool(prefix)
    questions = read(file, files.get(f"{prefix}annotations"))
    image = images(files[f"{prefix}images"] if f"{prefix}images" in files else files["images"])
    if shown and not all(one.annotations for one in questions):
        raise ValueError(f"{file} has no answers to show in demonstrations; give the file of annotations as well")
    examples = [
        Example(
            one.id,
            image(one),
            shown_answer(one.answers, protocol) if one.annotations else "",
            (one.text,),
            () if shown else one.answers,
            kinds=() if shown else one.kinds,
        )
        for one in questions
    ]
    check(examples, templates.vqa, file, "train" if shown else "test", solved=shown)
    return examples


def coco_images(folder: Path) -> Callable[[Question], Path]:
    """Finds images by number: COCO_val2014_000000000042.jpg, whatever part of COCO the folder holds, or 2017's
    000000000042.jpg."""
    named = re.compile(r"(?:COCO_\w+_)?(\d{12})\.jpg")
    with os.scandir(folder) as entries:
        names = {int(match[1]): match[0] for entry in entries if (match := named.fullmatch(entry.name))}

    def image(question: Question) -> Path:
        if not question.image_id.isascii() or not question.image_id.isdecimal():
            raise ValueError(f"question {question.id}: image_id is {question.image_id!r}; expected a COCO number")
        number = int(question.image_id)
        return folder / names.get(number, f"COCO_{folder.name}_{number:012d}.jpg")

    return image


def named_images(folder: Path, suffix: str = "") -> Callable[[Question], Path]:
    """Finds images by name: the image's id and a suffix."""

    def image(question: Question) -> Path:
        if not is_plain_name(question.image_id):
            raise ValueError(
                f"question {question.id}: its image is {question.image_id!r}; expected a name, without folders"
            )
        return folder / f"{question.image_id}{suffix}"

    return image


def answers_by_question(every: Sequence[str]) -> Callable[[Sequence[Example], Sequence[Prediction]], object]:
    """Makes the file for VQA's test server: an answer for every question of the split, "" for one that was not asked.

    Args:
        every: the ids of the split's questions.
    """

    def submission(queries: Sequence[Example], predictions: Sequence[Prediction]) -> list[Record]:
        answers = {query.id: one.answer for query, one in zip(queries, predictions, strict=True)}
        return [
            {"question_id": int(key) if key.isdecimal() else key, "answer": submitted_answer(answers.get(key, ""))}
            for key in every
        ]

    return submission


def answers_by_image(every: Sequence[str]) -> Callable[[Sequence[Example], Sequence[Prediction]], object]:
    """Makes the file for VizWiz's test server: an answer for every image of the split, "" for one that was not asked.

    Args:
        every: the names of the split's images.
    """

    def submission(queries: Sequence[Example], predictions: Sequence[Prediction]) -> list[Record]:
        answers = {query.image.name: one.answer for query, one in zip(queries, predictions, strict=True)}
        return [{"image": name, "answer": submitted_answer(answers.get(name, ""))} for name in every]

    return submission
