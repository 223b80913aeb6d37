"""Examples, the tasks made of them, and metrics of the answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from flamboyance.templates import IMAGE_TOKEN, Template


@dataclass(frozen=True)
class Example:
    """An image with its question, if there is one, and its answers.

    Attributes:
        id: unique among the examples of a split, e.g. the id of the question.
        image: the image's file; the first one's if there are several.
        answer: the answer that is shown if the example is a demonstration.
        asked: the values of the template's fields before the answer, e.g. a question or the text in the image.
        references: what the metric compares an answer with: captions, ten annotators' answers, or the label.
        further: the other images, for a template with several `<image>`; every example of a task has equally many.
        kinds: what the benchmark's files say of the question, as (("answer type", "yes/no"),); reports average by it.
    """

    id: str
    image: Path
    answer: str
    asked: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    further: tuple[Path, ...] = ()
    kinds: tuple[tuple[str, str], ...] = ()

    @property
    def images(self) -> tuple[Path, ...]:
        """All images, in the order of the template's `<image>`."""
        return (self.image, *self.further)

    def showing(self, images: Sequence[Path]) -> Example:
        """The example with other images, equally many."""
        return replace(self, image=images[0], further=tuple(images[1:]))


@dataclass(frozen=True)
class Prediction:
    """A model's answer to a query.

    Attributes:
        answer: the text after post-processing, or the most likely of the task's labels.
        scores: the log-probability of each of the task's labels; None if the answer was generated.
    """

    answer: str
    scores: tuple[float, ...] | None = None


class Generated(str):
    """A generated text.

    Attributes:
        cut_off: generation ended at its longest length, not by itself; None if that is not known.
    """

    cut_off: bool | None

    def __new__(cls, text: str, cut_off: bool | None = None) -> Generated:
        made = super().__new__(cls, text)
        made.cut_off = cut_off
        return made


@dataclass(frozen=True)
class Choice:
    """The label that a model chose which does not score each label by itself, such as a served one.

    Attributes:
        label: one of the task's labels, or the whole text if it gives none.
        generated: the model's text.
        scores: a log-probability for each of the task's labels; None if the model gives none.
        by: how the label was chosen, in a word, such as "logprobs" or "text".
    """

    label: str
    generated: str | None
    scores: tuple[float, ...] | None
    by: str


@dataclass(frozen=True)
class Score:
    """The score of a set of answers.

    Attributes:
        value: of the whole set, in the unit that the papers print (CIDEr and VQA accuracy times 100).
        items: the score of each example by its id, in the same unit; empty if the metric has no score per example.
        interval: the 95 % confidence interval of `value` over queries, by the bootstrap.
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
        variant: distinguishes metrics of the same name; values of different variants are not compared.
    """

    name: str
    measure: Callable[[Sequence[Example], Sequence[Prediction]], Score]
    variant: str = ""


Choose = Callable[[Example, int, int], tuple[int, ...]]
"""(query, shots, seed) -> its demonstrations, as indices into the support set."""


@dataclass(frozen=True)
class Task:
    """A benchmark, read from its files.

    Attributes:
        name: short, for files and tables, e.g. "coco".
        title: as papers print it, e.g. "COCO".
        template: how a demonstration and the query are written.
        support: the examples that demonstrations are chosen from.
        queries: the examples that are asked.
        max_new_tokens: the longest generated answer; unused if there are labels.
        labels: the answers to choose from; None if the answer is generated.
        separator: the text after each demonstration.
        post_process: an answer's text -> the answer that is measured.
        permutations: over how many orders of the demonstrations the log-probabilities of labels are averaged.
        test_server: (queries, predictions) -> the content of the file for the task's test server; None if there is no
            such server.
        choose: for a task that fixes which demonstrations a query may have; raises ValueError if it has too few. None
            if any may be shown.
        folder: what holds the images, and may be moved with them; None for the folder that they have in common.
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
    test_server: Callable[[Sequence[Example], Sequence[Prediction]], object] | None = None
    choose: Choose | None = None
    folder: Path | None = None

    def request(self, example: Example) -> str:
        """What a chat model's user says beside the image."""
        return self.template.query(*example.asked).replace(IMAGE_TOKEN, "").strip()

    def read(self, said: str, continued: bool) -> str:
        """The answer in what a model said.

        Args:
            continued: the model goes on with the prompt's text, perhaps with another example: its answer ends where the
                template stops. One that chats says its answer and no more.
        """
        return self.post_process(self.template.parse(said) if continued else said.strip())


@dataclass(frozen=True)
class TaskFile:
    """A benchmark as its module in `tasks/` declares it.

    Attributes:
        name, title: as in Task.
        files: the files and folders to read: name -> path below the task's data directory. A folder's path ends in "/";
            "a.json|b.json" means the first of the two that exists.
        load: (paths by those names, protocol) -> the task. The protocol is "papers" or "openflamingo".
        about: one line: the queries, their split, the metric.
        optional: as `files`, for files that need not exist.
        splits: further splits of queries: name -> paths that replace those in `files`; "" for no file.
    """

    name: str
    title: str
    files: Mapping[str, str]
    load: Callable[[Mapping[str, Path], str], Task]
    about: str
    optional: Mapping[str, str] = field(default_factory=dict)
    splits: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
