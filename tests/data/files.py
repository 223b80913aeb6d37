"""Small shards for the tests."""

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

Files = Iterable[tuple[str, bytes]]


def jpeg(seed: int, size: tuple[int, int] = (20, 24)) -> bytes:
    """A JPEG of noise, unlike those of other seeds."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def pair(number: int) -> list[tuple[str, bytes]]:
    """The files of a good pair."""
    return [(f"{number:05d}.jpg", jpeg(number)), (f"{number:05d}.txt", f"a red cat {number}".encode())]


def tar_bytes(files: Files, **options: int) -> bytes:
    """`options`: tarfile's, as `format`."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", **options) as tar:  # ty: ignore[no-matching-overload]
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return file.getvalue()


def pair_shards(folder: Path, sizes: Iterable[int]) -> str:
    """Tars of so many pairs each; the pattern that names them."""
    folder.mkdir(parents=True, exist_ok=True)
    number = 0
    for shard, size in enumerate(sizes):
        (folder / f"{shard:03d}.tar").write_bytes(tar_bytes([f for n in range(size) for f in pair(number + n)]))
        number += size
    return str(folder / "*.tar")


def line_shards(folder: Path, sizes: Iterable[int]) -> list[str]:
    """JSONL files of so many lines each, all lines different: records that cost nothing to read."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for shard, size in enumerate(sizes):
        names.append(str(folder / f"{shard:03d}.jsonl"))
        Path(names[-1]).write_text("".join(json.dumps([shard, line]) + "\n" for line in range(size)), encoding="utf-8")
    return names
