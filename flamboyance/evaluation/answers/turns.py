"""A prompt as the turns of a conversation, for models that chat."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flamboyance.evaluation.prompts import Prompt


@dataclass(frozen=True)
class Turn:
    """The user's images and request, with the assistant's answer; None for the query, whose answer is asked for."""

    images: tuple[Path, ...]
    request: str
    answer: str | None


def turns(prompt: Prompt) -> Iterator[Turn]:
    """The demonstrations, and the query last."""
    for one in prompt.demonstrations:
        yield Turn(() if prompt.blind else one.images, prompt.task.request(one), one.answer)
    yield Turn(prompt.query.images, prompt.task.request(prompt.query), None)
