"""TextVQA: questions about what is written in the picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from flamboyance import templates
from flamboyance.evaluation.task import Task, TaskFile
from flamboyance.evaluation.tasks import vqa
from flamboyance.evaluation.tasks.protocols import OPENFLAMINGO, separator
from flamboyance.evaluation.tasks.reading import listed, number_or_text, unique, value
from flamboyance.evaluation.tasks.vqa import Asked
from flamboyance.files import read_json


def load(files: Mapping[str, Path], protocol: str) -> Task:
    support, queries = vqa.read_splits(files, protocol, lambda folder: vqa.named_images(folder, ".jpg"), read)
    return Task(
        "textvqa",
        "TextVQA",
        templates.vqa,
        support,
        queries,
        vqa.accuracy(protocol),
        max_new_tokens=10 if protocol == OPENFLAMINGO else vqa.MAX_NEW_TOKENS,
        separator=separator(protocol),
        post_process=vqa.first_part,
    )


def read(questions: Path, annotations: Path | None) -> list[Asked]:
    """TextVQA's own file, which has the answers too, or a pair in VQA's format; told apart by their content.

    Raises:
        ValueError: as `vqa.read_vqa`.
    """
    content = read_json(questions)
    if not isinstance(content, dict) or "data" not in content:
        return vqa.read_vqa(questions, annotations)
    found = listed(content["data"], questions, "data")
    asked = unique(
        ((number_or_text(one, "question_id", place), place, (place, one)) for place, one in found), "question"
    )
    return [
        Asked(
            key,
            value(one, "question", str, place),
            number_or_text(one, "image_id", place),
            _answers(one, place),
        )
        for key, (place, one) in asked.items()
    ]


def _answers(record: dict, place: str) -> tuple[dict, ...]:
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
    for_queries=("questions", "annotations"),
)
