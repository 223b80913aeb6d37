"""A whole evaluation: tasks × shots × ways of choosing demonstrations × seeds, on one process or many.

What is done is on the disk: the same command goes on with a run that was stopped or killed, on any number of processes.
"""

from __future__ import annotations

import glob
import importlib.util
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from flamboyance.evaluation import results, shots
from flamboyance.evaluation.prompts import Prompt
from flamboyance.evaluation.results import Cell
from flamboyance.evaluation.rices import index as rices
from flamboyance.evaluation.rices.feature_store import Features
from flamboyance.evaluation.task import Task
from flamboyance.files import output_lock
from flamboyance.processes import World

WINDOW = 1024  # prompts whose lengths are compared, to batch like with like


class Answers(Protocol):
    """What a model has to be able to do; see FlamingoAnswers."""

    context: int | None
    seconds: defaultdict[str, float]

    def lengths(self, prompts: Sequence[Prompt]) -> list[int]: ...
    def ahead(self, prompts: Sequence[Prompt]) -> None: ...
    def generate(self, prompts: Sequence[Prompt]) -> list[str]: ...
    def score(self, prompts: Sequence[Prompt]) -> list[list[float]]: ...


@dataclass(frozen=True)
class Settings:
    """How tasks are asked.

    Args:
        output: the results directory.
        shots: numbers of demonstrations. 0 is asked with two demonstrations without their images, as the papers do.
        modes: how demonstrations are chosen; see `shots.select`.
        seeds: of that choice. RICES draws nothing, and is asked once, unless the queries change with the seed: a cell
            of another seed that the directory holds already is not asked again.
        queries: of each task; None: all.
        batch_size: prompts computed together.
        protocol: "papers", or "openflamingo" for what produced the published tables.
    """

    output: Path
    shots: tuple[int, ...] = (0, 4, 8, 16, 32)
    modes: tuple[str, ...] = ("random",)
    seeds: tuple[int, ...] = (0, 1, 2)
    queries: int | None = None
    batch_size: int = 8
    protocol: str = "papers"

    def cells(self, task: str) -> list[Cell]:
        return [
            Cell(task, number, mode, seed)
            for mode in self.modes
            for number in self.shots
            for seed in self._seeds(task, number, mode)
        ]

    def _seeds(self, task: str, number: int, mode: str) -> tuple[int, ...]:
        if mode != "rices" or (self.queries is not None and self.protocol == "openflamingo"):
            return self.seeds
        if self.is_done(Cell(task, number, mode, self.seeds[0])):
            return self.seeds[:1]
        finished = sorted(self.output.glob(f"{glob.escape(task)}/{number}-{mode}-*/score.json"))
        return (int(finished[0].parent.name.rsplit("-", 1)[1]),) if finished else self.seeds[:1]

    def is_done(self, cell: Cell) -> bool:
        """Whether the results directory has it already."""
        return (cell.folder(self.output) / "score.json").exists()

    def asked(self, task: Task) -> int:
        """Queries of a cell."""
        return len(task.queries) if self.queries is None else min(self.queries, len(task.queries))

    def chosen(self, task: Task, seed: int) -> list[int]:
        """The queries that are asked: the same for all seeds, but under "openflamingo" drawn with each."""
        return shots.choose_queries(task, self.queries, seed if self.protocol == "openflamingo" else 0, self.protocol)

    def images(self, task: Task) -> list[Path]:
        """What RICES compares in the cells that are not done: the images of the support set, and of the queries that
        are asked. None where all cells are done."""
        asked = self._to_retrieve(task)
        if not asked:
            return []
        found = [one.image for one in task.support] + [task.queries[i].image for i in asked]
        return list(dict.fromkeys(found))

    def check_features(self, task: Task, features: Features) -> None:
        """
        Raises:
            ValueError: a query that RICES is to be asked with has no feature, or too few demonstrations have one;
                before a model is loaded for it.
        """
        asked, pending = self._to_retrieve(task), self._pending(task)
        if asked:
            most = max(cell.shots or shots.TEXT_ONLY for cell in pending)
            rices.check(task, most, features, asked, repeated=self.protocol == "openflamingo")

    def _pending(self, task: Task) -> list[Cell]:
        return [cell for cell in self.cells(task.name) if cell.mode == "rices" and not self.is_done(cell)]

    def _to_retrieve(self, task: Task) -> list[int]:
        seeds = dict.fromkeys(cell.seed for cell in self._pending(task))
        return sorted({i for seed in seeds for i in self.chosen(task, seed)})

    def check(self, tasks: Sequence[Task]) -> None:
        """
        Raises:
            ValueError: something that was asked for cannot be done; before a model is loaded for it.
        """
        for task in tasks:
            own = shots.own_images(task, range(len(task.queries)))
            itself = max(map(len, own.values()), default=0)
            there = len(task.support) - itself
            most = max(n or shots.TEXT_ONLY for n in self.shots)
            if most > there:
                beside = " beside a query's own image" if itself else ""
                fewer = ",".join(str(n) for n in self.shots if n <= there) or there
                raise ValueError(
                    f"{task.name} has {there} demonstrations to choose from{beside}, and {most} shots were asked for. "
                    f"Give fewer: --shots {fewer}"
                )
            without = [one.id for one in task.queries if not one.references]
            if 0 < len(without) < len(task.queries):
                raise ValueError(
                    f"{task.name}: {len(without)} of {len(task.queries)} queries have no answer to compare with, such "
                    f"as {without[0]!r}, and the others have. Correct the file, or leave those out of it."
                )
            if task.metric.name == "ROC AUC" and importlib.util.find_spec("sklearn") is None:
                raise ImportError(f"{task.name} is measured by scikit-learn: pip install scikit-learn")
            if task.metric.name == "ROC AUC" and not without:
                for seed in self.seeds:
                    kinds = {task.queries[i].references for i in self.chosen(task, seed)}
                    if len(kinds) < 2:
                        raise ValueError(
                            f"{task.name}: all queries that are asked have the label {min(kinds)[0]!r}, and a ROC "
                            "curve needs both kinds: ask more queries (--queries)"
                        )
            if "balanced" in self.modes and task.labels is None:
                shots.select(task, 0, "balanced")  # says why not


