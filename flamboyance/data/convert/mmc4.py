"""MMC4 as it is published, zips of JSONL and a folder of images, as tars that stream."""

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

from flamboyance.data.convert.folder import PER_SHARD, Fields, batches, dumped, same_settings
from flamboyance.data.convert.shard_writer import write_shard
from flamboyance.data.formats.fields import FILE_LIMIT
from flamboyance.data.shards import matching
from flamboyance.data.tar import MEMBER_LIMIT
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
    """MMC4's zips, and the folder of its images, as tars that `MMC4` reads.

    Args:
        zips: paths, with {0..99} and * understood; each a zip of one JSONL file, or a JSONL file. Each gives tars of
            its own name.
        images: the folder; an image is looked for as NUMBER/image_name, where NUMBER is that in the zip's name, or
            the zip's place among the zips; as ZIP'S_NAME/image_name; and as image_name.
        per_shard: documents of a zip that go to one tar; those without any image are left out of it.
        inside: images go into the JSON in base64, as the original trainer reads them, instead of beside it.
        check: decode each image, and leave out those that are damaged; one of them costs a document in training.
        workers: processes.
        advance: told of each zip.

    Returns:
        What was found, by name.

    Raises:
        ValueError: no zips, two of one name, or the output was made with other settings.
        OSError: the image folder does not exist, or the output cannot be written.
    """
    names, images, output = find_zips(zips), Path(images), Path(output)
    if not images.is_dir():
        raise NotADirectoryError(f"no such folder of images: {images}")
    stems = [Path(name).name.split(".")[0] for name in names]
    if twice := [stem for stem, count in Counter(stems).items() if count > 1]:
        raise ValueError(f"two zips have the name {twice[0]}, and their tars would too; convert them to two folders")
    same_settings(output, {"format": "mmc4", "per_shard": per_shard, "inside": inside, "check": check})
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
            # Every line counts for the numbers of keys and tars, so that a later run finds the same.
            for number, numbered in enumerate(batches(enumerate(lines), per_shard)):
                path = target.with_name(f"{target.name}-{number:05d}.tar")
                if path.is_file():
                    counts["tars already there"] += 1
                    continue
                found: Counter[str] = Counter()
                pages = _pages(numbered, folders, target.name, inside, check, found)
                found["tars written"] = int(write_shard(path, pages) > 0)
                counts += found
    except FileNotFoundError:
        counts["zips missing"] += 1
    except _DamagedError:
        counts["zips damaged"] += 1
    return counts


class _DamagedError(Exception):
    pass


@contextmanager
def _lines(file: Path) -> Generator[Iterator[bytes]]:
    """The lines of a JSONL file, or of the one inside a zip."""
    if file.suffix.lower() != ".zip":
        with file.open("rb") as plain:
            yield iter(plain.readline, b"")
        return
    try:
        archive = zipfile.ZipFile(file)
    except zipfile.BadZipFile as error:
        raise _DamagedError from error
    with archive:
        members = [name for name in archive.namelist() if not name.endswith("/")]
        members = [name for name in members if name.endswith(".jsonl")] or members
        if not members:
            raise _DamagedError
        yield _zipped_lines(archive, members[0])


def _zipped_lines(archive: zipfile.ZipFile, member: str) -> Iterator[bytes]:
    try:
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
    """The records of those pages that have images."""
    for number, line in lines:
        if not line.strip():
            continue
        counts["documents"] += 1
        try:
            page = json.loads(line)
            about = [one for one in page["image_info"] if isinstance(one, dict)]
        except (ValueError, RecursionError, TypeError, KeyError):
            counts["documents damaged"] += 1
            continue
        beside: Fields = {}
        read: dict[Any, bytes | None] = {}  # a page may name a file very often
        size = 0
        for one in about:
            if one.get("image_base64") is not None:
                continue  # it has come with its image
            name = one.get("image_name") if isinstance(one.get("image_name"), str) else None
            if name not in read:
                read[name] = _page_image(name, folders, check, counts)
            image = read[name]
            size += len(image or b"")
            if size > MEMBER_LIMIT:
                break
            if image is not None and inside:
                one["image_base64"] = base64.b64encode(image).decode()
            elif image is not None:
                beside[one["image_name"].lower()] = image
        if size > MEMBER_LIMIT:
            counts["documents too large"] += 1
        elif beside or any(one.get("image_base64") is not None for one in about):
            yield f"{prefix}-{number:06d}", {"json": dumped(page)} | beside
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
