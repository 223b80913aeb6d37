"""Features of a frozen tower, computed before: a file of fixed-size entries, and the digests of the images they are of.

    about.json     sizes, and everything that the features depend on
    digests.bin    16 bytes for each image, in the order in which they were computed
    features.bin   float16, `variants` × P × D for each image, in the same order

Both files only grow, features before digests. So whatever is at their ends after a crash is cut off, and a reader needs
no lock. `flamboyance.training.features` computes them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flamboyance.data.documents import Rejected, digest
from flamboyance.files import read_json, write_json

ABOUT, DIGESTS, FEATURES = "about.json", "digests.bin", "features.bin"
DIGEST = 16  # bytes


@dataclass(frozen=True)
class FeatureTable:
    """The features in a directory; can be pickled, and is mapped into memory where it is used.

    Attributes:
        directory: of the three files.
        variants: entries of each image.
        shape: (P, D) of an entry.
        count: number of images.
    """

    directory: Path
    variants: int
    shape: tuple[int, int]
    count: int

    @classmethod
    def open(cls, directory: Path) -> FeatureTable:
        """
        Raises:
            OSError, ValueError: it is not there, or not complete.
        """
        about: Any = read_json(directory / ABOUT)
        table = cls(directory, about["variants"], (about["patches"], about["width"]), 0)
        count = min((directory / DIGESTS).stat().st_size // DIGEST, (directory / FEATURES).stat().st_size // table.size)
        return cls(directory, table.variants, table.shape, count)

    @property
    def size(self) -> int:
        """Bytes of one image's features."""
        return 2 * self.variants * self.shape[0] * self.shape[1]

    @cached_property
    def places(self) -> dict[bytes, int]:
        """The number of each image, by its digest."""
        digests = (self.directory / DIGESTS).read_bytes()
        return {digests[DIGEST * i : DIGEST * (i + 1)]: i for i in range(self.count)}

    @cached_property
    def _mapped(self) -> np.ndarray:
        shape = (self.count, self.variants, *self.shape)
        return np.memmap(self.directory / FEATURES, np.float16, "r", shape=shape)

    def of(self, image: bytes, rng: np.random.Generator) -> Tensor:
        """The features (P, D), float16, of one variant of an encoded image.

        Raises:
            Rejected: the image is not among them.
        """
        place = self.places.get(bytes.fromhex(digest(image)))
        if place is None:
            raise Rejected("no features of an image")
        variant = int(rng.integers(self.variants)) if self.variants > 1 else 0
        return torch.from_numpy(np.array(self._mapped[place, variant]))


class FeatureWriter:
    """Appends to the features in a directory, which is made if missing. Not for two processes at a time."""

    def __init__(self, directory: Path, about: dict[str, Any]):
        directory.mkdir(parents=True, exist_ok=True)
        if not (directory / ABOUT).is_file():
            write_json(directory / ABOUT, about, indent=2)
        for name in (FEATURES, DIGESTS):
            (directory / name).touch()
        table = FeatureTable.open(directory)
        os.truncate(directory / FEATURES, table.count * table.size)
        os.truncate(directory / DIGESTS, table.count * DIGEST)
        self.size, self.count = table.size, table.count
        self.known = set(table.places)
        self._features = (directory / FEATURES).open("ab")
        self._digests = (directory / DIGESTS).open("ab")

    def append(self, digests: list[bytes], features: Tensor) -> None:
        """`features`: (images, variants, P, D)."""
        for file, content in (
            (self._features, features.to(torch.float16).contiguous().numpy().tobytes()),
            (self._digests, b"".join(digests)),
        ):
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        self.known.update(digests)
        self.count += len(digests)

    def close(self) -> None:
        self._features.close()
        self._digests.close()
