"""A user's own data: images with a text, or a question and its answer, or whole interleaved documents."""

from __future__ import annotations

import base64
import binascii
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from flamboyance.data.documents import Document, Record, Rejected
from flamboyance.data.formats.fields import (
    FILE_LIMIT,
    IMAGE_EXTENSIONS,
    first_image,
    from_base64,
    json_object,
    named_image,
    text,
)
from flamboyance.data.formats.interleaved import Interleaved, clean, interleave
from flamboyance.files import TEXT_LIMIT
from flamboyance.templates import END_OF_CHUNK_TOKEN, IMAGE_TOKEN, Template, caption, vqa

TEXTS = ("text", "question", "answer")
PATH_LENGTH, SHORTEST_BASE64 = 4096, 64  # characters: the longest path, and less than any image takes


@dataclass(frozen=True, kw_only=True)
class UserData(Interleaved):
    """A JSONL file, a folder, or tars of the same.

    A line of a JSONL file (or `KEY.json` in a tar) has the keys `image` and `text`; or `image`, `question` and
    `answer`; or `text` with `<image>` in it and `images`, the list of them in order. An image is a path in the file's
    folder, the name of a file beside it in the tar (`KEY.name`), or its content in base64. A folder has images, each
    with its text beside it (`cat.jpg`, `cat.txt`).

    An image with its text is written as few-shot tasks write a demonstration (`flamboyance.templates`), so that what is
    trained is what they prompt with, and all of it is learned. Of a document is learned what follows an image, up to
    `<|endofchunk|>`; where it has none, that is put before each next `<image>` and at the end. Images are not mirrored
    unless `flip` says so: a text may speak of left and right, or of what is written in them.

    Args:
        template: another pattern to write images and texts in, as in "<image>A photo of {text}"; its names are keys of
            the data.
        outside: images may stand outside of the JSONL's folder: absolute paths, `..`, links that lead out.
    """

    flip: float = 0.0
    template: str = ""
    outside: bool = False

    def __post_init__(self) -> None:
        if self.template and Template(self.template).pattern.count(IMAGE_TOKEN) != 1:
            raise ValueError(f"template={self.template!r}: expected one {IMAGE_TOKEN}")

    def document(self, record: Record, rng: np.random.Generator) -> Document:
        return self.to_document(*read_record(record, self.outside))

    def to_document(self, content: dict[str, Any], images: list[bytes]) -> Document:
        """What `read` gives, as a document."""
        text = content.get("text")
        if isinstance(text, str) and IMAGE_TOKEN in text:
            return Document(_interleaved(text), tuple(images), "after_image")
        if not images:
            raise Rejected("no image")
        if len(images) > 1:
            raise Rejected("images and <image> differ in number")
        template, values = self.template_values(content)
        try:
            return Document(template.demonstration(*values), tuple(images), "all")
        except ValueError as error:  # texts that spell a token where they meet
            raise Rejected("text spells a token") from error

    def template_values(self, content: dict[str, Any]) -> tuple[Template, tuple[str, ...]]:
        """How one image and its texts are written: the template, and the values of its fields without tokens."""
        is_question = "question" in content and "answer" in content
        template = Template(self.template) if self.template else vqa if is_question else caption
        return template, tuple(_filled(content, name) for name in template.fields)


# Where a record has no text, or no answer: other names for them, first choice first.
_TEXTS, _ANSWERS = ("caption", "captions", "label"), ("label", "answers")


def read_record(record: Record, outside: bool = False) -> tuple[dict[str, Any], list[bytes]]:
    """What a record says, and its images in order."""
    content = json_object(record) if "json" in record.fields else {}
    if "text" not in content:
        name = next((name for name in _TEXTS if name in content), None)  # "caption" is img2dataset's name for it
        if "txt" in record.fields:
            content["text"] = text(record.fields["txt"])
        elif "question" not in content and name is not None:
            content["text"] = _first(content[name])
    if "question" in content and "answer" not in content:
        name = next((name for name in _ANSWERS if name in content), None)
        content |= {"answer": _first(content[name])} if name is not None else {}
    if any(isinstance(value, str) and len(value) > TEXT_LIMIT for key, value in content.items() if key in TEXTS):
        raise Rejected("text too long")
    named = content.get("images", content.get("image", content.get("file_name")))
    if named is None:
        beside = any(extension in record.fields for extension in IMAGE_EXTENSIONS)
        return content, [first_image(record)] if beside else []
    return content, _images(record, named if isinstance(named, list) else [named], content.get("text"), outside)


def _first(value: Any) -> Any:
    """Of several captions the first; of several answers what most annotators say."""
    texts = [one for one in value if isinstance(one, str)] if isinstance(value, list) else []
    return Counter(texts).most_common(1)[0][0] if texts else value if not isinstance(value, int) else str(value)


def _images(record: Record, named: list[Any], written: Any, outside: bool) -> list[bytes]:
    # Counted before anything is read: a record of a few bytes may name a file a million times.
    places = written.count(IMAGE_TOKEN) if isinstance(written, str) else 0
    if len(named) != max(places, 1):
        raise Rejected("images and <image> differ in number")
    read: dict[str, bytes] = {}
    images, left = [], FILE_LIMIT
    for one in named:
        if not isinstance(one, str) or one not in read:
            image = _image(record, one, outside, left)
            read |= {one: image} if len(one) < PATH_LENGTH else {}
        else:
            image = read[one]
        left -= len(image)
        if left < 0:
            raise Rejected("image too large")
        images.append(image)
    return images


def _image(record: Record, named: Any, outside: bool, most: int) -> bytes:
    if not isinstance(named, str) or not (named := named.strip()):
        raise Rejected("missing image")
    if named.startswith("data:"):
        return from_base64(named.partition(",")[2])
    if len(named) < PATH_LENGTH:
        try:
            return named_image(record, named, outside, most)
        except Rejected:
            if len(named) < SHORTEST_BASE64:
                raise
            content = _decoded(named)
            if content is None:
                raise
            return content
    return from_base64(named)


def _decoded(named: str) -> bytes | None:
    """Content that may as well have been a path."""
    try:
        return base64.b64decode("".join(named.split()), validate=True)
    except (binascii.Error, ValueError):
        return None


def _filled(content: dict[str, Any], name: str) -> str:
    value = content.get(name)
    value = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    value = clean(value).strip() if isinstance(value, str) else ""
    if not value:
        raise Rejected(f"no {name}")
    return value


def _interleaved(written: str) -> str:
    if END_OF_CHUNK_TOKEN in written:
        return written.rstrip().removesuffix(END_OF_CHUNK_TOKEN) + END_OF_CHUNK_TOKEN
    before, *chunks = written.split(IMAGE_TOKEN)
    return interleave([before, *(piece for chunk in chunks for piece in (None, chunk))])
