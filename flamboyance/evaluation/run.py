"""Runs an evaluation: tasks × shots × ways of choosing demonstrations × seeds, on one process or several.

Everything that is finished is on disk, so the same command resumes a run that was stopped or killed, on any number of
processes.
"""

from __future__ import annotations

import glob
import importlib.util
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import factorial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from flamboyance.evaluation import baselines, changes, replaced_images, results, shots
from flamboyance.evaluation.answers.budget import BudgetSpentError
from flamboyance.evaluation.prompts import Prompt
from flamboyance.evaluation.results import Cell
from flamboyance.evaluation.rices import retrieval
from flamboyance.evaluation.rices.feature_store import Features
from flamboyance.evaluation.task import Choice, Generated, Task
from flamboyance.model.finite import NAN
from flamboyance.processes import World

BLANK = ".blank"  # the folder of grey images, in the results directory
WINDOW = 1024  # prompts that are sorted by length, to batch prompts of similar length


class Answers(Protocol):
    """A model that answers prompts; see FlamingoAnswers.

    Attributes:
        continues: it goes on with the prompt's text; False if it is shown a chat, or examples.
    """

    context: int | None
    seconds: defaultdict[str, float]

    @property
    def continues(self) -> bool: ...
    @property
    def place(self) -> str: ...
    def describe(self) -> dict[str, Any]: ...
    def lengths(self, prompts: Sequence[Prompt]) -> list[int]: ...
    def ahead(self, prompts: Sequence[Prompt]) -> None: ...
    def generate(self, prompts: Sequence[Prompt]) -> list[str]: ...


@runtime_checkable
class ScoresLabels(Protocol):
    """A model that gives the log-probability of any text after a prompt."""

    def score(self, prompts: Sequence[Prompt]) -> list[list[float]]: ...


@runtime_checkable
class ChoosesLabels(Protocol):
    """A model that chooses one of the task's labels in a way of its own; see EndpointAnswers."""

    def choose(self, prompts: Sequence[Prompt]) -> list[Choice]: ...


