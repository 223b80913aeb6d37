"""The body of a chat request -> what the engine generates from.

Without a task, the chat becomes a prompt through the processor's chat template: the turns of user and assistant are
demonstrations, the user's last message is the query. With a task, the query is written by the task's template behind
its demonstrations, which are computed already; earlier turns are further demonstrations.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from flamboyance.prompting import tokens_after_a_chunk
from flamboyance.serving.batching import Engine, Picture, Request
from flamboyance.serving.errors import ApiError, bad
from flamboyance.serving.limits import Limits
from flamboyance.serving.pictures import no_videos
from flamboyance.serving.protocol import ChatBody, ImagePart, Message, TextPart, VideoPart
from flamboyance.serving.sampling import Sampling
from flamboyance.serving.tasks import StoredTask
from flamboyance.templates import Template


def media_urls(body: ChatBody, limits: Limits, videos: bool) -> list[tuple[str, str]]:
    """The place and the URL of each image and video, in order.

    Args:
        videos: whether the model takes videos.

    Raises:
        ApiError: too many images, or a video for a model of still images.
    """
    found = []
    for number, message in enumerate(body.messages):
        for index, part in enumerate(message.content):
            place = f"messages.{number}.content.{index}"
            if isinstance(part, ImagePart):
                found.append((f"{place}.image_url.url", part.image_url.url))
            elif isinstance(part, VideoPart):
                if not videos:
                    raise no_videos(place)
                found.append((f"{place}.video_url.url", part.video_url.url))
    if len(found) > limits.images:
        raise bad("messages", f"the request has {len(found)} images; this server takes {limits.images}")
    return found


def request_of(
    body: ChatBody, pictures: Sequence[Picture], task: StoredTask | None, engine: Engine, limits: Limits
) -> Request:
    """
    Args:
        pictures: those of all parts with an image or a video, in order.

    Raises:
        ApiError: 400, for what is wrong with the chat or a setting.
    """
    if body.messages[-1].role == "assistant":
        raise bad("messages", "the last message is the assistant's; expected the user's, which is answered")
    tokens = _tokens(body, limits)
    if (body.n or 1) > min(limits.choices, limits.rows):
        raise bad("n", f"n is {body.n}; this server gives at most {min(limits.choices, limits.rows)} choices")
    stops = tuple(body.stop or ())
    if len(stops) > 4 or not all(stops):
        raise bad("stop", f"stop has {len(stops)} texts; expected up to 4, none of them empty")
    if body.top_logprobs is not None and not body.logprobs:
        raise bad("top_logprobs", "top_logprobs is given without logprobs; set logprobs to true")
    try:
        ids = _chat_ids(body, engine) if task is None else _task_ids(body, task, engine)
        engine.model.check_length(len(ids), new=tokens)
    except ValueError as error:
        code = "context_length_exceeded" if str(error).startswith("too long") else "invalid_value"
        raise bad("messages", str(error), code) from None
    return Request(
        ids=tuple(ids),
        pictures=tuple(pictures),
        prefix=None if task is None else task.prefix,
        max_new_tokens=tokens,
        sampling=Sampling(
            temperature=body.temperature or 0.0,  # greedy by default, as `generate`
            top_p=1.0 if body.top_p is None else body.top_p,
            logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        ),
        choices=body.n or 1,
        seed=body.seed,
        stops=stops,
        template=None if task is None else task.template,
        stream=bool(body.stream),
    )


def _tokens(body: ChatBody, limits: Limits) -> int:
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise bad("max_tokens", "max_tokens and max_completion_tokens are both given; expected one of them")
    given = body.max_completion_tokens if body.max_tokens is None else body.max_tokens
    if given is not None and given > limits.tokens:
        name = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
        raise bad(name, f"{name} is {given}; this server generates at most {limits.tokens} tokens")
    return min(limits.default_tokens, limits.tokens) if given is None else given


def _chat_ids(body: ChatBody, engine: Engine) -> list[int]:
    chat = [
        {
            "role": "system" if message.role == "developer" else message.role,
            "content": [
                {"type": "text", "text": part.text} if isinstance(part, TextPart) else {"type": "image"}
                for part in message.content
            ],
        }
        for message in body.messages
    ]
    text = engine.processor.apply_chat_template(chat, tokenize=False)
    (ids,) = engine.processor.tokenize([text])
    if not ids:
        raise bad("messages", "the messages are empty; expected a text or an image")
    return ids


def _task_ids(body: ChatBody, task: StoredTask, engine: Engine) -> list[int]:
    """The tokens of the task's demonstrations, of those in earlier messages, and of the query."""
    *before, last = body.messages
    written = []
    for number, asked, answer in _turns(before, task):
        values = _values(asked, number, task.template)
        written.append(task.template.demonstration(*values, _text_of(answer, number + 1)))
    written.append(task.template.query(*_values(last, len(before), task.template)))
    known = [] if task.prefix is None else task.prefix.ids.tolist()
    if not known:
        return engine.processor.tokenize(["".join(written)])[0]
    return [*known, *tokens_after_a_chunk(engine.processor, ["".join(written)])[0]]


def _turns(messages: Sequence[Message], task: StoredTask) -> Iterator[tuple[int, Message, Message]]:
    """The number of each question, the question, and its answer."""
    for number in range(0, len(messages), 2):
        pair = messages[number : number + 2]
        if [message.role for message in pair] != ["user", "assistant"]:
            raise bad(
                f"messages.{number}",
                f"with the task {task.name!r}, expected the user's query alone, or turns of user and assistant before "
                "it, which are further demonstrations",
            )
        yield number, pair[0], pair[1]


def _values(message: Message, number: int, template: Template) -> list[str]:
    """The fields before the answer, in the user's message: one image or video, and a text part for each field."""
    place = f"messages.{number}"
    fields = template.fields[:-1]
    texts = [part.text for part in message.content if isinstance(part, TextPart) and part.text.strip()]
    images = sum(not isinstance(part, TextPart) for part in message.content)
    if message.role != "user" or images != 1 or len(texts) != len(fields):
        expected = ", ".join(["one image or video", *(f"a text ({field})" for field in fields)])
        raise bad(
            place,
            f"{place} is the {message.role}'s, with {images} image(s) or video(s) and {len(texts)} text(s); expected "
            f"the user's with {expected}{'' if fields else ' and no text'}, for the template {template.pattern!r}",
        )
    return texts


def _text_of(message: Message, number: int) -> str:
    texts = [part.text for part in message.content if isinstance(part, TextPart)]
    if len(texts) < len(message.content):
        raise bad(
            f"messages.{number}", f"messages.{number} is the assistant's and has an image or a video; expected a text"
        )
    return "".join(texts)


def model_and_task(given: str, name: str) -> str | None:
    """The task in a request's `model`: `NAME:TASK`; None for the model itself.

    Raises:
        ApiError: 404, it is another model.
    """
    if given == name:
        return None
    if given.startswith(f"{name}:"):
        return given[len(name) + 1 :]
    raise ApiError(404, f"there is no model {given!r}; this server has {name!r}", "model", "model_not_found")
