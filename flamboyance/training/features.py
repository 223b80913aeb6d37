"""Computes the frozen tower's features of all images of a run, once: `cache_features=true`.

Images are known by their content, so one that many documents repeat is computed once, as are those of another run with
the same tower, preprocessing and augmentation. A run that is killed continues where it was.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import Tensor

from flamboyance.data.documents import Rejected, Source, digest
from flamboyance.data.features import FeatureTable, FeatureWriter
from flamboyance.data.shards import expand, records
from flamboyance.data.tar import Damage
from flamboyance.files import read_json, write_json
from flamboyance.images import ImageError, ImageProcessor, load_image
from flamboyance.model.trainable import is_trained
from flamboyance.processes import World
from flamboyance.training.config import TrainingConfig
from flamboyance.videos import find_video

DONE = "complete.json"  # the shards whose images are all computed
VERSION = 1  # of the augmentation and of the files
TOGETHER = 32  # pictures that the tower is given at a time
PATIENCE = 24 * 3600.0  # seconds for which another run may be computing the same features
EVERY = 30.0  # seconds between lines about progress


def prepare_features(vision: Any, processor: Any, config: TrainingConfig, here: World) -> FeatureTable:
    """The features of all images of the run's sources; the first rank computes those that are missing.

    Raises:
        ValueError: a source mirrors its images, or has one that moves, for a model that is shown several frames; the
            tower is trained; or the features take more than `feature_cache_gb`.
    """
    if mirrored := [name for name, source in config.sources.items() if source.flip]:
        raise ValueError(
            f"cache_features=true with {mirrored[0]}.flip={config.sources[mirrored[0]].flip:g}: features cannot be "
            f"mirrored; give {mirrored[0]}.flip=0"
        )
    if is_trained(vision):
        raise ValueError("cache_features=true, but the vision tower is trained; leave the setting out")
    images, variants = processor.image_processor, config.feature_augmentations
    described = about(vision, images, variants)
    key = blake2b(json.dumps(described, sort_keys=True).encode(), digest_size=8).hexdigest()
    directory = Path(config.feature_cache or Path(config.output) / "features") / key
    with here.locked(directory, PATIENCE):
        if here.first:
            moving = getattr(processor, "video", None) is not None
            _complete(directory, described, vision, images, config, here.device, moving)
    here.wait()
    return FeatureTable.open(directory)


def about(vision: Any, images: ImageProcessor, variants: int) -> dict[str, Any]:
    """Everything that features depend on, and their sizes."""
    weights = blake2b(digest_size=16)
    for name, tensor in sorted(vision.state_dict().items()):
        weights.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        weights.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    spec = {key: value for key, value in vision.spec.items() if key not in ("name", "pretrained")}
    with torch.no_grad():
        blank = images.normalized(torch.zeros(1, 3, *images.image_size, dtype=torch.uint8))
        patches = vision(blank.to(next(vision.parameters()).device))
    return {
        "tower": spec,
        "weights": weights.hexdigest(),
        "preprocessing": asdict(images),
        "variants": variants,
        "patches": patches.shape[1],
        "width": patches.shape[2],
        "version": VERSION,
    }


def _complete(
    directory: Path,
    described: dict[str, Any],
    vision: Any,
    images: ImageProcessor,
    config: TrainingConfig,
    device: torch.device,
    moving: bool,
) -> None:
    """Appends the features that are missing. `moving`: whether the model is shown several frames of what moves."""
    writer = FeatureWriter(directory, described)
    most = int(config.feature_cache_gb * 1e9) // writer.size
    began, said, before = time.monotonic(), time.monotonic(), writer.count
    waiting: list[bytes] = []
    pictures: list[Tensor] = []

    def compute() -> None:
        with torch.no_grad():
            found = vision(images.normalized(torch.stack(pictures).to(device)))
        if not found.half().isfinite().all():
            raise ValueError(
                "cache_features=true, but the tower computes features that are not finite, or exceed float16's 65,504, "
                "in which they are stored; leave the setting out, or look at the tower's weights"
            )
        writer.append(waiting, found.cpu().unflatten(0, (len(waiting), -1)))
        waiting.clear()
        pictures.clear()

    done = _done(directory, writer.count)
    shards = [(source, shard) for source in config.sources.values() for shard in expand(source.shards)]
    try:
        for source, shard in shards:
            stamp = _stamp(shard, source, moving)
            if stamp in done:
                continue
            for image in _images(shard, source):
                name = bytes.fromhex(digest(image))
                try:
                    if moving and find_video(image) is not None:
                        raise ValueError(
                            f"cache_features=true, but {shard} has an image that moves ({len(image):,} bytes), and the "
                            "model is shown several of its frames. The cache keeps one; leave the setting out, or "
                            "remove the videos and animations"
                        )
                    if name in writer.known or name in waiting:
                        continue
                    found = list(variants(image, name, images, source, config.feature_augmentations))
                except ImageError:  # a document with it is rejected, and counted, when it is read
                    continue
                waiting.append(name)
                pictures += found
                if writer.count + len(waiting) > most:
                    raise ValueError(
                        f"the features of {most:,} images fill feature_cache_gb={config.feature_cache_gb:g}, and there "
                        "are more; give a larger one, fewer feature_augmentations, or leave cache_features out"
                    )
                if len(pictures) >= TOGETHER:
                    compute()
                if time.monotonic() - said > EVERY:
                    said = time.monotonic()
                    rate = (writer.count - before) / (said - began)
                    print(f"features of {writer.count:,} images computed, {rate:.1f} a second", flush=True)
            if waiting:
                compute()
            if stamp is not None:
                done.add(stamp)
                write_json(directory / DONE, {"images": writer.count, "shards": sorted(done)})
    finally:
        writer.close()


def _done(directory: Path, count: int) -> set[str]:
    """The stamps of shards whose images are all among the first `count`; such shards need not be read again."""
    if not (directory / DONE).is_file():
        return set()
    content: Any = read_json(directory / DONE)
    return set(content["shards"]) if content["images"] <= count else set()


def _stamp(shard: str, source: Source, moving: bool) -> str | None:
    """Identifies a tar's content, and how its documents are read; None for what may change unseen: folders, tables that
    name files, URLs."""
    file = Path(shard)
    if file.suffix != ".tar" or not file.is_file():
        return None
    about, how = file.stat(), replace(source, shards="", batch_size=1, weight=1.0)
    held_out = Path(getattr(source, "held_out", ""))  # its images are left out
    held = digest(held_out.read_bytes()) if held_out.is_file() else ""
    return digest(f"{file.resolve()} {about.st_size} {about.st_mtime_ns} {how!r}{' moving' * moving}{held}".encode())


def _images(shard: str, source: Source) -> Iterator[bytes]:
    """The encoded images of a shard's documents."""
    for record in records(shard, getattr(source, "outside", False)):
        if isinstance(record, Damage):
            continue
        try:
            document = source.document(record, np.random.default_rng(0))
        except Rejected:
            continue
        yield from document.images


