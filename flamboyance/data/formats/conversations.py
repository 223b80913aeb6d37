"""Conversations about images, written as `flamboyance chat` writes them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from flamboyance.data.documents import Document, Rejected
from flamboyance.data.formats.interleaved import clean
from flamboyance.templates import END_OF_CHUNK_TOKEN, IMAGE_TOKEN, OPENING, answered, asked, opened

ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
_CAULDRON = {"user", "assistant"}
MEDIA = ("image", "video", "image_url")  # types of parts
_KEYS = ("image", "video", "path", "url", "image_url", "base64")  # of a part with its image


@dataclass
class Turn:
    """What a user says, with so many images and videos, and the answer to it."""

    media: int = 0
    said: list[str] = field(default_factory=list)
    answer: str = ""


@dataclass
class Dialogue:
    """A conversation.

    Attributes:
        opening: what precedes the first turn.
        turns: each with an answer.
        media: what names or contains each image and video, in order.
    """

    opening: str = OPENING
    turns: list[Turn] = field(default_factory=list)
    media: list[Any] = field(default_factory=list)

    def messages(self) -> list[dict[str, str]]:
        """The turns in the form of `messages`, in which `<image>` marks each of `media`."""
        found = [] if self.opening == OPENING else [{"role": "system", "content": self.opening}]
        for turn in self.turns:
            said = IMAGE_TOKEN * turn.media + " ".join(filter(None, turn.said))
            found += [{"role": "user", "content": said}, {"role": "assistant", "content": turn.answer}]
        return found

    def document(self, images: list[bytes]) -> Document:
        """The text that `flamboyance chat` would have, up to the last answer, of which the answers are learned."""
        text, answers = opened(self.opening), []
        for turn in self.turns:
            before = asked(text, turn.media, " ".join(filter(None, turn.said)))
            text = answered(before, turn.answer)
            answers.append((len(before), len(text) - 1))
        text = text[:-1] + END_OF_CHUNK_TOKEN
        if text.count(IMAGE_TOKEN) != len(images) or text.count(END_OF_CHUNK_TOKEN) > 1:
            raise Rejected("text spells a token")
        return Document(text, tuple(images), "answers", tuple(answers))


def is_dialogue(content: dict[str, Any]) -> bool:
    """Whether a record is a conversation: `messages`, LLaVA's `conversations`, or the Cauldron's `texts`."""
    return isinstance(_messages(content), list)


def _messages(content: dict[str, Any]) -> Any:
    """The messages of a record; of the Cauldron, those of its questions and answers."""
    texts = content.get("texts")
    if isinstance(texts, list) and texts and all(isinstance(one, dict) and one.keys() >= _CAULDRON for one in texts):
        return [{"role": role, "content": one[role]} for one in texts for role in ("user", "assistant")]
    return content.get("messages", content.get("conversations"))


def read_dialogue(content: dict[str, Any]) -> Dialogue:
    """The conversation in a record.

    `messages` have `role` and `content`: a text, in which `<image>` marks the next of `images`; or a list of parts,
    which may hold their images. LLaVA's `conversations` have `from` and `value`; the Cauldron's `texts` have `user` and
    `assistant`, a turn each. Images are shown before the text of their turn; those without a mark in the first turn. An
    answer is on one line, as in a chat.

    Raises:
        Rejected: it is broken, or has no answer.
    """
    listed = content.get("images", content.get("image"))
    remaining = list(listed) if isinstance(listed, list) else [] if listed is None else [listed]
    found, open_turn, opening = Dialogue(), Turn(), list[str]()
    for message in _messages(content) or []:
        if not isinstance(message, dict):
            raise Rejected("broken conversation")
        role = ROLES.get(str(message.get("role", message.get("from"))))
        pieces = _pieces(message.get("content", message.get("value")))
        said = [piece for piece in pieces if isinstance(piece, str)]
        if role == "system" and not found.turns and not open_turn.said:
            opening += filter(None, said)
            found.opening = " ".join(opening)
        elif role == "user":
            for piece in pieces:
                if isinstance(piece, str):
                    open_turn.said.append(piece)
                    continue
                open_turn.media += 1
                found.media.append(_taken(remaining) if piece.medium is None else piece.medium)
        elif role == "assistant" and (open_turn.said or open_turn.media) and len(said) == len(pieces):
            open_turn.answer = " ".join(" ".join(said).split())
            if not open_turn.answer:
                raise Rejected("empty answer")
            found.turns.append(open_turn)
            open_turn = Turn()
        else:
            raise Rejected("broken conversation")
    if not found.turns:
        raise Rejected("no answer")
    if open_turn.media:  # of a last turn without an answer
        del found.media[-open_turn.media :]
    elif remaining and not found.media:
        found.turns[0].media, found.media, remaining = len(remaining), remaining, []
    if remaining and not open_turn.media:
        raise Rejected("images and <image> differ in number")
    return found


@dataclass(frozen=True)
class _Shown:
    """A place of an image; `medium` is None where it is the next of the record's list."""

    medium: Any = None


def _pieces(content: Any) -> list[str | _Shown]:
    """Texts and images of a message, in order."""
    found: list[str | _Shown] = []
    for part in [content] if isinstance(content, str) else content if isinstance(content, list) else [None]:
        text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else part
        if isinstance(text, str):
            first, *others = text.split(IMAGE_TOKEN)
            found.append(clean(first).strip())
            for other in others:
                found += [_Shown(), clean(other).strip()]
        elif isinstance(part, dict) and part.get("type") in MEDIA:
            value = next((part[key] for key in _KEYS if part.get(key) is not None), None)
            found.append(_Shown(value.get("url") if isinstance(value, dict) else value))
        else:
            raise Rejected("broken conversation")
    return [piece for piece in found if piece != ""]


def _taken(remaining: list[Any]) -> Any:
    if not remaining:
        raise Rejected("images and <image> differ in number")
    return remaining.pop(0)
