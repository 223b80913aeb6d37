"""What an evaluation asks: examples, and tasks made of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flamboyance.templates import IMAGE_TOKEN, Template


@dataclass(frozen=True)
class Example:
    """An image with what is asked about it and what is right.

    Attributes:
        id: tells the examples of a split apart, e.g. the question's id.
        image: its file.
        answer: what it says when it is shown as a demonstration.
        asked: the template's fields before the answer: a question, the text on a picture.
        references: what a metric compares an answer with: captions, ten annotators' answers, the label.
    """

    id: str
    image: Path
    answer: str
    asked: tuple[str, ...] = ()
    references: tuple[str, ...] = ()


@dataclass(frozen=True)
class Prediction:
    """A model's answer to a query.

    Attributes:
        answer: the text after post-processing, or the likeliest of the task's labels.
        scores: log-probability of each of the task's labels; None where the answer was generated.
    """

    answer: str
    scores: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Score:
    """What a metric says of a set of answers.

    Attributes:
        value: of the whole set, in the unit that the papers print (CIDEr and VQA accuracy times 100).
        items: of each example by its id, where the metric has a value for one alone; in the same unit.
        interval: 95 % confidence interval of `value` over queries, by the bootstrap.
    """

    value: float
    items: Mapping[str, float]
    interval: tuple[float, float]


@dataclass(frozen=True)
class Metric:
    """A named metric.

    Attributes:
        name: as tables print it, e.g. "CIDEr".
        measure: examples and predictions, in the same order -> Score.
        variant: what tells it from other metrics of that name; values of different variants are not compared.
    """

    name: str
    measure: Callable[[Sequence[Example], Sequence[Prediction]], Score]
    variant: str = ""


@dataclass(frozen=True)
class Task:
    """A benchmark, read from its files.

    Attributes:
        name: short, for files and tables, e.g. "coco".
        title: as papers print it, e.g. "COCO".
        template: how a demonstration and the query are written.
        support: what demonstrations are taken from.
        queries: what is asked.
        metric: what the answers are measured by.
        max_new_tokens: of an answer; unused where there are labels.
        labels: the answers to choose from, by rank; None where the answer is generated.
        separator: what stands between demonstrations.
        post_process: what `template.parse` leaves of an answer -> what is measured.
        permutations: orders of the demonstrations over which labels' log-probabilities are averaged.
        instruction: how a chat model is asked, with the template's fields before the answer in braces; "": as the
            template asks.
        test_server: predictions by query -> the content of the file that the task's test server takes, or None.
    """

    name: str
    title: str
    template: Template
    support: Sequence[Example] = field(repr=False)
    queries: Sequence[Example] = field(repr=False)
    metric: Metric
    max_new_tokens: int = 20
    labels: tuple[str, ...] | None = None
    separator: str = ""
    post_process: Callable[[str], str] = str.strip
    permutations: int = 1
    instruction: str = ""
    test_server: Callable[[Sequence[Example], Sequence[Prediction]], object] | None = None

    def asking(self, example: Example) -> str:
        """What a chat model is asked beside the image."""
        if not self.instruction:
            return self.template.query(*example.asked).replace(IMAGE_TOKEN, "").strip()
        return self.instruction.format(**dict(zip(self.template.fields, example.asked, strict=False)))


@dataclass(frozen=True)
class TaskFile:
    """A benchmark as its file in `tasks/` declares it.

    Attributes:
        name, title: as in Task.
        files: what it reads: a name for each file or folder, and where it stands below the task's data directory. A
            folder's path ends in "/"; "a.json|b.json" is the first of the two that exists.
        load: paths by those names, and the protocol ("papers" or "openflamingo") -> the task.
        about: one line: what is asked, of which split, by which metric.
        optional: files that are used where they exist, as `files`.
        for_queries: which of those names are not needed for demonstrations alone; `load` is then called without them.
        splits: further splits to ask, by name: the paths that stand instead of those in `files`; "" for none.
    """

    name: str
    title: str
    files: Mapping[str, str]
    load: Callable[[Mapping[str, Path], str], Task]
    about: str
    optional: Mapping[str, str] = field(default_factory=dict)
    for_queries: tuple[str, ...] = ()
    splits: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