@dataclass(frozen=True)
class Settings:
    """What an evaluation runs, and where it writes.

    Args:
        output: the results directory.
        shots: numbers of demonstrations. 0 shows two demonstrations without their images, as in the papers.
        modes: ways of choosing demonstrations; see `shots.select`.
        seeds: seeds of that choice. RICES draws nothing, so it runs for one seed only, unless the queries depend on the
            seed too; the seed is that of a finished cell if there is one.
        queries: the number of queries of each task; None for all.
        batch_size: the number of prompts that are computed together.
        protocol: "papers", or "openflamingo" for the rules of the published tables.
        ablate: also ask every query with changed demonstrations, and compare with answers without a model; see
            changes.py and baselines.py. 0 shots are added, which the gain is counted from.
        changes: the changes that `ablate` makes.
        orders: also ask every query with its demonstrations in so many other orders, or all that there are.
    """

    output: Path
    shots: tuple[int, ...] = (0, 4, 8, 16, 32)
    modes: tuple[str, ...] = ("random",)
    seeds: tuple[int, ...] = (0, 1, 2)
    queries: int | None = None
    batch_size: int = 8
    protocol: str = "papers"
    ablate: bool = False
    orders: int = 0
    changes: tuple[str, ...] = tuple(changes.TITLES)

    def __post_init__(self) -> None:
        if self.ablate and 0 not in self.shots:
            object.__setattr__(self, "shots", (0, *self.shots))

    def cells(self, task: str) -> list[Cell]:
        """The cells of a task with unchanged demonstrations."""
        return [
            Cell(task, number, mode, seed)
            for mode in self.modes
            for number in self.shots
            for seed in self._seeds(task, number, mode)
        ]

    def changed_cells(self, task: Task, neighbours: bool = True) -> list[Cell]:
        """The cells of a task with changed demonstrations, and those of the baselines.

        Args:
            neighbours: there are features for the nearest neighbours' vote.
        """
        if not self.ablate and not self.orders:
            return []
        shown = {n: len(task.choose(task.queries[0], n, self.seeds[0])) if task.choose else n for n in self.shots}
        reordered = [
            replace(cell, change=f"{changes.ORDER}{number}")
            for cell in self.cells(task.name)
            if cell.shots
            for number in range(1, 1 + min(self.orders, factorial(shown[cell.shots]) - 1))
        ]
        if not self.ablate:
            return reordered
        possible = {n: [c for c in changes.of_task(task, shown[n]) if c in self.changes] for n in self.shots if n}
        cells = reordered + [
            replace(cell, change=change) for cell in self.cells(task.name) for change in possible.get(cell.shots, ())
        ]
        baseline = [Cell(task.name, 0, baselines.MAJORITY, self.seeds[0], baselines.BASELINE)]
        for number in self.shots if neighbours else ():
            if number:
                baseline.append(Cell(task.name, number, baselines.NEIGHBOURS, self.seeds[0], baselines.BASELINE))
        return cells + baseline

    def all_cells(self, task: Task, neighbours: bool = True) -> list[Cell]:
        return self.cells(task.name) + self.changed_cells(task, neighbours)

    def _seeds(self, task: str, number: int, mode: str) -> tuple[int, ...]:
        if mode != "rices" or (self.queries is not None and self.protocol == "openflamingo"):
            return self.seeds
        if self.is_done(Cell(task, number, mode, self.seeds[0])):
            return self.seeds[:1]
        finished = sorted(self.output.glob(f"{glob.escape(task)}/{number}-{mode}-*/score.json"))
        seeds = [seed for file in finished if (seed := file.parent.name.split("-", 2)[2]).isdecimal()]
        return (int(seeds[0]),) if seeds else self.seeds[:1]

    def is_done(self, cell: Cell) -> bool:
        """Whether the cell is finished."""
        return (cell.folder(self.output) / "score.json").exists()

    def query_count(self, task: Task) -> int:
        """The number of queries of a cell."""
        return len(task.queries) if self.queries is None else min(self.queries, len(task.queries))

    def chosen(self, task: Task, seed: int) -> list[int]:
        """Indices of the queries: the same for all seeds; under "openflamingo" drawn for each seed."""
        return shots.choose_queries(task, self.queries, seed if self.protocol == "openflamingo" else 0, self.protocol)

    def images(self, task: Task) -> list[Path]:
        """The images that unfinished cells compare, for RICES and the nearest neighbours: those of the support set and
        of the queries."""
        queries = self._to_retrieve(task)
        if not queries:
            return []
        examples = [*task.support, *(task.queries[i] for i in queries)]
        return list(dict.fromkeys(image for one in examples for image in one.images))

    def check_features(self, task: Task, features: Features) -> None:
        """Checks what RICES needs, before a model is loaded.

        Raises:
            ValueError: a query has no feature, or too few demonstrations have one.
        """
        queries, pending = self._to_retrieve(task), self._pending(task)
        several = any(one.further for one in task.support[:1])  # compared by the nearest neighbours' vote alone
        if queries and task.choose is None and not several:
            most = max((cell.shots or shots.TEXT_ONLY for cell in pending if cell.mode == "rices"), default=1)
            retrieval.check(task, most, features, queries, repeated=self.protocol == "openflamingo")

    def _pending(self, task: Task) -> list[Cell]:
        compared = ("rices", baselines.NEIGHBOURS)
        return [cell for cell in self.all_cells(task) if cell.mode in compared and not self.is_done(cell)]

    def _to_retrieve(self, task: Task) -> list[int]:
        seeds = dict.fromkeys(cell.seed for cell in self._pending(task))
        return sorted({i for seed in seeds for i in self.chosen(task, seed)})

    def check(self, tasks: Sequence[Task]) -> None:
        """Checks whether the tasks can be run with these settings, before a model is loaded.

        Raises:
            ValueError: they cannot.
        """
        if self.ablate and not any(self.shots):
            raise ValueError("--ablate changes demonstrations, and 0 shots have none: give more, as --shots 4")
        for task in tasks:
            if task.choose is not None:
                for mode in self.modes:
                    shots.select(task, max(self.shots), mode, queries=[0])  # raises the error
                continue
            several = any(one.further for one in (*task.support[:1], *task.queries[:1]))
            if several and "rices" in self.modes:
                raise ValueError(f"{task.name} has several images per example, and RICES compares one: use random")
            same = shots.same_image(task, range(len(task.queries)))
            excluded = max(map(len, same.values()), default=0)
            available = len(task.support) - excluded
            most = max(n or shots.TEXT_ONLY for n in self.shots)
            if most > available:
                beside = " beside a query's own image" if excluded else ""
                possible = [n for n in self.shots if (n or shots.TEXT_ONLY) <= available] or [available]
                fewer = available >= (shots.TEXT_ONLY if self.ablate else 1)  # --ablate adds 0 shots
                raise ValueError(
                    f"{task.name} has {available} demonstrations to choose from{beside}, and {most} are needed for "
                    f"{','.join(map(str, self.shots))} shots. Give "
                    + (f"fewer: --shots {','.join(map(str, possible))}" if fewer else "more examples")
                )
            without = [one.id for one in task.queries if not one.references]
            if 0 < len(without) < len(task.queries):
                raise ValueError(
                    f"{task.name}: {len(without)} of {len(task.queries)} queries have no answer to compare with, such "
                    f"as {without[0]!r}. Add their answers to the file, or remove the queries"
                )
            if task.metric.name == "ROC AUC" and importlib.util.find_spec("sklearn") is None:
                raise ImportError(f"the metric of {task.name} needs scikit-learn: pip install scikit-learn")
            if task.metric.name == "ROC AUC" and not without:
                for seed in self.seeds:
                    kinds = {task.queries[i].references for i in self.chosen(task, seed)}
                    if len(kinds) < 2:
                        raise ValueError(
                            f"{task.name}: all queries have the label {min(kinds)[0]!r}, and a ROC curve needs both "
                            "labels: give more queries (--queries)"
                        )
            if "balanced" in self.modes and task.labels is None:
                shots.select(task, 0, "balanced")  # raises the error


