"""Document -> TrainingExample: token ids, labels, the image that each token attends to, and the images' pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from flamboyance.data.batch import TrainingExample
from flamboyance.data.documents import Document, Rejected, Source
from flamboyance.data.formats.interleaved import Interleaved
from flamboyance.files import TEXT_LIMIT
from flamboyance.images import ImageError, ImageProcessor, ImageTooLargeError, load_image
from flamboyance.templates import END_OF_CHUNK_TOKEN, well_formed

if TYPE_CHECKING:
    from flamboyance.processing import FlamingoProcessor

IGNORED = -100


@dataclass(frozen=True)
class WorkerProcessor:
    """What a worker needs of a processor; small, and can be pickled.

    Attributes:
        tokenizer: of transformers, with the special tokens in it.
        images: of pictures.
        image_token_id, eoc_token_id, pad_token_id: of `<image>`, `<|endofchunk|>` and padding.
        eos_token_id: the end of a text; None where the tokenizer has none.
        prefix: what the tokenizer puts before a text (a BOS, or nothing).
        suffix: how many tokens it puts after one.
    """

    tokenizer: Any
    images: ImageProcessor
    image_token_id: int
    eoc_token_id: int
    pad_token_id: int
    eos_token_id: int | None
    prefix: tuple[int, ...]
    suffix: int

    @classmethod
    def of(cls, processor: FlamingoProcessor) -> WorkerProcessor:
        """Raises TypeError for an image processor that is not Flamboyance's, whose levels cannot be had."""
        images = processor.image_processor
        if not isinstance(images, ImageProcessor):
            raise TypeError(
                f"the processor's image processor is a {type(images).__name__}; training keeps 8-bit levels, "
                "so give FlamingoProcessor a flamboyance ImageProcessor of the same size, mean and std"
            )
        probe = processor.tokenizer(END_OF_CHUNK_TOKEN).input_ids
        at = probe.index(processor.eoc_token_id)
        return cls(
            tokenizer=processor.tokenizer,
            images=images,
            image_token_id=processor.image_token_id,
            eoc_token_id=processor.eoc_token_id,
            pad_token_id=processor.pad_token_id,
            eos_token_id=processor.tokenizer.eos_token_id,
            prefix=tuple(probe[:at]),
            suffix=len(probe) - 1 - at,
        )

    def tokens(self, text: str) -> np.ndarray:
        """Ids of a text and of the end of it, without `prefix`: (T,) int64. Raises `Rejected` for megabytes."""
        if len(text) > TEXT_LIMIT:
            raise Rejected("text too long")
        text = well_formed(text)
        ids = self.tokenizer(text, verbose=False).input_ids
        ids = ids[len(self.prefix) : len(ids) - self.suffix]
        return np.array(ids + [self.eos_token_id] * (self.eos_token_id is not None), dtype=np.int64)

    def levels(self, image: bytes, source: Source) -> Tensor:
        """An encoded image as uint8 (3, H, W)."""
        try:
            return self.images.levels(load_image(image, source.max_pixels, frame=0))
        except ImageTooLargeError as error:
            raise Rejected("image too large") from error
        except ImageError as error:
            raise Rejected("damaged image") from error


def make_example(
    document: Document, source: Source, processor: WorkerProcessor, rng: np.random.Generator
) -> TrainingExample:
    """A document as tensors: cut, checked, its images decoded.

    Raises:
        Rejected: an image cannot be read (which costs the document), or nothing is left to learn.
    """
    ids, first = _cut(processor.tokens(document.text), len(document.images), source, processor, rng)
    is_image = ids == processor.image_token_id
    count = int(is_image.sum())
    _check_count(count, source, rng)
    seen, learned = _looks_back(ids, document, processor)
    if isinstance(source, Interleaved) and rng.random() < source.next_image:
        ahead = _looks_ahead(is_image)
        # A document whose text all follows its last image would teach nothing: it looks back after all.
        seen, learned = ahead if ahead[1][1:].any() else (seen, learned)
    if not learned[1:].any():  # the first token is predicted by none
        raise Rejected("nothing to learn")
    images = []
    for image in document.images[first : first + count]:
        levels = processor.levels(image, source)
        images.append(levels.flip(-1) if rng.random() < source.flip else levels)
    return TrainingExample(
        input_ids=torch.from_numpy(ids),
        labels=torch.from_numpy(np.where(learned, ids, IGNORED)),
        images_seen=torch.from_numpy(seen),
        images=torch.stack(images),
    )


def _cut(
    body: np.ndarray, images: int, source: Source, processor: WorkerProcessor, rng: np.random.Generator
) -> tuple[np.ndarray, int]:
    """The ids that are taken, and which of the document's images is the first among them."""
    if int((body == processor.image_token_id).sum()) != images:
        raise Rejected("images and <image> differ in number")
    room, start = source.max_tokens - len(processor.prefix), 0
    if isinstance(source, Interleaved) and source.window == "random" and len(body) > room:
        start = int(rng.integers(len(body) - room + 1))
    first = int((body[:start] == processor.image_token_id).sum())
    body = body[start : start + room]
    places = np.flatnonzero(body == processor.image_token_id)
    if len(places) > source.max_images:
        body = body[: places[source.max_images]]
    return np.concatenate([np.array(processor.prefix, dtype=np.int64), body]), first


def _check_count(images: int, source: Source, rng: np.random.Generator) -> None:
    if not images:
        raise Rejected("no image left")
    if isinstance(source, Interleaved):
        if images < source.min_images:
            raise Rejected("too few images")
        if images == 1 and rng.random() < source.reject_single:
            raise Rejected("one image only")


def _looks_back(ids: np.ndarray, document: Document, processor: WorkerProcessor) -> tuple[np.ndarray, np.ndarray]:
    """The rule of sight: the image at or before a token. (image seen, is learned) of each token."""
    is_image, is_end = ids == processor.image_token_id, ids == processor.eoc_token_id
    seen = is_image.cumsum()
    if document.learned == "all":
        return seen, ~is_image
    ended = is_end.cumsum() - is_end  # ends of chunks before a token
    last = np.maximum.accumulate(np.where(is_image, np.arange(len(ids)), 0))
    return seen, ~is_image & (seen > 0) & (ended == ended[last])


def _looks_ahead(is_image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flamingo's other rule: the image at or after a token; what follows the last one is not learned."""
    seen = is_image.cumsum() - is_image + 1
    seen[seen > is_image.sum()] = 0
    return seen, ~is_image & (seen > 0)
