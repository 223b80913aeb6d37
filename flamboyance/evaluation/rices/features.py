"""Features of images by any tower: each distinct image is encoded once, however many questions are asked about it."""

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

from flamboyance.evaluation.data_folders import user_cache
from flamboyance.evaluation.rices.feature_store import Features, Store, digest, stamp
from flamboyance.files import write_json
from flamboyance.images import ImageError, ImageProcessor
from flamboyance.model.vision import VisionTower
from flamboyance.processing import image_processor_of

VERSION = 1  # of what `VisionTower.embed` gives: counted up when that changes
ROWS, SECONDS = 8192, 60.0  # a part is written when it has so many rows, or after so long: what a kill can cost
THREADS = 8


def default_cache() -> Path:
    """Where features are kept if nothing else is said: `flamboyance/features` in the user's cache folder."""
    return user_cache() / "features"


@dataclass(frozen=True)
class Encoder:
    """A tower that embeds images, in float32: the same features on every device, but for rounding.

    Attributes:
        tower: on the device where it computes.
        processor: a picture -> the tower's input.
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
        **hub: Any,
    ) -> Encoder:
        """Loads a tower by its name, as `VisionTower.from_pretrained`, with CLIP's projection where its files hold it.

        For the tower of a model pass what `model.vision.spec` names. The one in the model's own memory has no
        projection, and may be rounded to 16 bits.

        Args:
            processor: default: what the tower's directory says, or else what its kind was trained with.
            hub: cache_dir, local_files_only.
        """
        tower = VisionTower.from_pretrained(name, pretrained, library, projection=True, **hub).float().to(device)
        return cls(tower, processor or image_processor_of(tower.spec))

    @cached_property
    def about(self) -> dict[str, Any]:
        """All that features depend on, and the tower's name for the reader."""
        weights = blake2b(digest_size=16)
        for name, tensor in sorted(self.tower.state_dict().items()):
            weights.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            weights.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        told = {"weights": weights.hexdigest(), "preprocessing": asdict(self.processor), "version": VERSION}
        return {"tower": self.tower.spec, **told}

    @property
    def folder(self) -> str:
        """The name of its folder in a cache: some words for people, and a hash of all that features depend on."""
        spec = self.about["tower"]
        words = [Path(str(spec[key])).name for key in ("name", "pretrained") if spec[key]]
        unnamed = {key: value for key, value in spec.items() if key not in ("name", "pretrained")}
        key = blake2b(json.dumps(self.about | {"tower": unnamed}, sort_keys=True).encode(), digest_size=8)
        return "-".join(["".join(c if c.isalnum() else "-" for c in word) for word in words] + [key.hexdigest()])

    def __call__(self, levels: Sequence[Tensor]) -> Tensor:
        """Pictures as `processor.levels` gives them -> features (n, D) float16 on the CPU, of length 1."""
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
    """The features of images: those in the cache, and all others, which are computed and added to it.

    An image that cannot be read or decoded has no feature, and the rest goes on.

    Args:
        images: their files; those that occur again are taken once.
        cache: a folder for the features of all towers.
        batch_size: images that the tower is given at once.
        threads: that read and decode; default: as many as there are cores, at most 8.
        advance: told of images as they are done.

    Raises:
        ValueError: a file in the cache is damaged, or the tower gives features that are not finite.
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
    reasons = {name: f"{name}: " + broken.get(path, "it was changed while it was read") for name, path in without}
    return Features(store.parts, dict(zip(names, rows.tolist(), strict=True)), reasons, store.part_files)


class _Read(NamedTuple):
    """A file's hashes; the picture where its content is new, or what is wrong with it."""

    path: str
    stamp: bytes = b""
    content: bytes = b""
    levels: Tensor | None = None
    error: str | None = None


class _Reader:
    """Reads files, from several threads at once; each content is decoded once."""

    def __init__(self, processor: ImageProcessor, store: Store) -> None:
        self._processor, self._store = processor, store
        self._taken: set[bytes] = set()
        self._lock = threading.Lock()

    def __call__(self, path: str) -> _Read:
        try:
            stat = os.stat(path)  # before reading: a file that changes meanwhile is read again next time
            data = Path(path).read_bytes()
        except OSError as error:
            return _Read(path, error=str(error.strerror))
        read = _Read(path, stamp(path, stat), digest(data))
        with self._lock:
            if read.content in self._taken or self._store.has(read.content):
                return read
            self._taken.add(read.content)
        try:
            return read._replace(levels=self._processor.levels(data))
        except ImageError as error:
            return read._replace(error=str(error))


class _Writer:
    """Encodes pictures in batches, and adds them to the store in parts."""

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
        """What is not in the store yet."""
        self._encode()
        if self._files:
            self._store.add(self._features, self._contents, self._files)
        self._begin()

    def _encode(self) -> None:
        if self._levels:
            features = self._encoder(self._levels)
            for i in (~features.isfinite().all(1)).nonzero().flatten().tolist():
                raise ValueError(
                    f"{self._paths[i]}: the tower {self._encoder.tower.spec['name']} gives features that are not "
                    "finite; are its weights damaged?"
                )
            self._features.append(features)
            self._levels, self._paths = [], []


def _encode(reads: Iterable[_Read], writer: _Writer, advance: Callable[[int], None]) -> dict[str, str]:
    """Adds what is read to the store. Returns the broken images, and why."""
    broken: dict[str, str] = {}
    damaged: dict[bytes, str] = {}
    twins: dict[str, bytes] = {}  # files whose content another one has, which may be damaged
    for read in reads:
        if read.error is None:
            writer.add(read)
            if read.levels is None:
                twins[read.path] = read.content
        else:
            broken[read.path] = read.error
            damaged[read.content] = read.error
        advance(1)
    writer.write()
    return broken | {path: damaged[content] for path, content in twins.items() if content in damaged}


def _ahead(read: Callable[[str], _Read], paths: Iterable[str], threads: int | None, number: int) -> Iterator[_Read]:
    """What is read of each path, in order; a bounded number of them is read ahead."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with ThreadPoolExecutor(threads or min(cores, THREADS)) as pool:
        waiting: deque[Future[_Read]] = deque()
        for path in paths:
            waiting.append(pool.submit(read, path))
            if len(waiting) > number:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
