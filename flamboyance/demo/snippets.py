"""The first query of a task as the model reads it, and as a user writes it."""

import json
from html import escape

from flamboyance import templates
from flamboyance.demo.results import AnsweredTask
from flamboyance.demo.tasks import Example
from flamboyance.templates import END_OF_CHUNK_TOKEN, IMAGE_TOKEN

MINI = "flamingo-mini"


def prompt(task: AnsweredTask, shots: int) -> str:
    """The prompt's text as HTML: a line for each example, the added tokens marked."""
    part, template = task.sets[0], task.task.template
    lines = [template.demonstration(*one.asked, one.answer) for one in part.demonstrations[:shots]]
    lines.append(template.query(*part.queries[0].example.asked))
    marked = [escape(line) for line in lines]
    for token in map(escape, (IMAGE_TOKEN, END_OF_CHUNK_TOKEN)):
        marked = [line.replace(token, f'<span class="token">{token}</span>') for line in marked]
    return "".join(f'<span class="break">{line}</span>' for line in marked)


def python(task: AnsweredTask, shots: int, model: str) -> str:
    """A program that asks the first query after `shots` demonstrations; its paths are relative to the output folder."""
    part, query = task.sets[0], task.sets[0].queries[0].example
    shown = "".join(f"    {_row(one, one.answer)},\n" for one in part.demonstrations[:shots])
    asked = _row(query) if query.asked else _quoted(query.image)
    labels = ", ".join(map(_quoted, part.candidates or ()))
    ask = f"task([{asked}])" if part.candidates is None else f"task.classify([{asked}], [{labels}])"
    return (
        "import flamboyance as fl\n\n"
        f"{_opened(model)}\n"
        f"demonstrations = [\n{shown}]\n"
        f"task = fl.FewShotTask(model, processor, demonstrations, template=fl.templates.{_template(task)})\n"
        f"print({ask})\n"
    )


def _opened(model: str) -> str:
    if model == MINI:
        return "model, processor = fl.load_mini()"
    return (
        f"model = fl.FlamingoForConditionalGeneration.from_pretrained({_quoted(model)})\n"
        f"processor = fl.FlamingoProcessor.from_pretrained({_quoted(model)})"
    )


def _row(one: Example, *answer: str) -> str:
    return f"({', '.join(map(_quoted, (one.image, *one.asked, *answer)))})"


def _quoted(text: str) -> str:
    return json.dumps(text)  # a string's JSON is Python too


def _template(task: AnsweredTask) -> str:
    names = ("caption", "vqa", "classification")
    return next((name for name in names if getattr(templates, name) == task.task.template), "caption")
