"""What the command line reads: images and folders of them, demonstrations, labels."""

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})

Demonstration = tuple[Path, str] | tuple[Path, str, str]
"""(image, text), or (image, question, answer)."""


def find_images(paths: Iterable[Path | str]) -> list[Path]:
    """The image files that are named, and those in the folders that are named, at any depth.

    Files keep the order given and may have any suffix; a folder's files are sorted, hidden ones left out.
    Each path appears once.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: a folder holds no image.
    """
    found: dict[Path, None] = {}
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if _is_image(p))
            if not inside:
                raise ValueError(f"the folder {path} holds no image ({' '.join(sorted(IMAGE_SUFFIXES))})")
            found.update(dict.fromkeys(inside))
        elif path.exists():
            found[path] = None
        else:
            raise FileNotFoundError(f"no such image or folder: {path}")
    return list(found)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()


def read_demonstrations(source: Path | str, shots: int | None = None) -> list[Demonstration]:
    """The demonstrations of a folder, a CSV file or a JSONL file; the first `shots` of them, or all.

    A folder holds images, each with its text beside it (`cat.jpg`, `cat.txt`). A CSV file has the columns
    `image` and `text`, or `image`, `question` and `answer`; a JSONL file has those as keys. Image paths are
    relative to the file. Other columns are left alone.

    Raises:
        FileNotFoundError: the source, or an image that it names, does not exist.
        ValueError: it is of another kind, is empty, lacks columns or values, or holds fewer than `shots`.
    """
    source = Path(source)
    if source.is_dir():
        found = _read_folder(source)
    elif not source.exists():
        raise FileNotFoundError(f"no such demonstrations: {source}")
    elif source.suffix.lower() == ".csv":
        found = _from_records(source, _read_csv(source))
    elif source.suffix.lower() in {".jsonl", ".ndjson"}:
        found = _from_records(source, _read_jsonl(source))
    else:
        raise ValueError(f"demonstrations come from a folder, a .csv or a .jsonl file; {source} is none of them")
    if not found:
        raise ValueError(f"{source} holds no demonstration")
    if shots is not None and shots > len(found):
        raise ValueError(f"--shots {shots} asks for more than the {len(found)} demonstrations of {source}")
    return found[:shots]


def _read_folder(folder: Path) -> list[Demonstration]:
    demonstrations: list[Demonstration] = []
    for image in find_images([folder]):
        text = image.with_suffix(".txt")
        if not text.is_file():
            raise FileNotFoundError(f"the demonstration {image} has no text beside it: write it to {text}")
        demonstrations.append((image, _filled(text.read_text(encoding="utf-8"), f"{text}")))
    return demonstrations


def _read_csv(source: Path) -> Iterator[tuple[str, dict]]:
    with source.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        _check_columns(source, reader.fieldnames or [])
        for record in reader:
            yield f"{source}, line {reader.line_num}", record


def _read_jsonl(source: Path) -> Iterator[tuple[str, dict]]:
    with source.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            place = f"{source}, line {number}"
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{place} is not JSON: {error}") from error
            if not isinstance(record, dict):
                raise ValueError(f"{place} holds {type(record).__name__}, not an object with keys")
            _check_columns(place, list(record))
            yield place, record


def _check_columns(place: Path | str, columns: Sequence[str]) -> None:
    if not columns:
        raise ValueError(f"{place} is empty; expected the columns image,text or image,question,answer")
    if not ({"image", "text"} <= set(columns) or {"image", "question", "answer"} <= set(columns)):
        given = ",".join(map(str, columns))
        raise ValueError(f"{place} has the columns {given}; expected image,text or image,question,answer")


def _from_records(source: Path, records: Iterable[tuple[str, dict]]) -> list[Demonstration]:
    demonstrations: list[Demonstration] = []
    for place, record in records:
        image = source.parent / _filled(record["image"], f"{place}: image")
        if not image.is_file():
            raise FileNotFoundError(f"{place} names the image {image}, which does not exist")
        if "question" in record and "answer" in record:
            question = _filled(record["question"], f"{place}: question")
            demonstrations.append((image, question, _filled(record["answer"], f"{place}: answer")))
        else:
            demonstrations.append((image, _filled(record["text"], f"{place}: text")))
    return demonstrations


def _filled(value: object, place: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{place} is {'empty' if value in (None, '') else repr(value)}; expected some text")
    return value.strip()


def read_labels(given: str) -> list[str]:
    """The labels of `cat,dog,bird`, or of a text file with one on each line.

    Raises:
        ValueError: there are fewer than two, or one appears twice.
    """
    path = Path(given)
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else given.split(",")
    labels = [line.strip() for line in lines if line.strip()]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise ValueError(f"--labels names {', '.join(twice)} more than once")
    if len(labels) < 2:
        raise ValueError(f"--labels {given!r} gives {len(labels)} label; expected two or more, as in cat,dog")
    return labels