def evaluate(
    tasks: Sequence[Task],
    answers: Answers,
    settings: Settings,
    about: dict[str, Any],
    features: Mapping[str, Features] | None = None,
    ranks: World = World(),  # noqa: B008 (immutable)
    say: Callable[[str], None] = print,
    advance: Callable[[int], None] = lambda _: None,
) -> results.Row:
    """Asks everything that is not answered yet, and measures it.

    Args:
        about: the content of run.json.
        features: of the images of each task, by its name, for RICES.
        say: told of every finished cell, in a line.
        advance: told of queries as they are answered.

    Returns:
        The content of scores.json.

    Raises:
        ValueError: the results directory holds another run, or the model gives no numbers.
        OSError: another evaluation is writing to the directory.
    """
    settings.output.mkdir(parents=True, exist_ok=True)
    with output_lock(settings.output) if ranks.first else nullcontext():
        return _evaluate(tasks, answers, settings, about, features, ranks, say, advance)


def _evaluate(
    tasks: Sequence[Task],
    answers: Answers,
    settings: Settings,
    about: dict[str, Any],
    features: Mapping[str, Features] | None,
    ranks: World,
    say: Callable[[str], None],
    advance: Callable[[int], None],
) -> results.Row:
    if ranks.first:
        results.begin(settings.output, about)
    ranks.wait()
    cells = [(task, cell) for task in tasks for cell in settings.cells(task.name)]
    for task, cell in cells:
        queries = settings.chosen(task, cell.seed)
        if settings.is_done(cell):
            advance(len(ranks.share(queries)))
            continue
        found = (features or {}).get(task.name)
        _ask(task, queries, cell, answers, settings, found, ranks, advance)
        ranks.wait()
        if ranks.first:
            asked = replace(task, queries=[task.queries[i] for i in queries])
            score = results.finish(cell, settings.output, asked, dict(answers.seconds))
            say(_line(task, cell, score))
        ranks.wait()
    whole = results.summary(settings.output) if ranks.first else {}
    ranks.wait()
    return whole


