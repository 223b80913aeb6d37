"""A query with its demonstrations, as the papers write it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from flamboyance.evaluation.task import Example, Task
from flamboyance.templates import IMAGE_TOKEN


@dataclass(frozen=True)
class Prompt:
    """What a model is given.

    Attributes:
        demonstrations: in the order in which they stand.
        blind: the demonstrations are shown as text alone: how the papers ask with 0 shots.
        dropped: demonstrations that were left out because the context is too short for them.
    """

    task: Task
    query: Example
    demonstrations: tuple[Example, ...]
    blind: bool = False
    dropped: int = 0

    @classmethod
    def of(cls, task: Task, query: int, chosen: Sequence[int], shots: int) -> Prompt:
        """`chosen`: places in the support set."""
        return cls(task, task.queries[query], tuple(task.support[i] for i in chosen), blind=shots == 0)

    @property
    def text(self) -> str:
        """With `<image>` where a picture stands."""
        return self.beginning + self.task.template.query(*self.query.asked)

    @property
    def beginning(self) -> str:
        """The text of the demonstrations."""
        shown = [self.task.template.demonstration(*one.asked, one.answer) for one in self.demonstrations]
        if self.blind:
            shown = [text.replace(IMAGE_TOKEN, "") for text in shown]
        return "".join(text + self.task.separator for text in shown)

    @property
    def images(self) -> list[Path]:
        """In the order in which they stand."""
        shown = [] if self.blind else [one.image for one in self.demonstrations]
        return [*shown, self.query.image]

    def without_first(self, number: int) -> Prompt:
        """Fewer demonstrations: those furthest from the query go."""
        return replace(self, demonstrations=self.demonstrations[number:], dropped=self.dropped + number)

    def in_order(self, order: Sequence[int]) -> Prompt:
        """The demonstrations in another order."""
        return replace(self, demonstrations=tuple(self.demonstrations[i] for i in order))
