"""What the page's controls do, without the page: tasks of several models, streamed answers, chances, attention maps."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

from flamboyance import templates
from flamboyance.few_shot import FewShotTask
from flamboyance.flamingo import FlamingoForConditionalGeneration
from flamboyance.processing import FlamingoProcessor
from flamboyance.reports.attention import AttentionMaps, attention_maps
from flamboyance.templates import Template

CAPTION, QUESTION, OWN = "Describe", "Answer a question", "Own pattern"
KEPT = 4  # tasks whose demonstrations stay computed

Opened = tuple[FlamingoForConditionalGeneration, FlamingoProcessor]


@dataclass(frozen=True)
class Shot:
    """A demonstration on the page: the content of an image or video file, and the values of the template's fields."""

    image: bytes
    texts: tuple[str, ...] = ()
    number: int = 0  # the same as long as it is on the page

    def fields(self, template: Template) -> tuple[str, ...]:
        """One value for each field of a template; the answer is the last one of each."""
        texts = self.texts or ("",)
        missing = len(template.fields) - len(texts)
        return (*[""] * missing, *texts) if missing >= 0 else texts[-len(template.fields) :]


@dataclass
class Side:
    """One of the answers that the page shows beside each other: a model with a number of demonstrations.

    Attributes:
        answer: the text so far.
        chances: the probability of each answer to choose from.
        maps: where the model looked; None before it is known.
        state: what is being computed; empty when nothing is.
    """

    model: str
    shots: Sequence[Shot]
    title: str
    answer: str = ""
    chances: dict[str, float] = field(default_factory=dict)
    maps: AttentionMaps | None = None
    state: str = ""


def template_of(kind: str, pattern: str) -> Template:
    """The template of a choice on the page.

    Raises:
        ValueError: an own pattern that is none.
    """
    if kind == OWN:
        return Template(pattern.strip(), stops=("<image>",))
    return templates.vqa if kind == QUESTION else templates.caption


def kind_of(template: Template) -> tuple[str, str]:
    """The choice on the page, and its pattern, that give a template."""
    known = {templates.caption.pattern: CAPTION, templates.vqa.pattern: QUESTION}
    return known.get(template.pattern, OWN), template.pattern


def labels_of(text: str) -> list[str]:
    """The answers to choose from, which are written on lines or with commas between them."""
    parts = text.splitlines() if "\n" in text.strip() else text.split(",")
    return list(dict.fromkeys(part.strip() for part in parts if part.strip()))


class Answers:
    """The models of a page, each with the tasks that were used last."""

    def __init__(self, models: Mapping[str, Opened]) -> None:
        self.models = dict(models)
        self._tasks: OrderedDict[tuple[str, ...], FewShotTask] = OrderedDict()
        self._lock = threading.Lock()

    def takes_videos(self, model: str) -> bool:
        """Whether a model has time embeddings for the order of frames."""
        return self.models[model][1].video is not None

    def task(self, side: Side, template: Template) -> FewShotTask:
        """The task of a side. Its demonstrations are computed once, as long as it is among the last few.

        Raises:
            ValueError: a demonstration lacks a text.
        """
        shots = [(shot.image, *shot.fields(template)) for shot in side.shots]
        for number, (_, *texts) in enumerate(shots, 1):
            for name, text in zip(template.fields, texts, strict=True):
                if not text.strip():
                    raise ValueError(f"Demonstration {number} has no {name}. Write one, or remove the demonstration.")
        digest = hashlib.sha256(repr((side.model, template, shots)).encode()).hexdigest()
        with self._lock:
            task = self._tasks.pop((digest,), None) or FewShotTask(*self.models[side.model], shots, template)
            self._tasks[(digest,)] = task
            while len(self._tasks) > KEPT:
                self._tasks.popitem(last=False)
        return task

    def stream(self, task: FewShotTask, query: tuple[Any, ...], tokens: int, beams: int) -> Generator[str]:
        """The answer as it grows, and at last as a whole. With beams there is no text before the end.

        Closing the generator ends the computation at the next token.
        """
        stopped = _Stopped()
        options: dict[str, Any] = {"max_new_tokens": tokens, "num_beams": beams}
        options["stopping_criteria"] = StoppingCriteriaList([stopped])
        streamer = TextIteratorStreamer(task.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
        if beams == 1:
            options["streamer"] = streamer
        with ThreadPoolExecutor(1) as pool:
            answers = pool.submit(task, [query], **options)
            answers.add_done_callback(lambda _: streamer.end())  # also after an error
            text = ""
            try:
                for piece in streamer:
                    text += piece
                    yield task.template.parse(text)
                yield answers.result()[0]
            finally:
                stopped.set()

    def chances(self, task: FewShotTask, query: tuple[Any, ...], labels: Sequence[str]) -> dict[str, float]:
        """The probability of each label, the most likely first."""
        [(_, found)] = task.classify([query], labels)
        return dict(sorted(found.items(), key=lambda pair: -pair[1]))

    def look(self, task: FewShotTask, query: tuple[Any, ...], answer: str) -> AttentionMaps | None:
        """Where the model looks for each word of its answer; None for an empty one."""
        completion = task.template.completion(answer)
        if not answer.strip():
            return None
        return attention_maps(task.model, task.processor, *task.prompt(query), answer=completion)


class _Stopped(threading.Event, StoppingCriteria):
    """Ends a generation when it is set."""

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        return torch.full((len(input_ids),), self.is_set(), device=input_ids.device)
