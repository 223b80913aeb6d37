"""A user's own data as tars that stream, and what conversions share.

Images are copied as they are. A tar is written whole or not at all, and one that is there is left alone, so a
conversion that was stopped goes on where it was.
"""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

from flamboyance.data.convert.shard_writer import write_shard
from flamboyance.data.documents import Record, Rejected
from flamboyance.data.formats import user_data
from flamboyance.data.shards import expand, records
from flamboyance.data.tar import Damage
from flamboyance.files import read_json, write_json

PER_SHARD = 1000

Fields = dict[str, bytes]
Item = TypeVar("Item")

_MAGIC = {b"\xff\xd8\xff": "jpg", b"\x89PNG": "png", b"RIFF": "webp", b"GIF8": "gif", b"BM": "bmp"}
_MAGIC |= {b"II*\0": "tiff", b"MM\0*": "tiff", b"\0\0\0\x0cjP  ": "jp2", b"qoif": "qoi"}
_MAGIC |= {b"P6": "ppm", b"P5": "pgm", b"P4": "pbm"}


def convert_folder(
    source: Path | str,
    output: Path | str,
    per_shard: int = PER_SHARD,
    outside: bool = False,
    advance: Callable[[int], None] = lambda _: None,
) -> Counter[str]:
    """A folder of images with their texts, a JSONL file, or anything else that `UserData` reads, as tars.

    An image with its text becomes `KEY.jpg` and `KEY.txt`, which `Pairs` reads too; what has other keys gets a
    `KEY.json` with them; a document of several images becomes `KEY.json` and `KEY.0.jpg`, `KEY.1.jpg`, …

    Args:
        per_shard: records of a tar.
        outside: as of `UserData`.
        advance: told of each record.

    Returns:
        What was found, by name; what could not be used, by reason.

    Raises:
        ValueError: there is nothing at the source, or the output was made with other settings.
        OSError: the output cannot be written.
    """
    output, counts = Path(output), Counter()
    shards = expand(str(source))
    same_settings(output, {"format": "own", "source": str(source), "per_shard": per_shard, "outside": outside})
    found = enumerate(record for shard in shards for record in records(shard, outside))
    for number, batch in enumerate(batches(found, per_shard)):
        path = output / f"{number:05d}.tar"
        if path.is_file():
            counts["tars already there"] += 1
            advance(sum(1 for _ in batch))
        else:
            counts["tars written"] += int(write_shard(path, _tar_records(batch, outside, counts, advance)) > 0)
    return counts


def _tar_records(
    batch: Iterator[tuple[int, Record | Damage]], outside: bool, counts: Counter[str], advance: Callable[[int], None]
) -> Iterator[tuple[str, Fields]]:
    for number, record in batch:
        advance(1)
        try:
            if isinstance(record, Damage):
                raise Rejected(record.reason)
            fields = _tar_fields(*user_data.read_record(record, outside))
        except Rejected as rejected:
            counts[f"left out: {rejected.reason}"] += 1
            continue
        counts["records"] += 1
        yield f"{number:09d}", fields


def _tar_fields(content: dict[str, Any], images: list[bytes]) -> Fields:
    rest = {key: value for key, value in content.items() if key not in ("image", "images", "file_name")}
    if not images:
        raise Rejected("no image")
    if not any(isinstance(value, str) and value.strip() for value in rest.values()):
        raise Rejected("no text")
    kinds = [_kind(image) for image in images]
    if len(images) > 1:
        names = [f"{place}.{kind}" for place, kind in enumerate(kinds)]
        return {"json": dumped(rest | {"images": names})} | dict(zip(names, images, strict=True))
    text, others = rest.get("text"), rest.keys() - {"text"}
    fields = {kinds[0]: images[0]}
    fields |= {"txt": text.encode("utf-8", "replace")} if isinstance(text, str) else {}
    return fields | ({"json": dumped(rest)} if others else {})


def _kind(image: bytes) -> str:
    """The extension that fits what an image file begins with."""
    if image[4:12] in (b"ftypavif", b"ftypavis"):
        return "avif"
    for magic, extension in _MAGIC.items():
        if image.startswith(magic):
            return extension
    raise Rejected("damaged image")


def dumped(content: dict[str, Any]) -> bytes:
    return json.dumps(content, ensure_ascii=False).encode("utf-8", "replace")


def batches(items: Iterator[Item], size: int) -> Iterator[Iterator[Item]]:
    """`size` at a time, without holding them. A batch is at its end before the next one begins."""
    for first in items:
        batch = chain([first], islice(items, size - 1))
        yield batch
        deque(batch, maxlen=0)


def same_settings(output: Path, asked: dict[str, Any]) -> None:
    """Other settings would put other documents into the tars that are missing."""
    output.mkdir(parents=True, exist_ok=True)
    file = output / "conversion.json"
    if file.is_file() and (found := read_json(file)) != asked:
        differ = [key for key in sorted(found | asked) if found.get(key) != asked.get(key)]
        told = ", ".join(f"{key}={found.get(key)} instead of {asked.get(key)}" for key in differ)
        raise ValueError(f"the tars in {output} were made with {told}; give those values, or another folder")
    write_json(file, asked, indent=None)
