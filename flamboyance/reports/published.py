"""Scores that the papers report, to compare a run with.

The scores are in `published_scores/*.json`, with the table that each is from. They are the tables' values; `slips`
lists where a paper's text or a later table contradicts them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

PAPERS = ("openflamingo", "flamingo")
MODES = ("random", "rices")
IMAGENET = "imagenet"
# Number of queries of each benchmark's splits; another number means other data under the benchmark's name.
QUERIES = {
    "coco": (5_000,), "flickr30k": (1_000,), "vqav2": (214_354,), "ok_vqa": (5_046,), "textvqa": (5_000,),
    "vizwiz": (4_319,), "hateful_memes": (1_000, 500), "imagenet": (50_000,),
}  # fmt: skip


@dataclass(frozen=True)
class Source:
    """Where a published score is from, and what it was measured on.

    Attributes:
        paper: authors and title.
        arxiv: the paper's number there.
        table: e.g. "Table 11".
        split: of the benchmark, e.g. "test-dev".
        metric: e.g. "VQA accuracy"; every score is in the unit that the paper prints (0 to 100; CIDEr times 100).
    """

    paper: str
    arxiv: str
    table: str
    split: str
    metric: str


@dataclass(frozen=True)
class FineTuned:
    """The best model fine-tuned for a task, from OpenFlamingo's Table 8."""

    method: str
    score: float


def models() -> tuple[str, ...]:
    """Names of the published models: OpenFlamingo's five, then Flamingo's three."""
    return tuple(name for paper in PAPERS for name in _read(paper)["models"])


def find(name: str) -> str | None:
    """The published model that a name means, or None: its own ("OpenFlamingo-3B (Instruct)"), the name of its weights
    ("openflamingo/OpenFlamingo-3B-vitl-mpt1b-langinstruct", or a path that ends so), or short ("OF-3B (I)", "Fl-80B").
    """
    return _names().get(_plain(name)) or _names().get(_plain(re.split(r"[/\\]", name.rstrip("/\\"))[-1]))


def named(name: str) -> str:
    """As `find`, but an unknown name is an error.

    Raises:
        ValueError: no published model has this name; lists them.
    """
    model = find(name)
    if model is None:
        raise ValueError(f"no published scores of {name!r}; expected one of {', '.join(models())}")
    return model


def counterpart(name: str) -> str | None:
    """The Flamingo that the OpenFlamingo paper compares a model with (3B for 4B); a Flamingo itself."""
    model = find(name)
    return None if model is None else _model(model).get("counterpart", model)


def score(model: str, task: str, shots: int, mode: str = "random") -> tuple[float, float | None] | None:
    """A published score, and its standard deviation over seeds where the paper gives one.

    Args:
        model: as `find` understands it.
        task: "coco", "flickr30k", "vqav2", "ok_vqa", "textvqa", "vizwiz", "hateful_memes", "imagenet", or one of
            Flamingo's video tasks; case and punctuation do not matter.
        shots: 0, 4, 8, 16 or 32. On ImageNet 8 and 16: of one support image a class for 8, of five for 16, and without
            ensembling (`imagenet` has all).
        mode: "random" or "rices".

    Returns:
        None if the papers have no such score.

    Raises:
        ValueError: no such model.
    """
    name, task = named(model), task_name(task)
    if task == IMAGENET:
        rows = [row for row in imagenet(name) if (row["mode"], row["shots"]) == (mode, shots) and not row["ensembled"]]
        wanted = {8: 1, 16: 5}.get(shots)
        best = [row for row in rows if row["support_per_class"] in (wanted, None)]
        return (best[0]["top_1"], None) if best else None
    found = _model(name).get(mode, {}).get(task)
    places = _paper(name)["shots"]
    if found is None or shots not in places:
        return None
    mean = found["mean"][places.index(shots)]
    deviation = found["std"][places.index(shots)] if "std" in found else None
    return None if mean is None else (mean, deviation)


def imagenet(model: str) -> list[dict[str, Any]]:
    """Flamingo's rows of classification on ImageNet: mode, shots in the prompt, support images a class (None: not by
    class), whether permutations were ensembled, and top-1 accuracy. Empty for OpenFlamingo, which reports none.
    """
    name = named(model)
    return [row for row in _paper(name).get(IMAGENET, []) if row["model"] == name]


def source(model: str, task: str, mode: str = "random") -> Source | None:
    """Where the scores of a model on a task are from; None if there are none."""
    name, task = named(model), task_name(task)
    paper = _paper(name)
    there = (
        any(row["mode"] == mode for row in imagenet(name)) if task == IMAGENET else task in _model(name).get(mode, {})
    )
    if not there:
        return None
    about = paper["tasks"][task]
    table = paper["tables"][IMAGENET if task == IMAGENET else mode]
    return Source(paper["paper"], paper["arxiv"], table, about["split"], about["metric"])


def fine_tuned(task: str) -> FineTuned | None:
    """The fine-tuned state of the art of 19 June 2023, from OpenFlamingo's Table 8."""
    found = _read("fine_tuned")["tasks"].get(task_name(task))
    return None if found is None else FineTuned(found["method"], found["score"])


def title(task: str) -> str | None:
    """A task's name as the papers print it; None for a task that no paper has."""
    return next((about["title"] for about in _tasks(task)), None)


def metric(task: str) -> str | None:
    """The metric that the papers use for a task; None for a task that no paper has."""
    return next((about["metric"] for about in _tasks(task)), None)


def slips() -> tuple[str, ...]:
    """Where the papers contradict the tables used here."""
    return tuple(slip for paper in PAPERS for slip in _read(paper)["slips"])


def task_name(task: str) -> str:
    """A task's name here: "ok_vqa" for "OK-VQA" or "okvqa"; an unknown name is returned as it is."""
    plain = {_plain(name): name for paper in PAPERS for name in _read(paper)["tasks"]}
    return (plain | {"flickr30": "flickr30k", "flickr": "flickr30k", "mscoco": "coco"}).get(_plain(task), task)


def _tasks(task: str) -> Iterator[dict[str, str]]:
    for paper in PAPERS:
        if task_name(task) in _read(paper)["tasks"]:
            yield _read(paper)["tasks"][task_name(task)]


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


@cache
def _names() -> dict[str, str]:
    names = {}
    for model in models():
        plain = _plain(model)
        short = plain.replace("openflamingo", "of").replace("flamingo", "fl")
        weights = _model(model).get("weights", model)
        aliases = {plain, short, _plain(weights), _plain(weights.split("/")[-1])}
        names |= dict.fromkeys(aliases | {alias.replace("instruct", "i") for alias in aliases}, model)
    return names


@cache
def _read(name: str) -> dict[str, Any]:
    text = files("flamboyance.reports").joinpath("published_scores", f"{name}.json").read_text(encoding="utf-8")
    return json.loads(text)


def _paper(model: str) -> dict[str, Any]:
    return next(_read(paper) for paper in PAPERS if model in _read(paper)["models"])


def _model(model: str) -> dict[str, Any]:
    return _paper(model)["models"][model]
