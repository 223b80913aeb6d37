"""Keeps the encoded images of a run: demonstrations recur with many queries, and queries with every setting."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from flamboyance.evaluation.rices.feature_store import digest, stamp
from flamboyance.files import replacing
from flamboyance.flamingo import FlamingoForConditionalGeneration
from flamboyance.images import ImageError
from flamboyance.model.fingerprint import fingerprint
from flamboyance.model.kept_media import KeptMedia, apart
from flamboyance.model.media import Media
from flamboyance.processing import FlamingoProcessor, frames_and_counts

AT_ONCE = 32  # images encoded together
DECODERS = 4  # threads


class MediaCache:
    """Encodes image files, and keeps as many of the results as fit.

    An image is kept with its keys and values, so that it costs a later prompt nothing. The least recently used image is
    dropped first. On disk, if a folder is given, only latents are kept: keys and values are 10 to 50 times as large,
    and one matrix product per block makes them from the latents.

    Args:
        most_bytes: the most bytes that are kept in memory, apart from what the current batch of prompts needs.
        folder: where latents are kept between runs, if anywhere. The key is a hash of the model, its tower, the
            preprocessing and the content of the image's file.

    Attributes:
        encoded: how many images went through the tower.
    """

    def __init__(
        self,
        model: FlamingoForConditionalGeneration,
        processor: FlamingoProcessor,
        most_bytes: float = 2e9,
        folder: Path | None = None,
    ):
        self.model, self.processor = model, processor
        self.folder = folder
        self.encoded = 0
        self._kept: KeptMedia[Path] = KeptMedia(most_bytes)
        self._decoding: dict[Path, Future[Tensor]] = {}
        self._contents: dict[Path, tuple[bytes, bytes]] = {}  # file -> its stamp, and a hash of its content
        self._threads = ThreadPoolExecutor(DECODERS)
        self._model = f"{fingerprint(model)} {model.vision.spec} {processor.image_processor}" if folder else ""
        self._model += f" {processor.video}" if folder and processor.video else ""

    def ahead(self, images: Sequence[Path]) -> None:
        """Starts to read the images that are needed next, in other threads."""
        for image in dict.fromkeys(images):
            if image in self._kept or image in self._decoding or self._is_stored(image):
                continue
            self._decoding[image] = self._threads.submit(self._read, image)

    @property
    def _shape(self) -> torch.Size:
        return self.model.resampler.latents.shape

    @torch.no_grad()
    def media(self, prompts: Sequence[Sequence[Path]]) -> Media:
        """The encoded images of each prompt, in order.

        Raises:
            ImageError: an image cannot be read. The message names the file.
            ValueError: its latents are not finite. The message names the file.
        """
        places = {image: place for place, image in enumerate(dict.fromkeys(i for row in prompts for i in row))}
        self.ahead(list(places))
        missing = [image for image in places if image not in self._kept]
        fresh: dict[Path, Media] = {}
        for start in range(0, len(missing), AT_ONCE):
            some = missing[start : start + AT_ONCE]
            fresh |= dict(zip(some, self._encode(some), strict=True))
        values = [fresh[image] if image in fresh else self._kept[image] for image in places]
        for image, value in fresh.items():
            self._kept.keep(image, value)
        rows = tuple(tuple(places[image] for image in row) for row in prompts)
        return Media.join(values, rows)

    def _encode(self, images: list[Path]) -> list[Media]:
        """One Media per image, from the disk or through the tower."""
        latents = [self._stored(image) for image in images]
        new = [i for i, stored in enumerate(latents) if stored is None]
        if new:
            inputs = frames_and_counts([self._pixels(images[i]) for i in new])
            made = self.model.encode_media(inputs["pixel_values"], [1] * len(new), inputs["frame_counts"])
            made = made.select([image for (image,) in made.rows], tuple((i,) for i in range(len(new))))
            self.encoded += len(new)
            for i in (~made.latents.isfinite().flatten(1).all(1)).nonzero().flatten().tolist():
                raise ValueError(
                    f"{images[new[i]]}: the model computes latents that are not finite in {made.latents.dtype}. If its "
                    "weights are not damaged, numbers exceed float16's 65,504: use --dtype bfloat16 or float32"
                )
            if len(new) == len(images):
                for image, value in zip(images, made.latents, strict=True):
                    self._store(image, value)
                return apart(made)
            for i, value in zip(new, made.latents, strict=True):
                self._store(images[i], value)
                latents[i] = value
        return apart(self.model.media_of(torch.stack([one for one in latents if one is not None]), [1] * len(images)))

    def _pixels(self, image: Path) -> Tensor:
        future = self._decoding.pop(image, None)
        return self._read(image) if future is None else future.result()

    def _read(self, image: Path) -> Tensor:
        try:
            return self.processor.prepare(image).pixels
        except ImageError as error:
            raise ImageError(f"{image}: {error}") from error

    # Files -----------------------------------------------------------------------------------------------------

    def _file(self, image: Path) -> Path:
        assert self.folder is not None
        now = stamp(str(image), image.stat())
        if image not in self._contents or self._contents[image][0] != now:
            self._contents[image] = now, digest(image.read_bytes())
        name = digest(self._model.encode() + b"\0" + self._contents[image][1]).hex()
        return self.folder / name[:2] / f"{name}.safetensors"

    def _is_stored(self, image: Path) -> bool:
        # A missing file is reported when it is read.
        return self.folder is not None and image.exists() and self._file(image).exists()

    def _stored(self, image: Path) -> Tensor | None:
        if not self._is_stored(image):
            return None
        try:
            latents = load_file(self._file(image), device=str(self.model.device))["latents"]
        except (SafetensorError, OSError, KeyError):  # damaged: the image is encoded again
            return None
        if latents.shape != self._shape or not latents.isfinite().all():
            return None
        self._decoding.pop(image, None)  # another process may have stored it meanwhile
        return latents

    def _store(self, image: Path, latents: Tensor) -> None:
        if self.folder is not None:
            file = self._file(image)
            file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(file) as part:
                save_file({"latents": latents.contiguous()}, part)
