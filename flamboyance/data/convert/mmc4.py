"""MMC4 as it is published, zips of JSONL and a folder of images -> tars."""

from __future__ import annotations

import base64
import json
import multiprocessing
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from flamboyance.data.convert.shard_writer import PER_SHARD, Fields, batches, check_settings, json_bytes, write_shard
from flamboyance.data.formats.fields import FILE_LIMIT
from flamboyance.data.shards import matching
from flamboyance.data.tar import MEMBER_LIMIT
from flamboyance.files import JSONL_SUFFIXES
from flamboyance.images import ImageError, load_image

_DAMAGED_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError)


def find_zips(patterns: str | Sequence[str]) -> list[str]:
    """The files that patterns with {0..99} and * name. Raises ValueError where one names none."""
    return matching(patterns, "zips of MMC4's JSONL files, or JSONL files; * and {0..99} are read")


def convert_mmc4(
    zips: str | Sequence[str],
    images: Path | str,
    output: Path | str,
    per_shard: int = PER_SHARD,
    inside: bool = False,
    check: bool = True,
    workers: int = 1,
    advance: Callable[[int], None] = lambda _: None,
) -> Counter[str]:
    """Writes MMC4's zips, and the folder of its images, as tars that `MMC4` reads.

    Args:
        zips: paths, where {0..99} and * are patterns. Each is a zip of JSONL files (the published ones hold one), or a
            JSONL file, and becomes tars of the same name.
        images: the folder. An image is read from NUMBER/image_name, where NUMBER is in the zip's name or is its
            number among the zips; from ZIP'S_NAME/image_name; or from image_name.
        per_shard: documents of a zip per tar, counted before those without images are left out.
        inside: put images into the JSON in base64, as the original trainer reads them, not in files beside it.
        check: decode each image, and leave out damaged ones; in training they would cost the whole document.
        workers: processes.
        advance: called with 1 for each zip.

    Returns:
        Counts by name: of documents, images, tars and zips.

    Raises:
        ValueError: no zips, two zips of the same name, or the output was made with other settings.
        OSError: the image folder does not exist, or the output cannot be written.
    """
    names, images, output = find_zips(zips), Path(images), Path(output)
    if not images.is_dir():
        raise NotADirectoryError(f"no such folder of images: {images}")
    stems = [Path(name).name.split(".")[0] for name in names]
    if twice := [stem for stem, count in Counter(stems).items() if count > 1]:
        raise ValueError(f"two zips are named {twice[0]}, and so would be their tars; convert them to two folders")
    check_settings(output, {"format": "mmc4", "per_shard": per_shard, "inside": inside, "check": check})
    jobs = []
    for place, (name, stem) in enumerate(zip(names, stems, strict=True)):
        numbers = [part for part in stem.split("_") if part.isdecimal()]
        folders = [images / folder for folder in (*numbers[-1:], stem, ".", str(place))]
        jobs.append(partial(_zip_to_tars, Path(name), folders, output / stem, per_shard, inside, check))
    return _run(jobs, workers, advance)


def _zip_to_tars(
    file: Path, folders: list[Path], target: Path, per_shard: int, inside: bool, check: bool
) -> Counter[str]:
    counts: Counter[str] = Counter()
    folders = [folder for folder in folders if folder.is_dir()]
    try:
        with _lines(file) as lines:
            # Every line counts in the numbers of keys and tars, so that a later run gives the same.
            for number, numbered in enumerate(batches(enumerate(lines), per_shard)):
                path = target.with_name(f"{target.name}-{number:05d}.tar")
                if path.is_file():
                    counts["tars already there"] += 1
                    continue
                added: Counter[str] = Counter()
                pages = _pages(numbered, folders, target.name, inside, check, added)
                added["tars written"] = int(write_shard(path, pages) > 0)
                counts += added
    except FileNotFoundError:
        counts["zips missing"] += 1
    except _DamagedError:
        counts["zips damaged"] += 1
    return counts


