"""Features of images on the disk: what each distinct image was encoded to, by one tower.

A tower has a folder of parts, safetensors files that are never changed:

    features  (n, D) float16   a row an image, of length 1
    contents  (n, 16) uint8    a hash of the image file's bytes
    files     (m, 32) uint8    a hash of a file's path, size and times; and its content's

An image is known by its content, not its name: so COCO, VQAv2 and OK-VQA share COCO's features, a data set may be moved
or copied, and a file under two names is one image. To know a file by its content it has to be read, which takes minutes
for a data set where looking at sizes and times takes seconds; so `files` remembers what was read. A file whose path,
size or time is new is read again, and encoded only if its content is new too. One of the times is that of the last
change of the file's entry (ctime), which no program can set: another image with the old one's size and time of
modification is noticed by it.

A part is put in its place once it is complete, and takes its name from its content. So a build that was killed loses
nothing but its last part, and several processes may build at once.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from flamboyance.files import replacing

BYTES = 16  # of a hash


def digest(data: bytes) -> bytes:
    """A hash (16 bytes), for contents and for files."""
    return hashlib.blake2b(data, digest_size=BYTES).digest()


def stamp(path: str, stat: os.stat_result) -> bytes:
    """A hash that changes with the path and with whatever is written to the file, also if it is put in its place with
    the same size and time of modification."""
    return digest(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ctime_ns}".encode(errors="surrogateescape"))


class Features:
    """The features of some images; memory-mapped, so that a million of them take little memory.

    Args:
        files: where each of the parts is, for messages.

    Attributes:
        broken: images that have none, and why.
    """

    def __init__(
        self,
        parts: Sequence[Tensor],
        rows: Mapping[str, int],
        broken: Mapping[str, str],
        files: Sequence[Path] | None = None,
    ) -> None:
        self._parts, self._rows, self.broken, self._files = parts, rows, broken, files
        self._starts = np.cumsum([0, *(len(part) for part in parts)])

    def rows(self, images: Iterable[Path | str]) -> np.ndarray:
        """The numbers (n,) int64 by which images are taken, equal for equal contents; -1 for a broken one.

        Raises ValueError for an image that was not among those that these features were built of.
        """
        try:
            return np.array([self._rows[str(image)] for image in images], dtype=np.int64)
        except KeyError as error:
            raise ValueError(f"{error.args[0]} has no feature: it was not among the images that were built") from None

    def take(self, rows: np.ndarray) -> Tensor:
        """Features (n, D) float16 of these rows.

        Raises ValueError for a feature that is not finite: it would be as near to every image as to none.
        """
        found = torch.empty(len(rows), self._parts[0].shape[1] if self._parts else 0, dtype=torch.float16)
        part = np.searchsorted(self._starts, rows, side="right") - 1
        for i in np.unique(part):
            here = np.flatnonzero(part == i)
            some = self._parts[i][torch.from_numpy(rows[here] - self._starts[i])]
            if not some.isfinite().all():
                raise _damaged(
                    self._files[i] if self._files else Path("a part"), "it holds features that are not finite"
                )
            found[torch.from_numpy(here)] = some
        return found


class Store:
    """What is in a tower's folder now, and a way to add to it.

    Attributes:
        parts: of features (n, D) float16, memory-mapped; rows are counted through all of them.
        part_files: where each of them is.

    Raises:
        ValueError: a file in the folder is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        there = sorted(folder.glob("*.safetensors"))
        read = [_read_part(file) for file in there]
        self.parts = [features for features, _, _ in read if len(features)]
        self.part_files = [file for file, (features, _, _) in zip(there, read, strict=True) if len(features)]
        for file, part in zip(self.part_files, self.parts, strict=True):
            if part.shape[1] != self.parts[0].shape[1]:
                raise _damaged(
                    file, f"features of {part.shape[1]} numbers; the first part's have {self.parts[0].shape[1]}"
                )
        contents = np.concatenate([_hashes(hashes) for _, hashes, _ in read] or [_NONE])[:, 0]
        files = np.concatenate([_hashes(hashes) for _, _, hashes in read] or [_NONE.repeat(2, axis=1)])
        self._contents = _Index(contents, np.arange(len(contents)))
        self._files = _Index(files[:, 0], self._contents.find(files[:, 1]))

    def find(self, paths: Sequence[str]) -> np.ndarray:
        """Rows (n,) int64 of files that are as they were when their contents were encoded; -1 for others."""
        stamps = []
        for path in paths:
            try:
                stamps.append(stamp(path, os.stat(path)))
            except OSError:
                stamps.append(b"")
        return self._files.find(np.array(stamps, dtype=_HASH))

    def has(self, content: bytes) -> bool:
        """Whether a content is encoded."""
        return bool(self._contents.find(np.array([content], dtype=_HASH))[0] >= 0)

    def add(self, features: Sequence[Tensor], contents: Sequence[bytes], files: Sequence[bytes]) -> None:
        """Writes a part, complete or not at all, whenever the process dies.

        Args:
            features: batches (·, D) float16, n rows in all.
            contents: of the n rows.
            files: stamps, each with the content after it.
        """
        rows = torch.cat(list(features)) if features else torch.empty(0, 0, dtype=torch.float16)
        tensors = {"features": rows, "contents": _joined(contents, BYTES), "files": _joined(files, 2 * BYTES)}
        name = digest(b"".join([*contents, b"/", *files])).hex()
        with replacing(self.folder / f"{name}.safetensors") as part:
            save_file(tensors, part)


