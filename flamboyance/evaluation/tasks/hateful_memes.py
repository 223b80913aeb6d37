"""Hateful Memes: is an image with its text hateful?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from flamboyance.evaluation import metrics
from flamboyance.evaluation.task import Example, Task, TaskFile
from flamboyance.evaluation.tasks.official_files import check, file_name, number_or_text, unique, value
from flamboyance.evaluation.tasks.protocols import OPENFLAMINGO
from flamboyance.files import Record, read_json_lines
from flamboyance.templates import Template

LABELS = ("no", "yes")
TEMPLATE = Template("<image>is an image with: '{text}' written on it. Is it hateful? Answer:{answer}", strip=False)


def load(files: Mapping[str, Path], protocol: str) -> Task:
    return Task(
        "hateful_memes",
        "Hateful Memes",
        TEMPLATE,
        _read(files["train"], files["images"], shown=True),
        _read(files["queries"], files["images"], shown=False),
        metrics.roc_auc("yes", LABELS),
        labels=LABELS,
        permutations=1 if protocol == OPENFLAMINGO else 6,
    )


def _read(file: Path, images: Path, shown: bool) -> list[Example]:
    placed = ((place, _example(record, place, images, shown)) for place, record in read_json_lines(file))
    examples = list(unique(((one.id, place, one) for place, one in placed), "id").values())
    check(examples, TEMPLATE, file, "train" if shown else "test", solved=shown)
    return examples


def _example(record: Record, place: str, images: Path, shown: bool) -> Example:
    # "img/01234.png": the given folder takes the place of "img".
    image = {"img": PurePosixPath(value(record, "img", str, place)).name}
    answer = "" if "label" not in record and not shown else _answer(record, place)
    references = (answer,) if answer and not shown else ()
    key, text = number_or_text(record, "id", place), value(record, "text", str, place)
    return Example(key, images / file_name(image, "img", place), answer, (text,), references)


def _answer(record: Record, place: str) -> str:
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
    splits={
        "dev": {"queries": "dev_seen.jsonl|dev.jsonl"},
        "dev_unseen": {"queries": "dev_unseen.jsonl"},
        "test_unseen": {"queries": "test_unseen.jsonl"},
    },
)
