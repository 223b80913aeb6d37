"""Computes features of images by a vision tower. Each distinct image is encoded once."""

from __future__ import annotations

import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flamboyance.checkpoints.preprocessing import image_processor_of
from flamboyance.evaluation.data_folders import user_cache
from flamboyance.evaluation.rices.feature_store import Features, Store, digest, stamp
from flamboyance.files import write_json
from flamboyance.images import ImageError, ImageProcessor
from flamboyance.model.vision import VisionTower
from flamboyance.videos import find_video

VERSION = 1  # increased when the results of `VisionTower.embed` change
ROWS, SECONDS = 8192, 60.0  # a part is written after so many rows or so much time; a kill loses at most one part
THREADS = 8


def default_cache() -> Path:
    """The default folder for features: `flamboyance/features` in the user's cache folder."""
    return user_cache() / "features"


@dataclass(frozen=True)
class Encoder:
    """A tower that embeds images, in float32: apart from rounding, the features are the same on every device.

    Attributes:
        tower: the tower, on the device where it computes.
        processor: an image -> the tower's input.
    """

    tower: VisionTower
    processor: ImageProcessor

    @classmethod
    def open(
        cls,
        name: str,
        pretrained: str | None = None,
        library: str | None = None,
        processor: ImageProcessor | None = None,
        device: str | torch.device = "cpu",
        **settings: Any,
    ) -> Encoder:
        """Loads a tower by its name, as `VisionTower.from_pretrained`, with CLIP's projection if its files hold it.

        For the tower of a model, pass the names in `model.vision.spec`. The tower in the model's memory has no
        projection, and may be rounded to 16 bits.

        Args:
            processor: default: the preprocessing in the tower's directory, or else that of its kind.
            settings: `vision.chosen_settings` of a model's tower.
        """
        tower = VisionTower.from_pretrained(name, pretrained, library, projection=True, **settings).float().to(device)
        return cls(tower, processor or image_processor_of(tower.spec))

    @cached_property
    def about(self) -> dict[str, Any]:
        """Everything that features depend on, and the tower's name for the reader."""
        weights = blake2b(digest_size=16)
        for name, tensor in sorted(self.tower.state_dict().items()):
            weights.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            weights.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return {
            "tower": self.tower.spec,
            "weights": weights.hexdigest(),
            "preprocessing": asdict(self.processor),
            "version": VERSION,
        }

    @property
    def folder(self) -> str:
        """The name of the tower's folder in a cache: words for the reader and a hash of what features depend on."""
        spec = self.about["tower"]
        words = [Path(str(spec[key])).name for key in ("name", "pretrained") if spec[key]]
        unnamed = {key: value for key, value in spec.items() if key not in ("name", "pretrained")}
        key = blake2b(json.dumps(self.about | {"tower": unnamed}, sort_keys=True).encode(), digest_size=8)
        return "-".join(["".join(c if c.isalnum() else "-" for c in word) for word in words] + [key.hexdigest()])

    def __call__(self, levels: Sequence[Tensor]) -> Tensor:
        """Images as `processor.levels` returns them -> features (n, D) float16 on the CPU, of length 1."""
        device = next(self.tower.parameters()).device
        pixels = self.processor.normalized(torch.stack(list(levels)).to(device))
        return self.tower.embed(pixels).half().cpu()


