"""A chat as transformers writes it -> messages without their images, and the images."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

from flamboyance.images import ImageError
from flamboyance.templates import END_OF_CHUNK_TOKEN, IMAGE_TOKEN, well_formed

ROLES = ("system", "user", "assistant")


class Chat:
    """One conversation: its messages without their images, and the images with where they were."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.media: list[tuple[str, Any]] = []

    @classmethod
    def read(cls, conversation: Any, of: str) -> Chat:
        """Checks a conversation; `of` begins the name of a message in an error."""
        conversation = getattr(conversation, "messages", conversation)
        if not isinstance(conversation, (list, tuple)) or not conversation:
            raise ValueError(f"{of}a conversation is a list of messages, one at least; given {conversation!r:.200}")
        chat = cls()
        for number, message in enumerate(conversation):
            where = f"{of}message {number}"
            if not isinstance(message, Mapping) or message.get("role") not in ROLES or message.get("content") is None:
                raise ValueError(f"{where} is {message!r:.200}; expected a role, {', '.join(ROLES)}, and content")
            content = message["content"]
            parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
            if not isinstance(parts, (list, tuple)):
                raise ValueError(f"{where} has a content of type {type(content).__name__}; expected a text or parts")
            read = [chat._part(part, f"{where}, part {index}") for index, part in enumerate(parts)]
            chat.messages.append({"role": message["role"], "content": read})
            if message["role"] == "assistant" and number and conversation[number - 1].get("role") == "assistant":
                raise ValueError(f"{where} is a second answer of the assistant in a row; put them into one message")
        return chat

    def _part(self, part: Any, where: str) -> dict[str, str]:
        part = {"type": "text", "text": part} if isinstance(part, str) else part
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text" and isinstance(part.get("text"), str):
            text = well_formed(part["text"])
            for token in (IMAGE_TOKEN, END_OF_CHUNK_TOKEN):
                if token in text:
                    raise ValueError(f"{where}: the text holds {token!r}, which would alter the prompt; take it out")
            return {"type": "text", "text": text}
        if kind in ("image", "image_url", "video"):
            self.media.append((where, _medium(part, where)))
            return {"type": "image"}
        raise ValueError(f"{where} is {part!r:.200}; expected type 'text' with a text, or 'image' with an image")


def _medium(part: Mapping[str, Any], where: str) -> Any:
    """The image of a part, however it is given; None where it is given elsewhere."""
    for key in ("image", "video", "path", "url", "image_url"):
        value = part.get(key)
        value = value.get("url") if isinstance(value, Mapping) else value
        if value is not None:
            inline = isinstance(value, str) and value.startswith("data:") and ";base64," in value[:100]
            return _decoded(value.partition(",")[2], where) if inline else value
    return None if part.get("base64") is None else _decoded(part["base64"], where)


def _decoded(text: str, where: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError, TypeError) as error:
        raise ImageError(f"{where}: its base64 cannot be decoded ({error})") from error


def is_batch(conversation: Any) -> bool:
    """Whether this is a list of conversations, not of messages."""
    if not isinstance(conversation, (list, tuple)) or not conversation:
        return False
    first = conversation[0]
    return isinstance(first, (list, tuple)) or hasattr(first, "messages")
