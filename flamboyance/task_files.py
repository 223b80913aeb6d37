"""Few-shot tasks as files: a template and demonstrations with their images, for any model.

A task file is JSON, and what `POST /v1/tasks` of `flamboyance serve` takes:

    {"name": "birds", "template": {"pattern": "<image>Output:{text}", "stops": ["Output"], "drop": "", "strip": true},
     "demonstrations": [{"image": "data:image/png;base64,…", "text": "a robin"}, …]}

A video takes the place of an image as `data:video/mp4;base64,…`.

The directory that `FewShotTask.save` writes is the other form: what one model computed, without the images.
"""

from __future__ import annotations

import base64
import io
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from flamboyance import checks
from flamboyance.chat import decoded_base64
from flamboyance.files import parse_json, read_text, write_json
from flamboyance.images import ImageError, frames_of, load_image
from flamboyance.images.loading import local_path
from flamboyance.templates import Template
from flamboyance.videos import find_video

SUFFIX = ".json"
VIDEO_KINDS = {
    "mov": "video/mp4",
    "matroska": "video/webm",
    "avi": "video/x-msvideo",
    "flv": "video/x-flv",
    "ogg": "video/ogg",
    "asf": "video/x-ms-wmv",
    "mpeg": "video/mpeg",
    "mpegts": "video/mp2t",
}
"""Media types, by FFmpeg's names of the containers. What reads a file looks at its content."""


@dataclass(frozen=True)
class TaskFile:
    """A few-shot task, without a model.

    Attributes:
        name: of the task.
        demonstrations: (image, fields of the template…); an image is the content of an image or video file.
    """

    name: str
    template: Template
    demonstrations: tuple[tuple[Any, ...], ...] = ()


def is_task_file(path: str | os.PathLike[str]) -> bool:
    """Whether a path is named as a task file: it ends in .json."""
    return os.path.splitext(path)[1].lower() == SUFFIX


def write_task(path: str | Path, task: TaskFile) -> None:
    """Writes a task file, whole or not at all.

    Raises:
        ValueError: a demonstration is a list of frames.
        ImageError: an image or video cannot be read.
    """
    write_json(path, as_json(task))


def as_json(task: TaskFile) -> dict[str, Any]:
    """The content of a task file."""
    shots = [
        {"image": data_url(image), **dict(zip(task.template.fields, fields, strict=True))}
        for image, *fields in task.demonstrations
    ]
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", task.name).strip("-._")[:64] or "task"  # as the server takes it
    return {"name": name, "template": template_as_json(task.template), "demonstrations": shots}


def template_as_json(template: Template) -> dict[str, Any]:
    """A template as an object: its pattern, stops, drop and strip."""
    given = {name: value for name, value in asdict(template).items() if name != "fields"}
    return given | {"stops": list(template.stops)}


def read_task(path: str | Path) -> TaskFile:
    """
    Raises:
        ValueError: the file is not a task file; names what is wrong.
        ImageError: an image or video in it cannot be decoded.
        OSError: the file cannot be read.
    """
    return parse_task(read_text(path), str(path))


def parse_task(text: str, place: str) -> TaskFile:
    """A task file's content; `place` names it in errors."""
    found = parse_json(text, place, lines=True)
    if not isinstance(found, dict) or not isinstance(found.get("demonstrations"), list):
        raise ValueError(
            f'{place} is not a task file: expected an object {{"template": …, "demonstrations": […]}}, as a few-shot '
            "task's save('task.json') writes it"
        )
    template = _template(found.get("template"), place)
    shots = [
        _demonstration(shot, template, f"{place}, demonstration {number}")
        for number, shot in enumerate(found["demonstrations"])
    ]
    name = found.get("name")
    return TaskFile(name if isinstance(name, str) else Path(place).stem, template, tuple(shots))


def _template(given: Any, place: str) -> Template:
    given = {"pattern": given} if isinstance(given, str) else given
    kinds = {"pattern": str, "stops": list, "drop": str, "strip": bool}
    if not isinstance(given, dict) or "pattern" not in given:
        raise ValueError(f"{place}: template is {checks.brief(given)}; expected an object with a pattern")
    for name, value in given.items():
        if name not in kinds or not isinstance(value, kinds[name]):
            raise ValueError(f"{place}: template.{name} is {checks.brief(value)}; expected {', '.join(kinds)}")
    try:
        return Template(**given)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


def _demonstration(shot: Any, template: Template, place: str) -> tuple[Any, ...]:
    expected = ", ".join(("image", *template.fields))
    if not isinstance(shot, dict) or set(shot) != {"image", *template.fields}:
        given = ", ".join(shot) if isinstance(shot, dict) else checks.brief(shot)
        raise ValueError(f"{place} has {given or 'nothing'}; expected {expected}")
    for name, value in shot.items():
        if not isinstance(value, str):
            raise ValueError(f"{place}: {name} is {checks.brief(value)}; expected a text")
    return from_data_url(shot["image"], place), *(shot[name] for name in template.fields)


# Images -------------------------------------------------------------------------------------------------------------


def data_url(image: Any) -> str:
    """An image, animation or video as `data:image/…;base64,…` or `data:video/…`: a file's own content, byte for byte,
    and other images as PNG.

    Raises:
        ImageError: it cannot be read.
        ValueError: a list of frames, or an animation that was opened with Pillow.
    """
    video = find_video(image)
    if video is not None:
        video.middle()  # refuses what cannot be decoded
        if isinstance(video.source, Image.Image):
            raise ValueError(
                "a demonstration is an animation opened with Pillow; a task file holds files: give its path"
            )
        stored = video.source if isinstance(video.source, bytes) else video.source.read_bytes()
        return _url(VIDEO_KINDS[video.container] if video.container else _kind(stored), stored)
    frames = frames_of(image)
    if len(frames) > 1 or frames[0] is not image:
        raise ValueError("a demonstration is a list of frames; a task file holds files: give the video's")
    picture = load_image(image)  # refuses what is not an image
    content = local_path(image).read_bytes() if isinstance(image, str | Path) else image
    if not isinstance(content, bytes):
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        content = buffer.getvalue()
    return _url(_kind(content), content)


def _kind(content: bytes) -> str:
    """The media type of an image."""
    with Image.open(io.BytesIO(content)) as opened:
        return Image.MIME.get(opened.format or "", "application/octet-stream")


def _url(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def from_data_url(url: str, place: str) -> bytes:
    """The content of the image or video file in a data URL.

    Raises:
        ImageError: it is no data URL of an image or video, or it cannot be decoded.
    """
    head = re.match(r"data:(image|video)/[\w.+-]+;base64,", url)
    if head is None:
        raise ImageError(f"{place}: the image is {checks.brief(url)}; expected data:image/…;base64,…")
    content = decoded_base64(url[head.end() :], place)
    try:
        video = find_video(content)
        if video is not None:
            video.middle()
        else:
            load_image(content)
    except ImageError as error:
        raise type(error)(f"{place}: {error}") from error
    return content