def _ask(
    task: Task,
    queries: Sequence[int],
    cell: Cell,
    answers: Answers,
    settings: Settings,
    features: Features | None,
    ranks: World,
    advance: Callable[[int], None],
) -> None:
    """This process's part of a cell."""
    answers.seconds.clear()
    began = time.perf_counter()
    rows = results.Rows(cell.folder(settings.output), ranks.rank)
    done = rows.ids()
    chosen = shots.select(task, cell.shots, cell.mode, cell.seed, settings.protocol, features, queries)
    mine = ranks.share(list(zip(queries, chosen, strict=True)))
    todo = [Prompt.of(task, i, shown, cell.shots) for i, shown in mine if task.queries[i].id not in done]
    advance(len(mine) - len(todo))
    try:
        for start in range(0, len(todo), WINDOW):
            batches = _batches(todo[start : start + WINDOW], answers, settings.batch_size)
            for batch, following in zip(batches, [*batches[1:], []], strict=True):
                answers.ahead(following)
                rows.append(_answered(batch, answers, cell.seed, settings.protocol))
                advance(len(batch))
    finally:
        rows.close()
    answers.seconds["all"] = time.perf_counter() - began


def _batches(prompts: Sequence[Prompt], answers: Answers, size: int) -> list[list[Prompt]]:
    """Prompts that fit the context, like lengths together, the longest first: if memory is short, it shows at once."""
    prompts, lengths = _fitted(prompts, answers)
    order = np.argsort([-length for length in lengths], kind="stable")
    return [[prompts[i] for i in order[start : start + size]] for start in range(0, len(order), size)]


def _fitted(prompts: Sequence[Prompt], answers: Answers) -> tuple[list[Prompt], list[int]]:
    """Leaves out demonstrations, the first ones, where a prompt is too long for the model; never of the query."""
    fitted, lengths = list(prompts), answers.lengths(prompts)
    if answers.context is None:
        return fitted, lengths
    for i, prompt in enumerate(prompts):
        room = answers.context - prompt.task.max_new_tokens
        while lengths[i] > room:
            if not fitted[i].demonstrations:
                raise ValueError(
                    f"{prompt.task.name}, query {prompt.query.id!r} alone has {lengths[i]} tokens, and the model takes "
                    f"{answers.context} with the answer's {prompt.task.max_new_tokens}: shorten its text."
                )
            fitted[i] = fitted[i].without_first(1)
            (lengths[i],) = answers.lengths([fitted[i]])
    return fitted, lengths


def _answered(batch: list[Prompt], answers: Answers, seed: int, protocol: str) -> list[results.Row]:
    task = batch[0].task
    if task.labels is None:
        generated = answers.generate(batch)
        said = [task.post_process(task.template.parse(text)) for text in generated]
        return [results.row(*one, None) for one in zip(batch, generated, said, strict=True)]
    scores = _scores(batch, answers, seed, protocol)
    for prompt, each in zip(batch, scores, strict=True):
        if np.isnan(each).any():  # the likeliest of these would be the first label
            raise ValueError(
                f"{task.name}, query {prompt.query.id!r}: the model gives the labels log-probabilities that are no "
                "numbers; are its weights damaged? In float16 sums above 65,504 overflow: --dtype bfloat16 or float32"
            )
    said = [task.labels[int(np.argmax(each))] for each in scores]
    return [results.row(prompt, None, label, each) for prompt, label, each in zip(batch, said, scores, strict=True)]


def _scores(batch: list[Prompt], answers: Answers, seed: int, protocol: str) -> list[list[float]]:
    """Log-probabilities of the labels, averaged over orders of the demonstrations if the task wants several."""
    orders = [
        shots.permutations(len(prompt.demonstrations), prompt.task.permutations, seed, prompt.query.id, protocol)
        for prompt in batch
    ]
    turns = [
        [p.in_order(o[turn]) for p, o in zip(batch, orders, strict=True) if turn < len(o)]
        for turn in range(max(map(len, orders)))
    ]
    totals = np.zeros((len(batch), len(batch[0].task.labels or ())))
    for turn, prompts in enumerate(turns):
        places = [i for i, o in enumerate(orders) if turn < len(o)]
        totals[places] += np.array(answers.score(prompts))
    return (totals / np.array([[len(o)] for o in orders])).tolist()


def _line(task: Task, cell: Cell, score: results.Row) -> str:
    if score["value"] is None:
        why = "no references here to measure them by" if not any(one.references for one in task.queries) else "no value"
        return f"{cell}: {score['queries']} answers; {why}"
    ends = "" if score["interval"] is None else " [{:.2f}, {:.2f}]".format(*score["interval"])
    cut = f"; {score['dropped']} demonstrations dropped for length" if score["dropped"] else ""
    return f"{cell}: {task.metric.name} {score['value']:.2f}{ends} of {score['queries']} queries{cut}"