def variants(image: bytes, name: bytes, images: ImageProcessor, source: Source, count: int) -> Iterator[Tensor]:
    """An encoded image as uint8 (3, H, W): itself, and `count` - 1 augmented ones, drawn from a seed that is its
    digest."""
    picture = load_image(image, source.max_pixels, frame=0)
    yield images.levels(picture)
    for number in range(1, count):
        rng = np.random.default_rng([number, *name])
        yield images.levels(augmented(picture, rng))


def augmented(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A picture turned by up to 10 degrees, cropped to 70 to 100 % of its area, with other brightness, contrast and
    colour by up to a quarter. Not mirrored: texts mention left and right."""
    border = tuple(int(value) for value in np.median(_edge(picture), axis=0))
    turned = picture.rotate(float(rng.uniform(-10, 10)), Image.Resampling.BILINEAR, fillcolor=border)
    width, height = turned.size
    side = float(np.sqrt(rng.uniform(0.7, 1.0)))
    across, down = max(1, round(width * side)), max(1, round(height * side))
    left, top = int(rng.integers(width - across + 1)), int(rng.integers(height - down + 1))
    cut = turned.crop((left, top, left + across, top + down))
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        cut = enhance(cut).enhance(float(rng.uniform(0.75, 1.25)))
    return cut


def _edge(picture: Image.Image) -> np.ndarray:
    """The pixels of a picture's border, (n, 3)."""
    levels = np.asarray(picture.convert("RGB"))
    return np.concatenate([levels[0], levels[-1], levels[:, 0], levels[:, -1]])