class _DamagedError(Exception):
    pass


@contextmanager
def _lines(file: Path) -> Generator[Iterator[bytes]]:
    """The lines of a JSONL file, or of those inside a zip."""
    if file.suffix.lower() != ".zip":
        with file.open("rb") as plain:
            yield iter(plain.readline, b"")
        return
    try:
        archive = zipfile.ZipFile(file)
    except zipfile.BadZipFile as error:
        raise _DamagedError from error
    with archive:
        # Without folders, and the notes that macOS adds to a file under its name with "._" before it.
        members = [name for name in archive.namelist() if not name.rpartition("/")[2].startswith(".")]
        members = [name for name in members if not name.endswith("/")]
        members = [name for name in members if name.lower().endswith(JSONL_SUFFIXES)] or members
        if not members:
            raise _DamagedError
        yield _zipped_lines(archive, members)


def _zipped_lines(archive: zipfile.ZipFile, members: list[str]) -> Iterator[bytes]:
    try:
        for member in members:
            with archive.open(member) as lines:
                yield from iter(partial(lines.readline, MEMBER_LIMIT), b"")
    except _DAMAGED_ZIP as error:
        raise _DamagedError from error


def _pages(
    lines: Iterator[tuple[int, bytes]],
    folders: list[Path],
    prefix: str,
    inside: bool,
    check: bool,
    counts: Counter[str],
) -> Iterator[tuple[str, Fields]]:
    """The records of the pages with images."""
    for number, line in lines:
        if not line.strip():
            continue
        counts["documents"] += 1
        try:
            page = json.loads(line)
            image_info = [entry for entry in page["image_info"] if isinstance(entry, dict)]
        except (ValueError, RecursionError, TypeError, KeyError):
            counts["documents damaged"] += 1
            continue
        beside: Fields = {}
        images: dict[Any, bytes | None] = {}  # a page may name a file often
        size = 0
        for entry in image_info:
            if entry.get("image_base64") is not None:
                continue
            name = entry.get("image_name") if isinstance(entry.get("image_name"), str) else None
            if name not in images:
                images[name] = _page_image(name, folders, check, counts)
            image = images[name]
            size += len(image or b"")
            if size > MEMBER_LIMIT:
                break
            if image is not None and inside:
                entry["image_base64"] = base64.b64encode(image).decode()
            elif image is not None and beside.setdefault(entry["image_name"].lower(), image) != image:
                # Names of files in a tar are read in lower case: the page would show the other image in its place.
                entry["image_name"] = None
                counts["images left out: two names that differ in case alone"] += 1
        if size > MEMBER_LIMIT:
            counts["documents too large"] += 1
        elif beside or any(entry.get("image_base64") is not None for entry in image_info):
            yield f"{prefix}-{number:06d}", {"json": json_bytes(page)} | beside
        else:
            counts["documents without images"] += 1


def _page_image(name: Any, folders: list[Path], check: bool, counts: Counter[str]) -> bytes | None:
    plain = isinstance(name, str) and name and Path(name).name == name and name.lower() != "json"
    for folder in folders if plain else ():
        try:
            path = folder / name
            if not path.is_file() or path.stat().st_size > FILE_LIMIT:
                continue
            image = path.read_bytes()
            if check:
                load_image(image, frame=0)
        except ImageError:
            counts["images damaged"] += 1
            return None
        except (OSError, ValueError):
            continue
        counts["images"] += 1
        return image
    counts["images missing"] += 1
    return None


def _run(jobs: list[Callable[[], Counter[str]]], workers: int, advance: Callable[[int], None]) -> Counter[str]:
    counts: Counter[str] = Counter()
    if workers <= 1:
        for job in jobs:
            counts += job()
            advance(1)
        return counts
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for done in as_completed([pool.submit(job) for job in jobs]):
            counts += done.result()
            advance(1)
    return counts
