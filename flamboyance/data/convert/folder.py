"""Users' own data -> tars.

Images are copied byte for byte. A tar is written whole or not at all, and an existing one is kept, so that the same
call resumes an interrupted conversion.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from flamboyance.data.convert.shard_writer import PER_SHARD, Fields, batches, check_settings, json_bytes, write_shard
from flamboyance.data.documents import Record, Rejected
from flamboyance.data.formats import user_data
from flamboyance.data.formats.conversations import is_dialogue, read_dialogue
from flamboyance.data.shards import expand, records
from flamboyance.data.tar import Damage
from flamboyance.images.containers import HEAD, container
from flamboyance.images.loading import DECODE_ERRORS, opened

_MAGIC = {b"\xff\xd8\xff": "jpg", b"\x89PNG": "png", b"RIFF": "webp", b"GIF8": "gif", b"BM": "bmp"}
_MAGIC |= {b"II*\0": "tiff", b"MM\0*": "tiff", b"\0\0\0\x0cjP  ": "jp2", b"qoif": "qoi"}
_MAGIC |= {b"P6": "ppm", b"P5": "pgm", b"P4": "pbm", b"P3": "ppm", b"P2": "pgm", b"P1": "pbm"}
_OTHERS = {"TGA": "tga", "PPM": "pnm", "JPEG2000": "jp2"}  # by Pillow's names of the formats
# By FFmpeg's names of the containers; what reads a file looks at its content.
_VIDEOS = {"mov": "mp4", "matroska": "webm", "avi": "avi", "flv": "flv", "ogg": "ogv", "asf": "wmv"}
_VIDEOS |= {"mpeg": "mpg", "mpegts": "mpg"}


def convert_folder(
    source: Path | str,
    output: Path | str,
    per_shard: int = PER_SHARD,
    outside: bool = False,
    advance: Callable[[int], None] = lambda _: None,
) -> Counter[str]:
    """Writes a folder of images with their texts, a JSONL file, or anything else that `UserData` reads, as tars.

    An image with its text becomes `KEY.jpg` and `KEY.txt`, which `Pairs` reads too. Other keys are kept in `KEY.json`.
    A document of several images becomes `KEY.json` and `KEY.0.jpg`, `KEY.1.jpg`, …

    Args:
        per_shard: records per tar.
        outside: as in `UserData`.
        advance: called with 1 for each record.

    Returns:
        Counts by name: of records, of tars, and of records that are left out, by reason.

    Raises:
        ValueError: there is no data at the source, or the output was made with other settings.
        OSError: the output cannot be written.
    """
    output, counts = Path(output), Counter()
    shards = expand(str(source))
    check_settings(output, {"format": "own", "source": str(source), "per_shard": per_shard, "outside": outside})
    numbered = enumerate(record for shard in shards for record in records(shard, outside))
    for number, batch in enumerate(batches(numbered, per_shard)):
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
    dialogue = is_dialogue(content)
    if dialogue:  # its parts may hold their images, which become files here
        rest = {key: value for key, value in rest.items() if key not in ("messages", "conversations", "texts")}
        rest["messages"] = read_dialogue(content).messages()
    elif not any(isinstance(value, str) and value.strip() for value in rest.values()):
        raise Rejected("no text")
    extensions = [_extension(image) for image in images]
    if dialogue or len(images) > 1:
        names = [f"{number}.{extension}" for number, extension in enumerate(extensions)]
        return {"json": json_bytes(rest | {"images": names})} | dict(zip(names, images, strict=True))
    text, others = rest.get("text"), rest.keys() - {"text"}
    fields = {extensions[0]: images[0]}
    fields |= {"txt": text.encode("utf-8", "replace")} if isinstance(text, str) else {}
    return fields | ({"json": json_bytes(rest)} if others else {})


def _extension(image: bytes) -> str:
    """The extension of an image or video file, by its first bytes."""
    if image[4:12] in (b"ftypavif", b"ftypavis"):
        return "avif"
    if (video := container(image[:HEAD])) is not None:
        return _VIDEOS[video]
    for magic, extension in _MAGIC.items():
        if image.startswith(magic):
            return extension
    try:  # TGA has no first bytes of its own
        with opened(io.BytesIO(image)) as found:
            return _OTHERS[found.format or ""]
    except (*DECODE_ERRORS, Image.DecompressionBombError) as error:  # also another format
        raise Rejected("damaged image") from error
