"""`flamboyance.evaluate`: few-shot evaluation from Python, of any model that can be called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from flamboyance.evaluation import run
from flamboyance.evaluation.about import describe
from flamboyance.evaluation.answers.function import Answer, FunctionAnswers
from flamboyance.evaluation.results import Row
from flamboyance.evaluation.rices.features import Encoder, build, default_cache
from flamboyance.evaluation.run import Answers, Settings
from flamboyance.evaluation.task import Task
from flamboyance.evaluation.tasks import open_own


def evaluate(
    task: Task | Path | str | Sequence[Task | Path | str],
    answer: Answer | Answers,
    *,
    name: str | None = None,
    output: Path | str = "flamboyance-evaluation",
    shots: Sequence[int] = (0, 4, 8, 16, 32),
    demonstrations: Sequence[str] = ("random",),
    seeds: Sequence[int] = (0, 1, 2),
    queries: int | None = None,
    batch_size: int = 8,
    protocol: str = "papers",
    support: Path | str | None = None,
    columns: Mapping[str, str] | None = None,
    ablate: bool = False,
    orders: int = 0,
    encoder: Encoder | None = None,
) -> Row:
    """Evaluates a model on tasks, with several numbers of demonstrations. The same call resumes a run that was stopped.

    Args:
        task: a file or folder of one's own, a dataset as "hf:NAME[SPLIT]", or a Task as
            `flamboyance.evaluation.tasks.open_task` gives; or several.
        answer: a function (demonstrations, query) -> text, or -> a log-probability for each label; see
            `flamboyance.evaluation.answers.function`. Or a model of `flamboyance.evaluation.answers`.
        name: of the model, in tables; default: the function's. A resumed run must have the same, and a function the
            same code, and the same texts and numbers beside it. Of an object, the class and its own name
            (`name_or_path`, `name`) are compared: name it after its settings.
        output: the results directory, for `flamboyance report`.
        shots, demonstrations, seeds, queries, batch_size, protocol, ablate, orders: as of the command `evaluate`.
        support: the examples to choose demonstrations from, for files of one's own; default: the file itself.
        columns: of a dataset: our names -> its own, as {"image": "picture", "label": "species"}.
        encoder: a tower that compares images, as `flamboyance.evaluation.rices.features.Encoder.open` gives it, for
            RICES and the nearest neighbours of `ablate`.

    Returns:
        {task: {way of choosing: {shots: {"mean": …, "std": …, "seeds": {seed: value}}}}}, as in scores.json.

    Raises:
        ValueError, OSError: the data or the settings are wrong, or the directory holds another run.
        TypeError: the function gives something else.
    """
    given = [task] if isinstance(task, Task | Path | str) else list(task)
    tasks = [one if isinstance(one, Task) else open_own(one, support, columns, protocol) for one in given]
    if "rices" in demonstrations and encoder is None:
        raise ValueError("RICES needs features of the images: give encoder=Encoder.open(tower), or use the command")
    answers: Answers = FunctionAnswers(cast(Answer, answer)) if callable(answer) else answer
    settings = Settings(
        Path(output), tuple(shots), tuple(demonstrations), tuple(seeds), queries, batch_size, protocol, ablate, orders
    )
    settings.check(tasks)
    features = {}
    for one in tasks:
        if encoder is not None and (images := settings.images(one)):
            features[one.name] = build(images, encoder, default_cache())
            settings.check_features(one, features[one.name])
    called = name or getattr(answer, "name", None) or getattr(answer, "__name__", None) or type(answer).__name__
    spec, beams = getattr(getattr(encoder, "tower", None), "spec", None), getattr(answers, "beams", None)
    fixed = ({"tower": spec["name"]} if spec else {}) | ({"beams": beams} if isinstance(beams, int) else {})
    fixed |= {"features": folder} if (folder := getattr(encoder, "folder", None)) else {}
    about = describe(tasks, answers, settings, called, ["flamboyance.evaluate"], fixed)
    return run.evaluate(tasks, answers, settings, about, features, say=lambda _: None)