def evaluate(
    tasks: Sequence[Task],
    answers: Answers,
    settings: Settings,
    about: results.Row,
    features: Mapping[str, Features] | None = None,
    ranks: World = World(),  # noqa: B008 (immutable)
    say: Callable[[str], None] = print,
    advance: Callable[[int], None] = lambda _: None,
) -> results.Row:
    """Answers the queries of all unfinished cells, and measures the answers.

    Args:
        about: the content of run.json.
        features: by the name of a task, the features of its images, for RICES.
        say: called with a line for each finished cell.
        advance: called with the number of queries that were answered since the last call.

    Returns:
        The content of scores.json.

    Raises:
        ValueError: the results directory holds another run, or the model computes NaN.
        OSError: another evaluation is writing to the directory.
    """
    with ranks.locked(settings.output):
        return _evaluate(tasks, answers, settings, about, features, ranks, say, advance)


def _evaluate(
    tasks: Sequence[Task],
    answers: Answers,
    settings: Settings,
    about: results.Row,
    features: Mapping[str, Features] | None,
    ranks: World,
    say: Callable[[str], None],
    advance: Callable[[int], None],
) -> results.Row:
    if ranks.first:
        results.begin(settings.output, about)
        replaced_images.forget(settings.output, tasks, say)
    ranks.wait()
    known = features or {}
    cells = [(task, cell) for task in tasks for cell in settings.all_cells(task, has_features(task, known, settings))]
    for task, cell in cells:
        queries = settings.chosen(task, cell.seed)
        if settings.is_done(cell):
            advance(len(ranks.share(queries)))
            continue
        _answer_share(task, queries, cell, answers, settings, known.get(task.name), ranks, advance)
        ranks.wait()
        if ranks.first:
            part = replace(task, queries=[task.queries[i] for i in queries])
            score = results.finish(cell, settings.output, part, dict(answers.seconds))
            say(_line(task, cell, score))
        ranks.wait()
    scores = results.summary(settings.output) if ranks.first else {}
    ranks.wait()
    return scores


