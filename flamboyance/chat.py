"""A chat in transformers' form -> messages without their images, and the images."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flamboyance.images import ImageError
from flamboyance.templates import END_OF_CHUNK_TOKEN, IMAGE_TOKEN, well_formed

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Chat:
    """One conversation.

    Attributes:
        messages: role and parts; image parts without their images.
        media: (place, image) in order, e.g. ("message 0, part 1", image); None for an image that is given elsewhere.
    """

    messages: list[dict[str, Any]]
    media: list[tuple[str, Any]]

    def images(self) -> list[Any]:
        """The images in order; ValueError where a part has none."""
        for place, medium in self.media:
            if medium is None:
                raise ValueError(
                    f"{place} is an image part without an image; give it there as 'image', 'path' or 'base64', or all "
                    "of them as images="
                )
        return [medium for _, medium in self.media]


def read_chats(given: Any) -> tuple[list[Chat], bool]:
    """The conversations in a list of messages, or in a list of such lists; and whether it was the latter."""
    batched = isinstance(given, (list, tuple)) and bool(given) and _is_conversation(given[0])
    chats = [
        _read(one, f"conversation {i}, " if batched else "") for i, one in enumerate(given if batched else [given])
    ]
    return chats, batched


def _is_conversation(value: Any) -> bool:
    return isinstance(value, (list, tuple)) or hasattr(value, "messages")


def _read(conversation: Any, prefix: str) -> Chat:
    """Checks a conversation; `prefix` precedes the number of a message in an error."""
    conversation = getattr(conversation, "messages", conversation)
    if not isinstance(conversation, (list, tuple)) or not conversation:
        raise ValueError(f"{prefix}the conversation is {conversation!r:.200}; expected a list of one or more messages")
    chat = Chat([], [])
    for number, message in enumerate(conversation):
        place = f"{prefix}message {number}"
        if not isinstance(message, Mapping) or message.get("role") not in ROLES or message.get("content") is None:
            raise ValueError(f"{place} is {message!r:.200}; expected a role ({', '.join(ROLES)}) and content")
        content = message["content"]
        parts = [content] if isinstance(content, str) else content
        if not isinstance(parts, (list, tuple)):
            raise ValueError(f"{place} has content of type {type(content).__name__}; expected a text or parts")
        if message["role"] == "assistant" and chat.messages and chat.messages[-1]["role"] == "assistant":
            raise ValueError(f"{place} is a second answer of the assistant in a row; join them into one message")
        read = [_part(part, f"{place}, part {index}", chat.media) for index, part in enumerate(parts)]
        _check_text("".join(part.get("text", "\n") for part in read), place)  # two parts can form a token together
        chat.messages.append({"role": message["role"], "content": read})
    return chat


def _part(part: Any, place: str, media: list[tuple[str, Any]]) -> dict[str, str]:
    """A part without its image, which is appended to `media`."""
    part = {"type": "text", "text": part} if isinstance(part, str) else part
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        text = well_formed(part["text"])
        _check_text(text, place)
        return {"type": "text", "text": text}
    if kind in ("image", "image_url", "video"):
        media.append((place, _medium(part, place)))
        return {"type": "image"}
    raise ValueError(f"{place} is {part!r:.200}; expected type 'text' with a text, or 'image' with an image")


def _check_text(text: str, place: str) -> None:
    for token in (IMAGE_TOKEN, END_OF_CHUNK_TOKEN):
        if token in text:
            raise ValueError(f"{place}: the text contains {token!r}, which would alter the prompt; remove it")


def _medium(part: Mapping[str, Any], place: str) -> Any:
    """The image of a part, in whatever form; None where the part has none."""
    for key in ("image", "video", "path", "url", "image_url"):
        value = part.get(key)
        value = value.get("url") if isinstance(value, Mapping) else value
        if value is not None:
            inline = isinstance(value, str) and value.startswith("data:") and ";base64," in value[:100]
            return decoded_base64(value.partition(",")[2], place) if inline else value
    return None if part.get("base64") is None else decoded_base64(part["base64"], place)


def decoded_base64(text: str, place: str) -> bytes:
    """The bytes of a base64 text; `place` names it in the ImageError of one that is not valid."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError, TypeError) as error:
        raise ImageError(f"{place}: its base64 cannot be decoded ({error})") from error