def build(
    images: Iterable[Path | str],
    encoder: Encoder,
    cache: Path,
    batch_size: int = 64,
    threads: int | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> Features:
    """The features of images. Those that the cache lacks are computed and added to it.

    An image that cannot be read or decoded gets no feature; the others do.

    Args:
        images: image files, possibly repeated. Of a video, the frame in the middle stands for it.
        cache: a folder for the features of all towers.
        batch_size: the number of images that are encoded at a time.
        threads: how many threads read and decode; default: the number of cores, at most 8.
        advance: called with the number of images done since the last call.

    Raises:
        ValueError: a file in the cache is damaged, or the tower computes features that are not finite.
        OSError: the cache cannot be written.
    """
    names = list(dict.fromkeys(str(image) for image in images))
    paths = [os.path.abspath(name) for name in names]
    store = Store(cache / encoder.folder)
    rows = store.find(paths)
    unread = list(dict.fromkeys(path for path, row in zip(paths, rows, strict=True) if row < 0))
    advance(len(names) - len(unread))
    broken: dict[str, str] = {}
    if unread:
        store.folder.mkdir(parents=True, exist_ok=True)
        write_json(store.folder / "tower.json", encoder.about)
        reads = _ahead(_Reader(encoder.processor, store), unread, threads, 2 * batch_size)
        broken = _encode(reads, _Writer(encoder, store, batch_size), advance)
        store = Store(store.folder)
        rows = store.find(paths)
    without = [(name, path) for name, path, row in zip(names, paths, rows, strict=True) if row < 0]
    reasons = {name: f"{name}: " + broken.get(path, "the file changed while it was read") for name, path in without}
    return Features(store.parts, dict(zip(names, rows.tolist(), strict=True)), reasons, store.part_files)


class _Read(NamedTuple):
    """A file that was read: its hashes, and its image if the content is new, or an error."""

    path: str
    stamp: bytes = b""
    content: bytes = b""
    levels: Tensor | None = None
    error: str | None = None


class _Reader:
    """Reads files in several threads; each distinct content is decoded once."""

    def __init__(self, processor: ImageProcessor, store: Store) -> None:
        self._processor, self._store = processor, store
        self._taken: set[bytes] = set()
        self._lock = threading.Lock()

    def __call__(self, path: str) -> _Read:
        try:
            stat = os.stat(path)  # before reading: a file that changes during it is read again next time
            data = Path(path).read_bytes()
        except OSError as error:
            return _Read(path, error=str(error.strerror))
        read = _Read(path, stamp(path, stat), digest(data))
        with self._lock:
            if read.content in self._taken or self._store.has(read.content):
                return read
            self._taken.add(read.content)
        try:
            video = find_video(data)
            return read._replace(levels=self._processor.levels(data if video is None else video.middle()))
        except ImageError as error:
            return read._replace(error=str(error))


class _Writer:
    """Encodes images in batches, and adds their features to the store in parts."""

    def __init__(self, encoder: Encoder, store: Store, batch_size: int) -> None:
        self._encoder, self._store, self._batch_size = encoder, store, batch_size
        self._levels: list[Tensor] = []
        self._paths: list[str] = []
        self._begin()

    def _begin(self) -> None:
        self._features: list[Tensor] = []
        self._contents: list[bytes] = []
        self._files: list[bytes] = []
        self._began = time.monotonic()

    def add(self, read: _Read) -> None:
        self._files.append(read.stamp + read.content)
        if read.levels is not None:
            self._levels.append(read.levels)
            self._paths.append(read.path)
            self._contents.append(read.content)
        if len(self._levels) == self._batch_size:
            self._encode()
        if len(self._files) >= ROWS or time.monotonic() - self._began > SECONDS:
            self.write()

    def write(self) -> None:
        """Encodes and writes what is not in the store yet."""
        self._encode()
        if self._files:
            self._store.add(self._features, self._contents, self._files)
        self._begin()

    def _encode(self) -> None:
        if self._levels:
            features = self._encoder(self._levels)
            for i in (~features.isfinite().all(1)).nonzero().flatten().tolist():
                raise ValueError(
                    f"{self._paths[i]}: the tower {self._encoder.tower.spec['name']} computes features that are not "
                    "finite; are its weights damaged?"
                )
            self._features.append(features)
            self._levels, self._paths = [], []


def _encode(reads: Iterable[_Read], writer: _Writer, advance: Callable[[int], None]) -> dict[str, str]:
    """Adds the images that are read to the store. Returns the broken images, with the reasons."""
    broken: dict[str, str] = {}
    damaged: dict[bytes, str] = {}
    copies: dict[str, bytes] = {}  # files with the content of another file, which may be damaged
    for read in reads:
        if read.error is None:
            writer.add(read)
            if read.levels is None:
                copies[read.path] = read.content
        else:
            broken[read.path] = read.error
            damaged[read.content] = read.error
        advance(1)
    writer.write()
    return broken | {path: damaged[content] for path, content in copies.items() if content in damaged}


def _ahead(read: Callable[[str], _Read], paths: Iterable[str], threads: int | None, number: int) -> Iterator[_Read]:
    """Reads files in order; up to `number` of them are read ahead, in threads."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with ThreadPoolExecutor(threads or min(cores, THREADS)) as pool:
        waiting: deque[Future[_Read]] = deque()
        for path in paths:
            waiting.append(pool.submit(read, path))
            if len(waiting) > number:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
