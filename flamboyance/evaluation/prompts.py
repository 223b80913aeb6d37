"""A query behind its demonstrations, written as in the papers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from flamboyance.evaluation.task import Example, Task
from flamboyance.templates import IMAGE_TOKEN


@dataclass(frozen=True)
class Prompt:
    """A query behind its demonstrations.

    Attributes:
        demonstrations: in the order of the prompt.
        blind: the demonstrations are shown without their images, as the papers do with 0 shots.
        dropped: how many demonstrations were left out because the model's context is too short for them.
    """

    task: Task
    query: Example
    demonstrations: tuple[Example, ...]
    blind: bool = False
    dropped: int = 0

    @classmethod
    def of(cls, task: Task, query: int, chosen: Sequence[int], shots: int) -> Prompt:
        """The prompt of `task.queries[query]`; `chosen`: indices into `task.support`."""
        return cls(task, task.queries[query], tuple(task.support[i] for i in chosen), blind=shots == 0)

    @property
    def text(self) -> str:
        """The whole text, with an `<image>` for each image."""
        return self.demonstrations_text + self.after_demonstrations

    @property
    def demonstrations_text(self) -> str:
        """Up to the end of the last demonstration, its `<|endofchunk|>`."""
        shown = [self.task.template.demonstration(*one.asked, one.answer) for one in self.demonstrations]
        text = self.task.separator.join(shown)
        return text.replace(IMAGE_TOKEN, "") if self.blind else text

    @property
    def after_demonstrations(self) -> str:
        """The rest of the text: the query, after the separator."""
        separator = self.task.separator if self.demonstrations else ""
        return separator + self.task.template.query(*self.query.asked)

    @property
    def images(self) -> list[Path]:
        """The images, in the order of the text."""
        return [*self.demonstration_images, *self.query.images]

    @property
    def demonstration_images(self) -> list[Path]:
        """The images before the query's; none if the demonstrations are shown without theirs."""
        return [] if self.blind else [image for one in self.demonstrations for image in one.images]

    def without_first(self, number: int) -> Prompt:
        """The prompt without its first demonstrations, which are the furthest from the query."""
        return replace(self, demonstrations=self.demonstrations[number:], dropped=self.dropped + number)

    def in_order(self, order: Sequence[int]) -> Prompt:
        """The prompt with its demonstrations in another order."""
        return replace(self, demonstrations=tuple(self.demonstrations[i] for i in order))
