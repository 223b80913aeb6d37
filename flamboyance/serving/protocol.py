"""The bodies of requests and answers, as OpenAI's chat completions define them."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from flamboyance.checks import brief
from flamboyance.serving.batching import Piece
from flamboyance.serving.errors import bad
from flamboyance.serving.sampling import Chosen


class Body(BaseModel):
    """A part of a request. Unknown fields are refused: a setting without effect would give another answer than asked
    for."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())


class TextPart(Body):
    type: Literal["text"]
    text: str


class ImageUrl(Body):
    url: str
    detail: Literal["auto", "low", "high"] | None = None  # without effect: every image has one resolution


class ImagePart(Body):
    type: Literal["image_url"]
    image_url: ImageUrl


class VideoUrl(Body):
    url: str


class VideoPart(Body):
    """As servers of open models, such as vLLM, take a video; OpenAI's have none."""

    type: Literal["video_url"]
    video_url: VideoUrl


Part = Annotated[TextPart | ImagePart | VideoPart, Field(discriminator="type")]


def _parts(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class Message(Body):
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[Part], BeforeValidator(_parts)]
    name: str | None = None
    refusal: None = None  # fields of an assistant's message as clients send them back
    annotations: list[Any] | None = Field(default=None, max_length=0)
    audio: None = None
    function_call: None = None
    tool_calls: list[Any] | None = Field(default=None, max_length=0)


class StreamOptions(Body):
    include_usage: bool = False
    include_obfuscation: bool | None = None  # without effect


class TextFormat(Body):
    type: Literal["text"]


class ChatBody(Body):
    """The body of `POST /v1/chat/completions`. Fields whose type allows one value only are those whose other values
    this server does not have."""

    model: str
    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    n: int | None = Field(default=None, ge=1)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: Annotated[list[str] | None, BeforeValidator(_listed)] = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None
    logit_bias: dict[str, float] | None = Field(default=None, max_length=0)
    response_format: TextFormat | None = None
    tools: list[Any] | None = Field(default=None, max_length=0)
    tool_choice: Literal["none", "auto"] | None = None
    modalities: list[Literal["text"]] | None = None
    # What says who asks and how the provider may handle it; without effect.
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    parallel_tool_calls: bool | None = None


class TemplateBody(Body):
    """A template: see flamboyance.templates.Template. The pattern may be the name of one of its templates; the other
    fields are that template's then, unless they are given."""

    pattern: str
    stops: list[str] = []
    drop: str = ""
    strip: bool = True


def _template(value: Any) -> Any:
    return {"pattern": value} if isinstance(value, str) else value


class TaskBody(Body):
    """The body of `POST /v1/tasks`. Each demonstration has an `image`, and a text for each of the template's fields."""

    name: str
    template: Annotated[TemplateBody, BeforeValidator(_template)] = TemplateBody(pattern="caption")
    demonstrations: list[dict[str, str]] = Field(min_length=1)


Kind = TypeVar("Kind", bound=Body)


def read_body(kind: type[Kind], data: bytes) -> Kind:
    """
    Raises:
        ApiError: 400, with the first field that is wrong.
    """
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = _place(first["loc"]) or "the body"
        if first["type"] == "json_invalid":
            raise bad(None, f"the body is not JSON: {first['msg'].removeprefix('Invalid JSON: ')}") from None
        if first["type"] == "extra_forbidden":
            raise bad(where, f"this server has no field '{where}'; leave it out", "unknown_parameter") from None
        if first["type"] == "missing":
            raise bad(where, f"'{where}' is missing", "missing_required_parameter") from None
        raise bad(where, f"'{where}' is {brief(first['input'])}: {_lower(first['msg'])}", "invalid_value") from None


def _place(loc: Sequence[str | int]) -> str:
    """The path of a field, as `messages.0.content.1.text`; without pydantic's names of a part's kind."""
    kept = [part for i, part in enumerate(loc) if not (i > 1 and loc[i - 2] == "content" and isinstance(part, str))]
    return ".".join(map(str, kept))


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


# Answers ------------------------------------------------------------------------------------------------------------


def new_id() -> str:
    return f"chatcmpl-{uuid.uuid4().hex}"


def usage(prompt: int, cached: int, completion: int) -> dict[str, Any]:
    """Counts of tokens. `cached`: those of the prompt that a task had computed before."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def token_logprobs(tokens: Sequence[Chosen], decode: Any) -> dict[str, Any]:
    """`logprobs` of a choice."""

    def one(token: int, logprob: float) -> dict[str, Any]:
        text = decode([token])
        whole = "\N{REPLACEMENT CHARACTER}" not in text
        # JSON has no infinity; OpenAI's clients expect this number for impossible tokens.
        return {"token": text, "logprob": max(logprob, -9999.0), "bytes": list(text.encode()) if whole else None}

    return {
        "content": [
            one(chosen.token, chosen.logprob or 0.0) | {"top_logprobs": [one(*each) for each in chosen.top]}
            for chosen in tokens
        ],
        "refusal": None,
    }


def completion(name: str, model: str, pieces: Sequence[Piece], used: dict[str, Any], logprobs: Any) -> dict[str, Any]:
    """The answer as a whole, from the last piece of each choice."""
    return {
        "id": name,
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [
            {
                "index": piece.choice,
                "message": {"role": "assistant", "content": piece.text, "refusal": None},
                "logprobs": logprobs(piece),
                "finish_reason": piece.ended,
            }
            for piece in sorted(pieces, key=lambda piece: piece.choice)
        ],
        "usage": used,
        "system_fingerprint": None,
    }


def chunk(name: str, model: str, created: int, choices: list[dict[str, Any]], used: Any = None) -> dict[str, Any]:
    """A piece of a streamed answer."""
    return {
        "id": name,
        "object": "chat.completion.chunk",
        "created": created,
        "model": model,
        "choices": choices,
        "usage": used,
        "system_fingerprint": None,
    }


def delta(piece: Piece, logprobs: Any, first: bool) -> dict[str, Any]:
    """One choice of a chunk."""
    said: dict[str, Any] = {"role": "assistant"} if first else {}
    if piece.text or first:
        said["content"] = piece.text
    return {"index": piece.choice, "delta": said, "logprobs": logprobs(piece), "finish_reason": piece.ended}
