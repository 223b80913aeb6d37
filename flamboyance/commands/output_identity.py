"""The settings that rows of an output file depend on: the model, the demonstrations, the options."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from flamboyance.files import read_json

Settings = dict[str, Any]

NOTES = ("flamboyance",)
"""Entries for the reader, which are not compared."""

WHOLE = 8 << 20
SAMPLES, SAMPLE = 64, 64 << 10
FILES = (".json", ".safetensors", ".model", ".txt", ".bin", ".pt", ".jinja")


def describe_differences(before: Settings, now: Settings) -> list[str]:
    """The differences of two settings, in words: `beams 3 there, 1 now`."""
    names = [name for name in {**before, **now} if name not in NOTES]
    return [
        f"{name.replace('_', ' ')} {_shown(before.get(name))} there, {_shown(now.get(name))} now"
        for name in names
        if _content(before.get(name)) != _content(now.get(name))
    ]


def _content(value: Any) -> Any:
    """The value to compare: of a model or demonstrations the content, not the place."""
    return value["content"] if isinstance(value, dict) and value.get("content") else value


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        content = f" (content {value['content'][:8]})" if value.get("content") else ""
        return f"{value.get('name') or value}{content}"
    if isinstance(value, list):
        return ",".join(map(str, value))
    return "none" if value is None else str(value)


def model_settings(name: str) -> Settings:
    """A model's name, and a digest of its files if it is a directory on this machine."""
    from flamboyance import catalog

    entry = catalog.resolve(name)
    return {"name": entry.name, "content": None if entry.directory is None else directory_digest(entry.directory)}


def demonstration_settings(source: str | None, demonstrations: Sequence[tuple[Any, ...]]) -> Settings | None:
    """The source and number of demonstrations, and a digest of their images and texts; None without any."""
    if not demonstrations:
        return None
    digest = hashlib.sha256()
    for image, *texts in demonstrations:
        digest.update(hashlib.sha256(image if isinstance(image, bytes) else Path(image).read_bytes()).digest())
        for text in texts:
            digest.update(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest())
    name = f"{len(demonstrations)} of {source}"
    return {"name": name, "content": digest.hexdigest()[:16]}


def directory_digest(directory: Path) -> str:
    """A digest of the content of a model's directory, and of backbones in other directories of this machine.

    Of a large file only samples are read, from all parts of it: training changes every part of a tensor.
    """
    digest = hashlib.sha256()
    for backbone in _backbones(directory):
        digest.update(directory_digest(backbone).encode())
    for file in sorted(_files(directory)):
        size = file.stat().st_size
        digest.update(f"{file.relative_to(directory)}\0{size}\0".encode("utf-8", "surrogateescape"))
        with file.open("rb") as content:
            if size <= WHOLE:
                digest.update(content.read())
                continue
            for number in range(SAMPLES):
                content.seek(number * (size - SAMPLE) // (SAMPLES - 1))
                digest.update(content.read(SAMPLE))
    return digest.hexdigest()[:16]


def _backbones(directory: Path) -> list[Path]:
    """The backbones in a Flamingo's configuration that are other directories."""
    try:
        config = read_json(directory / "config.json")
        names = [config["vision"]["name"], config["language"]]
    except (OSError, ValueError, LookupError, TypeError):  # not a Flamingo, or refused when it is opened
        return []
    places = [(directory / name).resolve() for name in names if isinstance(name, str)]
    return [place for place in places if place.is_dir() and not place.is_relative_to(directory.resolve())]


def _files(directory: Path) -> Iterable[Path]:
    return (file for file in directory.rglob("*") if file.suffix in FILES and file.is_file())
