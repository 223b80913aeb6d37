"""OBELICS as it is published, Parquet files with URLs, and the images that img2dataset downloaded -> tars."""

from __future__ import annotations

import json
import os
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from flamboyance.data.convert.shard_writer import PER_SHARD, Fields, batches, check_settings, json_bytes, write_shard
from flamboyance.data.documents import Record, Rejected
from flamboyance.data.formats.fields import json_object
from flamboyance.data.formats.obelics import is_page
from flamboyance.data.shards import expand, matching, records
from flamboyance.data.tar import MEMBER_LIMIT
from flamboyance.images import ImageError, load_image
from flamboyance.images.suffixes import SUFFIXES


class Place(NamedTuple):
    """Where an image is: the number of its tar, and its bytes in it."""

    tar: int
    start: int
    size: int


def convert_obelics(
    pages: str | Sequence[str],
    images: str | Sequence[str],
    output: Path | str,
    per_shard: int = PER_SHARD,
    check: bool = True,
    advance: Callable[[int], None] = lambda _: None,
) -> Counter[str]:
    """Writes OBELICS' pages with their images as tars that `OBELICS` reads.

    Args:
        pages: the Parquet files; * and {0..9} are read. Each becomes tars of the same name.
        images: img2dataset's tars (its format "webdataset") of the URLs in them. An image is that whose `url`, in the
            JSON beside it, is the page's. All of their URLs are in memory, at about 150 bytes an image.
        per_shard: pages of a file per tar, counted before those without images are left out.
        check: decode each image, and leave out damaged ones; in training they would cost the whole page.
        advance: called with 1 for each page.

    Returns:
        Counts by name: of pages, images and tars.

    Raises:
        ValueError: no such files, two files of the same name, or the output was made with other settings.
        OSError: the output cannot be written.
    """
    files = expand(pages)
    tars = matching(images, "img2dataset's tars; * and {00000..00099} are read")
    output, counts = Path(output), Counter[str]()
    stems = [Path(file).name.split(".")[0] for file in files]
    if twice := [stem for stem, count in Counter(stems).items() if count > 1]:
        raise ValueError(f"two files are named {twice[0]}, and so would be their tars; convert them to two folders")
    check_settings(output, {"format": "obelics", "per_shard": per_shard, "check": check})
    found = _index(tars, counts)
    for file, stem in zip(files, stems, strict=True):
        # Every record counts in the numbers of keys and tars, so that a later run gives the same.
        for number, numbered in enumerate(batches(enumerate(records(file)), per_shard)):
            path = output / f"{stem}-{number:05d}.tar"
            if path.is_file():
                counts["tars already there"] += 1
                advance(sum(1 for _ in numbered))
                continue
            written = write_shard(path, _pages(numbered, stem, tars, found, check, counts, advance))
            counts["tars written"] += int(written > 0)
    return counts


def _index(tars: Sequence[str], counts: Counter[str]) -> dict[bytes, Place]:
    """Where the image of each URL is, by a hash of the URL."""
    found: dict[bytes, Place] = {}
    for number, path in enumerate(tars):
        stem, image, url = "", None, None
        try:
            with tarfile.open(path, "r:") as tar:
                for member in tar:
                    name, suffix = os.path.splitext(member.name)
                    if name != stem:
                        stem, image, url = name, None, None
                    if suffix.lower() in SUFFIXES and member.size <= MEMBER_LIMIT:
                        image = Place(number, member.offset_data, member.size)
                    elif suffix == ".json" and member.size <= MEMBER_LIMIT:
                        content = tar.extractfile(member)
                        url = _url(b"" if content is None else content.read())
                    if image is not None and url is not None:
                        found[_key(url)] = image
                        image, url = None, None
                        counts["images downloaded"] += 1
        except (tarfile.TarError, OSError):
            counts["tars of images damaged"] += 1
    return found


def _url(content: bytes) -> str | None:
    try:
        url = json.loads(content)["url"]
    except (ValueError, RecursionError, TypeError, KeyError):
        return None
    return url if isinstance(url, str) else None


def _key(url: str) -> bytes:
    return blake2b(url.encode("utf-8", "replace"), digest_size=12).digest()


def _pages(
    numbered: Iterator[tuple[int, Any]],
    stem: str,
    tars: Sequence[str],
    found: dict[bytes, Place],
    check: bool,
    counts: Counter[str],
    advance: Callable[[int], None],
) -> Iterator[tuple[str, Fields]]:
    """The records of the pages with images: the URLs of those that were downloaded are replaced by their names."""
    for number, record in numbered:
        advance(1)
        try:
            page = json_object(record) if isinstance(record, Record) else {}
        except Rejected:
            page = {}
        if not is_page(page):
            counts["pages damaged"] += 1
            continue
        counts["pages"] += 1
        beside: Fields = {}
        names: dict[str, str | None] = {}  # a page may show an image twice
        for url in page["images"]:
            if not isinstance(url, str) or url in names:
                continue
            content = record.fields.get(url.lower()) or _image(url, tars, found, check, counts)
            names[url] = None if content is None else f"{len(beside)}.jpg"
            if content is not None:
                beside[f"{len(beside)}.jpg"] = content
        if sum(map(len, beside.values())) > MEMBER_LIMIT:
            counts["pages too large"] += 1
        elif beside:
            page["images"] = [names.get(url) for url in page["images"]]
            yield f"{stem}-{number:06d}", {"json": json_bytes(page)} | beside
        else:
            counts["pages without images"] += 1


def _image(url: str, tars: Sequence[str], found: dict[bytes, Place], check: bool, counts: Counter[str]) -> bytes | None:
    place = found.get(_key(url))
    if place is None:
        counts["images missing"] += 1
        return None
    try:
        with open(tars[place.tar], "rb") as tar:
            tar.seek(place.start)
            content = tar.read(place.size)
        if len(content) < place.size:
            raise ImageError("the tar ends before the image")
        if check:
            load_image(content, frame=0)
    except (ImageError, OSError):
        counts["images damaged"] += 1
        return None
    counts["images"] += 1
    return content
