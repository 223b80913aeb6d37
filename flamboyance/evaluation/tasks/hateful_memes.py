"""Hateful Memes: is a picture with the text on it hateful?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from flamboyance.evaluation import metrics
from flamboyance.evaluation.task import Example, Task, TaskFile
from flamboyance.evaluation.tasks.protocols import OPENFLAMINGO
from flamboyance.evaluation.tasks.reading import check, file_name, number_or_text, unique, value
from flamboyance.files import read_json_lines
from flamboyance.templates import Template

LABELS = ("no", "yes")
TEMPLATE = Template("<image>is an image with: '{text}' written on it. Is it hateful? Answer:{answer}", strip=False)


def load(files: Mapping[str, Path], protocol: str) -> Task:
    return Task(
        "hateful_memes",
        "Hateful Memes",
        TEMPLATE,
        _read(files["train"], files["images"], shown=True),
        _read(files["queries"], files["images"], shown=False) if "queries" in files else [],
        metrics.roc_auc("yes", LABELS),
        labels=LABELS,
        permutations=1 if protocol == OPENFLAMINGO else 6,
    )


def _read(file: Path, images: Path, shown: bool) -> list[Example]:
    found = unique(
        ((number_or_text(one, "id", place), place, (place, one)) for place, one in read_json_lines(file)), "id"
    )
    made = []
    for key, (place, one) in found.items():
        # "img/01234.png": the folder is the one that was given.
        image = {"img": PurePosixPath(value(one, "img", str, place)).name}
        answer = "" if "label" not in one and not shown else _answer(one, place)
        references = (answer,) if answer and not shown else ()
        text = value(one, "text", str, place)
        made.append(Example(key, images / file_name(image, "img", place), answer, (text,), references))
    check(made, TEMPLATE, file, "train" if shown else "test", solved=shown)
    return made


def _answer(record: dict, place: str) -> str:
    label = value(record, "label", int, place)
    if label not in (0, 1):
        raise ValueError(f"{place}: label is {label}; expected 0 (not hateful) or 1 (hateful)")
    return LABELS[label]


TASK = TaskFile(
    "hateful_memes",
    "Hateful Memes",
    {"images": "img/", "train": "train.jsonl", "queries": "test_seen.jsonl"},
    load,
    "yes or no for the seen test split, by ROC AUC",
    for_queries=("queries",),
    splits={
        "dev": {"queries": "dev_seen.jsonl|dev.jsonl"},
        "dev_unseen": {"queries": "dev_unseen.jsonl"},
        "test_unseen": {"queries": "test_unseen.jsonl"},
    },
)
