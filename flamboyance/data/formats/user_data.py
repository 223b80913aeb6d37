"""Users' own data: images with a text, or a question and its answer, or interleaved documents."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from flamboyance.data.documents import Document, Record, Rejected
from flamboyance.data.formats.conversations import is_dialogue, read_dialogue
from flamboyance.data.formats.fields import (
    FILE_LIMIT,
    IMAGE_EXTENSIONS,
    PATH_LENGTH,
    first_image,
    image_of,
    json_object,
    text,
)
from flamboyance.data.formats.interleaved import Interleaved, clean, interleave
from flamboyance.data.formats.obelics import is_page, read_page
from flamboyance.files import ANSWER_NAMES, TEXT_LIMIT, TEXT_NAMES, with_known_names
from flamboyance.templates import END_OF_CHUNK_TOKEN, IMAGE_TOKEN, Template, caption, vqa

TEXTS = ("text", "question", "answer")


@dataclass(frozen=True, kw_only=True)
class UserData(Interleaved):
    """A JSONL or Parquet file, a folder, or tars of the same.

    A line of a JSONL file (a row of a Parquet file, or `KEY.json` in a tar) has the keys `image` and `text`; or
    `image`, `question` and `answer`; or `text` with `<image>` in it, and `images`, a list in the same order; or
    `images` and `texts`, a page as of `OBELICS`; or a conversation, as `read_dialogue` reads it, of which the answers
    are learned. An image is a path in the file's folder, the name of a file beside it in the tar (`KEY.name`), or its
    content in base64 (in Parquet, in bytes). A folder has images, each with its text beside it (`cat.jpg`, `cat.txt`).

    An image with its text is written as few-shot tasks write a demonstration (`flamboyance.templates`), so that
    training and prompts have the same form, and all of it is learned. In a document the text after an image is
    learned, up to `<|endofchunk|>`; a document without that token gets one before each further `<image>` and at the
    end. Images are not mirrored by default: texts may mention left and right, or words in the image.

    Args:
        template: another pattern for an image and its texts, as in "<image>A photo of {text}". Its names are keys of
            the data.
        outside: images may be outside of the JSONL file's folder: absolute paths, `..`, links that lead out.
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
        """A document of the values that `read_record` returns."""
        if is_dialogue(content):
            if not images:
                raise Rejected("no image")
            return read_dialogue(content).document(images)
        text = content.get("text")
        if isinstance(text, str) and IMAGE_TOKEN in text:
            if text.count(IMAGE_TOKEN) != len(images):
                raise Rejected("images and <image> differ in number")
            return Document(_interleaved(text), tuple(images), "after_image")
        if not images:
            raise Rejected("no image")
        if len(images) > 1:
            raise Rejected("images and <image> differ in number")
        template, values = self.template_values(content)
        try:
            return Document(template.demonstration(*values), tuple(images), "all")
        except ValueError as error:  # two texts that form a token where they meet
            raise Rejected("text spells a token") from error

    def template_values(self, content: dict[str, Any]) -> tuple[Template, tuple[str, ...]]:
        """The template of one image and its texts, and the values of its fields, without tokens."""
        if not self.template and content.get("question") and "answer" not in content:
            raise Rejected("no answer")
        is_question = "question" in content and "answer" in content
        template = Template(self.template) if self.template else vqa if is_question else caption
        return template, tuple(_value(content, name) for name in template.fields)


def read_record(record: Record, outside: bool = False) -> tuple[dict[str, Any], list[bytes]]:
    """The keys of a record, with "text" or "answer" under those names, and its images in order."""
    content = with_known_names(json_object(record)) if "json" in record.fields else {}
    if is_dialogue(content):
        return content, _all_images(record, read_dialogue(content).media, outside)
    if is_page(content):
        pieces, images = read_page(record, content, outside)
        del content["texts"]
        return content | {"text": "".join(IMAGE_TOKEN if piece is None else piece for piece in pieces)}, images
    if "text" not in content:
        if "txt" in record.fields:
            content["text"] = text(record.fields["txt"])
        elif "question" not in content:
            _rename(content, TEXT_NAMES, "text")
    if "question" in content and "answer" not in content:
        _rename(content, ANSWER_NAMES, "answer")
    if any(isinstance(value, str) and len(value) > TEXT_LIMIT for key, value in content.items() if key in TEXTS):
        raise Rejected("text too long")
    names = content.get("images", content.get("image", content.get("file_name")))
    if names is None:
        has_image = any(extension in record.fields for extension in IMAGE_EXTENSIONS)
        return content, [first_image(record)] if has_image else []
    return content, _images(record, names if isinstance(names, list) else [names], content.get("text"), outside)


def _rename(content: dict[str, Any], keys: tuple[str, ...], name: str) -> None:
    """Adds the value of the first of the keys under another name: of a list, the most frequent text."""
    key = next((key for key in keys if key in content), None)
    if key is not None:
        value = content[key]
        texts = [one for one in value if isinstance(one, str)] if isinstance(value, list) else []
        content[name] = (
            Counter(texts).most_common(1)[0][0] if texts else str(value) if isinstance(value, int) else value
        )


def _images(record: Record, names: list[Any], text: Any, outside: bool) -> list[bytes]:
    # Counted before anything is read: a short record may name a file a million times.
    places = text.count(IMAGE_TOKEN) if isinstance(text, str) else 0
    if len(names) != max(places, 1):
        raise Rejected("images and <image> differ in number")
    return _all_images(record, names, outside)


def _all_images(record: Record, names: list[Any], outside: bool) -> list[bytes]:
    """The images that the values name or contain."""
    files: dict[str, bytes] = {}
    images, remaining = [], FILE_LIMIT
    for name in names:
        image = files.get(name) if isinstance(name, str) else None
        if image is None:
            image = image_of(record, name, outside, remaining)
            files |= {name: image} if len(name) < PATH_LENGTH else {}
        remaining -= len(image)
        if remaining < 0:
            raise Rejected("image too large")
        images.append(image)
    return images


def _value(content: dict[str, Any], name: str) -> str:
    value = content.get(name)
    value = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    value = clean(value).strip() if isinstance(value, str) else ""
    if not value:
        raise Rejected(f"no {name}")
    return value


def _interleaved(text: str) -> str:
    if END_OF_CHUNK_TOKEN in text:
        return text.rstrip().removesuffix(END_OF_CHUNK_TOKEN) + END_OF_CHUNK_TOKEN
    before, *chunks = text.split(IMAGE_TOKEN)
    return interleave([before, *(piece for chunk in chunks for piece in (None, chunk))])