class _Index:
    """Hashes -> numbers; of those that are there twice, the first one's."""

    def __init__(self, hashes: np.ndarray, numbers: np.ndarray) -> None:
        order = np.argsort(hashes, kind="stable")
        self._hashes, self._numbers = hashes[order], numbers[order]

    def find(self, hashes: np.ndarray) -> np.ndarray:
        """(n,) int64; -1 where there is none."""
        if not len(self._hashes):
            return np.full(len(hashes), -1)
        place = np.searchsorted(self._hashes, hashes).clip(max=len(self._hashes) - 1)
        return np.where(self._hashes[place] == hashes, self._numbers[place], -1)


# Fixed-length bytes compare as they are padded, so zeros at a hash's end are safe as long as they stay in arrays.
_HASH = np.dtype(f"S{BYTES}")
_NONE = np.empty((0, 1), dtype=_HASH)


def _hashes(hashes: Tensor) -> np.ndarray:
    """(n, 16 k) uint8 -> (n, k) hashes."""
    return hashes.numpy().view(_HASH).reshape(len(hashes), hashes.shape[1] // BYTES)


def _joined(hashes: Sequence[bytes], length: int) -> Tensor:
    return torch.tensor(np.frombuffer(b"".join(hashes), dtype=np.uint8).reshape(-1, length))


def _read_part(file: Path) -> tuple[Tensor, Tensor, Tensor]:
    try:
        with safe_open(file, "pt") as tensors:  # maps the file: what is not looked at is not read
            features, contents, files = (tensors.get_tensor(key) for key in ("features", "contents", "files"))
    except SafetensorError as error:
        raise _damaged(file, str(error)) from None
    for tensor, kind, width in (
        (features, torch.float16, None),
        (contents, torch.uint8, BYTES),
        (files, torch.uint8, 2 * BYTES),
    ):
        if tensor.dtype != kind or tensor.ndim != 2 or (width is not None and len(tensor) and tensor.shape[1] != width):
            raise _damaged(file, f"it holds a tensor {list(tensor.shape)} {tensor.dtype}; expected features")
    if len(features) != len(contents):
        raise _damaged(file, f"{len(features)} features of {len(contents)} contents")
    return features, contents, files


def _damaged(file: Path, why: str) -> ValueError:
    return ValueError(f"{file} is damaged ({why}); delete it: what it held is computed again, and all else stays")
