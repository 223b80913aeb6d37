"""TextVQA: questions about text in images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from flamboyance.evaluation import metrics
from flamboyance.evaluation.task import Task, TaskFile
from flamboyance.evaluation.tasks import vqa
from flamboyance.evaluation.tasks.official_files import Record, listed, value
from flamboyance.evaluation.tasks.protocols import OPENFLAMINGO
from flamboyance.evaluation.tasks.vqa import Question
from flamboyance.files import read_json


def load(files: Mapping[str, Path], protocol: str) -> Task:
    longest = 10 if protocol == OPENFLAMINGO else vqa.MAX_NEW_TOKENS
    changes = {"max_new_tokens": longest, "metric": metrics.VQA_ACCURACY}  # of MMF's evaluator
    return vqa.vqa_task("textvqa", "TextVQA", files, protocol, _images, read, **changes)


def _images(folder: Path) -> Callable[[Question], Path]:
    return vqa.named_images(folder, ".jpg")


def read(questions: Path, annotations: Path | None) -> list[Question]:
    """Reads TextVQA's own file, which holds the answers too, or a pair of files in VQA's format.

    Raises:
        ValueError: as `vqa.read_vqa`.
    """
    content = read_json(questions)
    if not isinstance(content, dict) or "data" not in content:
        return vqa.read_vqa(questions, annotations)
    return vqa.unique_questions(
        (place, vqa.read_question(one, place, _answers(one, place)))
        for place, one in listed(content["data"], questions, "data")
    )


def _answers(record: Record, place: str) -> tuple[Record, ...]:
    if "answers" not in record:  # the test split's
        return ()
    answers = value(record, "answers", list, place)
    if not answers or not all(isinstance(one, str) for one in answers):
        raise ValueError(f"{place}: answers is {answers!r}; expected a list of texts")
    return tuple({"answer": one} for one in answers)


TASK = TaskFile(
    "textvqa",
    "TextVQA",
    {
        "images": "train_images/",
        "train_questions": "TextVQA_0.5.1_train.json|train_questions_vqa_format.json",
        "questions": "TextVQA_0.5.1_val.json|val_questions_vqa_format.json",
    },
    load,
    "questions of the validation split, by VQA accuracy",
    optional={
        "train_annotations": "train_annotations_vqa_format.json",
        "annotations": "val_annotations_vqa_format.json",
    },
)
