"""Stores the features of images on disk: one feature per distinct image and tower.

Each tower has a folder of parts, safetensors files that are never changed:

    features  (n, D) float16   a row per image, of length 1
    contents  (n, 16) uint8    a hash of the image file's bytes
    files     (m, 32) uint8    a hash of a file's path, size and times, followed by the hash of its content

An image is identified by its content, not its name: COCO, VQAv2 and OK-VQA share COCO's features, a data set may be
moved or copied, and a file under two names is one image. To hash a content, the file has to be read. That takes minutes
for a data set, while sizes and times take seconds; so `files` records what was read. A file whose path, size or times
are new is read again, and encoded only if its content is new too. One of the times is that of the last change of the
file's entry (ctime), which no program can set: it reveals another image with the same size and time of modification.

A part is moved into its place when it is complete, and its name is a hash of its content. So a build that is killed
loses only its last part, and several processes may build at once.
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

BYTES = 16  # the length of a hash


def digest(data: bytes) -> bytes:
    """A hash of 16 bytes, for contents and for files."""
    return hashlib.blake2b(data, digest_size=BYTES).digest()


def stamp(path: str, stat: os.stat_result) -> bytes:
    """A hash of a file's path, size and times. It changes when the file is written or replaced, also by one of the same
    size and time of modification."""
    return digest(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ctime_ns}".encode(errors="surrogateescape"))


class Features:
    """The features of a set of images, memory-mapped: a million of them take little memory.

    Args:
        parts: tensors (·, D); rows are numbered through all of them.
        rows: image -> its row; -1 for a broken image.
        files: the file of each part, for messages.

    Attributes:
        broken: image without a feature -> the reason.
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
        """The rows (n,) int64 of images, equal for equal contents; -1 for a broken image.

        Raises:
            ValueError: an image is not in the set.
        """
        try:
            return np.array([self._rows[str(image)] for image in images], dtype=np.int64)
        except KeyError as error:
            raise ValueError(f"{error.args[0]} has no feature: it was not among the images given to build") from None

    def take(self, rows: np.ndarray) -> Tensor:
        """The features (n, D) float16 of these rows.

        Raises:
            ValueError: a feature is not finite, so that it cannot be compared.
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
    """The content of a tower's folder when it was opened, and a way to add to the folder.

    Attributes:
        parts: tensors of features (·, D) float16, memory-mapped; rows are numbered through all of them.
        part_files: the file of each part.

    Raises:
        ValueError: a file in the folder is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        paths = sorted(folder.glob("*.safetensors"))
        read = [_read_part(file) for file in paths]
        self.parts = [features for features, _, _ in read if len(features)]
        self.part_files = [file for file, (features, _, _) in zip(paths, read, strict=True) if len(features)]
        for file, part in zip(self.part_files, self.parts, strict=True):
            if part.shape[1] != self.parts[0].shape[1]:
                raise _damaged(
                    file, f"its features have {part.shape[1]} numbers; the first part's {self.parts[0].shape[1]}"
                )
        contents = np.concatenate([_hashes(hashes) for _, hashes, _ in read] or [_NONE])[:, 0]
        files = np.concatenate([_hashes(hashes) for _, _, hashes in read] or [_NONE.repeat(2, axis=1)])
        self._contents = _Lookup(contents, np.arange(len(contents)))
        self._files = _Lookup(files[:, 0], self._contents.find(files[:, 1]))

    def find(self, paths: Sequence[str]) -> np.ndarray:
        """The rows (n,) int64 of files that have not changed since their contents were encoded; -1 for others."""
        stamps = []
        for path in paths:
            try:
                stamps.append(stamp(path, os.stat(path)))
            except OSError:
                stamps.append(b"")
        return self._files.find(np.array(stamps, dtype=_HASH))

    def has(self, content: bytes) -> bool:
        """Whether the image with this hash of its content is encoded."""
        return bool(self._contents.find(np.array([content], dtype=_HASH))[0] >= 0)

    def add(self, features: Sequence[Tensor], contents: Sequence[bytes], files: Sequence[bytes]) -> None:
        """Writes a part atomically.

        Args:
            features: batches (·, D) float16, n rows in all.
            contents: the hashes of the contents of the n rows.
            files: stamps, each followed by the hash of the content.
        """
        rows = torch.cat(list(features)) if features else torch.empty(0, 0, dtype=torch.float16)
        tensors = {"features": rows, "contents": _joined(contents, BYTES), "files": _joined(files, 2 * BYTES)}
        name = digest(b"".join([*contents, b"/", *files])).hex()
        with replacing(self.folder / f"{name}.safetensors") as part:
            save_file(tensors, part)


class _Lookup:
    """A table from hashes to numbers. Of a hash that is given twice, the first number counts."""

    def __init__(self, hashes: np.ndarray, numbers: np.ndarray) -> None:
        order = np.argsort(hashes, kind="stable")
        self._hashes, self._numbers = hashes[order], numbers[order]

    def find(self, hashes: np.ndarray) -> np.ndarray:
        """The numbers (n,) int64 of hashes; -1 for an unknown one."""
        if not len(self._hashes):
            return np.full(len(hashes), -1)
        place = np.searchsorted(self._hashes, hashes).clip(max=len(self._hashes) - 1)
        return np.where(self._hashes[place] == hashes, self._numbers[place], -1)


# numpy pads bytes of fixed length with zeros, so zeros at the end of a hash compare correctly inside arrays.
_HASH = np.dtype(f"S{BYTES}")
_NONE = np.empty((0, 1), dtype=_HASH)


def _hashes(hashes: Tensor) -> np.ndarray:
    """(n, 16 k) uint8 -> (n, k) hashes."""
    return hashes.numpy().view(_HASH).reshape(len(hashes), hashes.shape[1] // BYTES)


def _joined(hashes: Sequence[bytes], length: int) -> Tensor:
    return torch.tensor(np.frombuffer(b"".join(hashes), dtype=np.uint8).reshape(-1, length))


def _read_part(file: Path) -> tuple[Tensor, Tensor, Tensor]:
    try:
        with safe_open(file, "pt") as tensors:  # maps the file: only what is used is read
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
        raise _damaged(file, f"it holds {len(features)} features and {len(contents)} contents")
    return features, contents, files


def _damaged(file: Path, why: str) -> ValueError:
    return ValueError(f"{file} is damaged ({why}); delete it, and only its features are computed again")