def has_features(task: Task, features: Mapping[str, Any], settings: Settings) -> bool:
    """Whether the nearest neighbours of a task can vote; they need not, if they have."""
    return task.name in features or not settings.images(task)


def _answer_share(
    task: Task,
    queries: Sequence[int],
    cell: Cell,
    answers: Answers,
    settings: Settings,
    features: Features | None,
    ranks: World,
    advance: Callable[[int], None],
) -> None:
    """Answers this process's share of a cell's queries."""
    answers.seconds.clear()
    began = time.perf_counter()
    rows = results.Rows(cell.folder(settings.output), ranks.rank)
    done = rows.ids()
    if cell.change == baselines.BASELINE:
        mine = [i for i in ranks.share(list(queries)) if task.queries[i].id not in done]
        shown = shots.select(task, cell.shots, "random", cell.seed, queries=mine) if task.choose else [()] * len(mine)
        rows.append(baselines.answered(task, mine, shown, cell.mode, cell.shots, features))
        rows.close()
        advance(len(ranks.share(list(queries))))
        return
    chosen = shots.select(task, cell.shots, cell.mode, cell.seed, settings.protocol, features, queries)
    mine = ranks.share(list(zip(queries, chosen, strict=True)))
    todo = [Prompt.of(task, i, shown, cell.shots) for i, shown in mine if task.queries[i].id not in done]
    if cell.change:
        todo = [changes.changed(prompt, cell.change, cell.seed, settings.output / BLANK) for prompt in todo]
    advance(len(mine) - len(todo))
    try:
        for start in range(0, len(todo), WINDOW):
            batches = _batches(todo[start : start + WINDOW], answers, settings.batch_size)
            for batch, following in zip(batches, [*batches[1:], []], strict=True):
                answers.ahead(following)
                try:
                    rows.append(_answer(batch, answers, cell.seed, settings.protocol))
                except BudgetSpentError:
                    for prompt in batch:  # those whose answers have come cost nothing
                        with suppress(BudgetSpentError):
                            rows.append(_answer([prompt], answers, cell.seed, settings.protocol))
                    raise
                advance(len(batch))
    finally:
        rows.close()
    answers.seconds["all"] = time.perf_counter() - began


def _batches(prompts: Sequence[Prompt], answers: Answers, size: int) -> list[list[Prompt]]:
    """Prompts that fit the context, in batches of similar length, the longest first: a lack of memory shows at once."""
    prompts, lengths = _fitted(prompts, answers)
    order = np.argsort([-length for length in lengths], kind="stable")
    return [[prompts[i] for i in order[start : start + size]] for start in range(0, len(order), size)]


def _fitted(prompts: Sequence[Prompt], answers: Answers) -> tuple[list[Prompt], list[int]]:
    """Drops the first demonstrations of prompts that are too long for the model; the query is never cut."""
    fitted, lengths = list(prompts), answers.lengths(prompts)
    if answers.context is None:
        return fitted, lengths
    for i, prompt in enumerate(prompts):
        room = answers.context - prompt.task.max_new_tokens
        while lengths[i] > room:
            if not fitted[i].demonstrations:
                raise ValueError(
                    f"{prompt.task.name}, query {prompt.query.id!r} alone has {lengths[i]} tokens, and the model's "
                    f"context is {answers.context}, with {prompt.task.max_new_tokens} for the answer: shorten its text"
                )
            fitted[i] = fitted[i].without_first(1)
            (lengths[i],) = answers.lengths([fitted[i]])
    return fitted, lengths


