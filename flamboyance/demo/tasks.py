"""What is asked: tasks, each of several sets of demonstrations and queries."""

from dataclasses import dataclass
from typing import Literal

from flamboyance.templates import Template

TaskName = Literal["captions", "questions", "digits", "words"]


@dataclass(frozen=True)
class Example:
    """A picture and what is said of it.

    Attributes:
        image: the picture's file, relative to the output folder.
        question: None where the task asks none.
    """

    image: str
    answer: str
    question: str | None = None

    @property
    def asked(self) -> tuple[str, ...]:
        """The question, if there is one."""
        return () if self.question is None else (self.question,)


@dataclass(frozen=True)
class Set:
    """Demonstrations, and the queries that come after them.

    Attributes:
        demonstrations: as many as the most shots; with n shots the first n are shown.
        candidates: the answers to choose from; None where the answer is generated.
    """

    demonstrations: list[Example]
    queries: list[Example]
    candidates: list[str] | None = None


@dataclass(frozen=True)
class Task:
    """One line of the table.

    Attributes:
        name: short, for files and JSON.
        title, about: what a reader is told.
        chance: accuracy of guessing among the candidates; None where answers are generated.
    """

    name: TaskName
    title: str
    about: str
    template: Template
    sets: list[Set]
    chance: float | None = None