def _answer(batch: list[Prompt], answers: Answers, seed: int, protocol: str) -> list[results.Row]:
    task = batch[0].task
    if task.labels is None:
        generated = answers.generate(batch)
        texts = [task.read(text, answers.continues) for text in generated]
        said = [_marked(task, text, answers.continues) for text in generated]
        return [results.row(*one, None) for one in zip(batch, said, texts, strict=True)]
    choices = _choices(batch, answers, seed, protocol)
    for prompt, one in zip(batch, choices, strict=True):
        if one.scores is not None and np.isnan(one.scores).any():  # argmax would give the first label
            raise ValueError(f"{task.name}, query {prompt.query.id!r}: the labels' log-probabilities {NAN}")
        if one.scores is None and task.metric.name == "ROC AUC":
            raise ValueError(
                f"{task.name} is measured by ROC AUC, which needs log-probabilities of the labels, and the model gives "
                f"none for query {prompt.query.id!r}"
            )
    return [
        results.row(prompt, one.generated, one.label, one.scores, one.by)
        for prompt, one in zip(batch, choices, strict=True)
    ]


def _marked(task: Task, generated: str, continued: bool) -> str:
    """A generated text that is cut off only if its end belongs to the answer: what a model continues with may be."""
    cut_off = getattr(generated, "cut_off", None)
    if cut_off is None:
        return generated
    longer = f"{generated}1"  # a further letter or digit changes the answer, though it may be stemmed or shortened
    return Generated(generated, cut_off and task.read(longer, continued) != task.read(generated, continued))


def _choices(batch: list[Prompt], answers: Answers, seed: int, protocol: str) -> list[Choice]:
    """The label for each prompt, by log-probabilities that are averaged over `task.permutations` orders of the
    demonstrations; of the given order alone where the model gives none."""
    orders = [
        shots.permutations(len(prompt.demonstrations), prompt.task.permutations, seed, prompt.query.id, protocol)
        for prompt in batch
    ]
    found: list[list[Choice]] = [[] for _ in batch]
    for turn in range(max(map(len, orders))):
        places = [i for i, o in enumerate(orders) if turn < len(o) and all(c.scores is not None for c in found[i])]
        if places:
            prompts = [batch[i].in_order(orders[i][turn]) for i in places]
            for i, choice in zip(places, _chosen(prompts, answers), strict=True):
                found[i].append(choice)
    return [_mean(prompt.task.labels or (), choices) for prompt, choices in zip(batch, found, strict=True)]


def _chosen(prompts: list[Prompt], answers: Answers) -> list[Choice]:
    if isinstance(answers, ChoosesLabels):
        return answers.choose(prompts)
    assert isinstance(answers, ScoresLabels)
    return [Choice("", None, tuple(scores), "") for scores in answers.score(prompts)]


def _mean(labels: Sequence[str], choices: list[Choice]) -> Choice:
    """One choice of those in several orders of the demonstrations."""
    scored = [np.array(choice.scores) for choice in choices if choice.scores is not None]
    if not scored or (len(choices) == 1 and choices[0].label):
        return choices[0]
    mean = np.sum(scored, axis=0) / len(scored)
    return replace(choices[0], label=labels[int(np.argmax(mean))], scores=tuple(mean.tolist()))


def _line(task: Task, cell: Cell, score: results.Row) -> str:
    if score["value"] is None:
        why = "no value" if any(one.references for one in task.queries) else "no references to measure them by"
        return f"{cell}: {score['queries']} answers; {why}"
    ends = "" if score["interval"] is None else " [{:.2f}, {:.2f}]".format(*score["interval"])
    cut = f"; {score['dropped']} demonstrations dropped for length" if score["dropped"] else ""
    return f"{cell}: {task.metric.name} {score['value']:.2f}{ends} of {score['queries']} queries{cut}"
