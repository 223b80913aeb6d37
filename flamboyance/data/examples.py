"""Document -> TrainingExample: token ids, labels, the image that each token attends to, and the images' pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from flamboyance.data.batch import Batch, TrainingExample, collate
from flamboyance.data.documents import Document, Rejected, Source
from flamboyance.data.features import FeatureTable
from flamboyance.data.formats.interleaved import Interleaved
from flamboyance.files import TEXT_LIMIT
from flamboyance.images import ImageError, ImageProcessor, ImageTooLargeError, load_image
from flamboyance.templates import well_formed
from flamboyance.videos import VideoSampling, find_video

if TYPE_CHECKING:
    from flamboyance.processing import FlamingoProcessor

IGNORED = -100


@dataclass(frozen=True)
class WorkerProcessor:
    """The part of a FlamingoProcessor that data workers need; it can be pickled.

    Attributes:
        tokenizer: of transformers, with the special tokens in it.
        images: the image processor.
        image_token_id, eoc_token_id, pad_token_id: of `<image>`, `<|endofchunk|>` and padding.
        eos_token_id: of the end of a text; None where the tokenizer has none.
        prefix: ids that the tokenizer puts before a text (a BOS, or none).
        suffix: number of ids that it puts after a text.
        features: the tower's features of all images, if they were computed before; images are then not decoded.
        frames: of a video, one a second: the number of the model's time embeddings; None for a model of still images.
    """

    tokenizer: Any
    images: ImageProcessor
    image_token_id: int
    eoc_token_id: int
    pad_token_id: int
    eos_token_id: int | None
    prefix: tuple[int, ...]
    suffix: int
    features: FeatureTable | None = None
    frames: int | None = None

    @classmethod
    def of(
        cls, processor: FlamingoProcessor, features: FeatureTable | None = None, frames: int | None = None
    ) -> WorkerProcessor:
        """Raises TypeError for an image processor that is not Flamboyance's: it gives no 8-bit levels."""
        images = processor.image_processor
        if not isinstance(images, ImageProcessor):
            raise TypeError(
                f"the image processor is a {type(images).__name__}; training needs 8-bit pixels: give "
                "FlamingoProcessor a flamboyance ImageProcessor of the same size, mean and std"
            )
        prefix, suffix = processor.added_around()
        return cls(
            tokenizer=processor.tokenizer,
            images=images,
            image_token_id=processor.image_token_id,
            eoc_token_id=processor.eoc_token_id,
            pad_token_id=processor.pad_token_id,
            eos_token_id=processor.tokenizer.eos_token_id,
            prefix=tuple(prefix),
            suffix=len(suffix),
            features=features,
            frames=frames,
        )

    def tokens(self, text: str) -> np.ndarray:
        """Ids of a text and its end, without `prefix`: (T,) int64. Raises `Rejected` for a text of megabytes."""
        return self._ended(self._encoded(text).input_ids)

    def answers(self, text: str, spans: Sequence[tuple[int, int]]) -> np.ndarray:
        """What is predicted at each of `tokens(text)`: the tokens of the spans, and `<|endofchunk|>` at the first token
        after each span; -100 elsewhere. (T,) int64.

        Raises:
            Rejected: a text of megabytes.
            ValueError: the tokenizer does not give the places of its tokens.
        """
        if not self.tokenizer.is_fast:
            raise ValueError(
                f"{type(self.tokenizer).__name__} does not give the places of its tokens, which conversations need; "
                "expected a fast tokenizer of transformers"
            )
        encoded = self._encoded(text, return_offsets_mapping=True)
        ids = self._ended(encoded.input_ids)
        targets = np.full(len(ids), IGNORED, dtype=np.int64)
        places = encoded.offset_mapping[len(self.prefix) :]
        spans, now = list(spans), 0
        for token, (start, end) in enumerate(places[: len(ids)]):
            if now == len(spans):
                break
            if start >= spans[now][1]:
                targets[token] = self.eoc_token_id
                now += 1
            elif end > spans[now][0]:
                targets[token] = ids[token]
        return targets

    def _encoded(self, text: str, **options: Any) -> Any:
        if len(text) > TEXT_LIMIT:
            raise Rejected("text too long")
        return self.tokenizer(well_formed(text), verbose=False, **options)

    def _ended(self, ids: list[int]) -> np.ndarray:
        ids = ids[len(self.prefix) : len(ids) - self.suffix]
        return np.array(ids + [self.eos_token_id] * (self.eos_token_id is not None), dtype=np.int64)

    def levels(self, image: bytes, source: Source, rng: np.random.Generator | None = None) -> Tensor:
        """An encoded image or video as uint8 (F, 3, H, W). Of an animation, a model of still images is shown the first
        frame, as in the published data."""
        return decoded(image, self.images, source, self.frames, rng)

    def example(self, document: Document, source: Source, rng: np.random.Generator) -> TrainingExample:
        """As `make_example`."""
        return make_example(document, source, self, rng)

    def collate(self, examples: list[TrainingExample]) -> Batch:
        return collate(examples, self.pad_token_id)


def decoded(
    image: bytes, images: ImageProcessor, source: Source, frames: int | None, rng: np.random.Generator | None
) -> Tensor:
    """An encoded image or video as uint8 (F, 3, H, W); see `WorkerProcessor.levels`."""
    try:
        video = find_video(image)
        if video is not None and frames is not None:
            shown = video.frames(VideoSampling(frames), source.max_pixels, rng)
            return torch.stack([images.levels(frame) for frame in shown])
        if video is not None and video.container:
            raise Rejected("video, for a model of images")
        return images.levels(load_image(image, source.max_pixels, frame=0))[None]
    except ImageTooLargeError as error:
        raise Rejected("image too large") from error
    except ImageError as error:
        raise Rejected("damaged image") from error


def make_example(
    document: Document, source: Source, processor: WorkerProcessor, rng: np.random.Generator
) -> TrainingExample:
    """A document as tensors, cut to the source's limits.

    Raises:
        Rejected: an image cannot be decoded, or no token is left to learn.
    """
    return example_of_tokens(document, processor.tokens(document.text), source, processor, rng)


def example_of_tokens(
    document: Document, tokens: np.ndarray, source: Source, processor: WorkerProcessor, rng: np.random.Generator
) -> TrainingExample:
    """`make_example` of a document whose text has these tokens."""
    targets = processor.answers(document.text, document.answers) if document.learned == "answers" else tokens
    (ids, targets), first = _cut(np.stack([tokens, targets]), len(document.images), source, processor, rng)
    is_image = ids == processor.image_token_id
    count = int(is_image.sum())
    _check_count(count, source, rng)
    seen, learned = _previous_image(ids, document, processor)
    if document.learned == "answers":
        learned = targets != IGNORED
    elif isinstance(source, Interleaved) and rng.random() < source.next_image:
        ahead = _next_image(is_image)
        # If all text follows the last image, nothing would be learned, so the previous images are kept.
        seen, learned = ahead if ahead[1][1:].any() else (seen, learned)
    if not learned[1:].any():  # no token predicts the first one
        raise Rejected("nothing to learn")
    chosen, images = document.images[first : first + count], []
    if processor.features is not None:
        images = [processor.features.of(image, rng) for image in chosen]
    else:
        for image in chosen:
            levels = processor.levels(image, source, rng)
            images.append(levels.flip(-1) if rng.random() < source.flip else levels)
    moves = processor.features is None and any(len(levels) > 1 for levels in images)
    return TrainingExample(
        input_ids=torch.from_numpy(ids),
        labels=torch.from_numpy(np.where(learned, targets, IGNORED)),
        images_seen=torch.from_numpy(seen),
        images=torch.stack(images) if processor.features is not None else torch.cat(images),
        frame_counts=tuple(map(len, images)) if moves else None,
    )


def _cut(
    body: np.ndarray, images: int, source: Source, processor: WorkerProcessor, rng: np.random.Generator
) -> tuple[np.ndarray, int]:
    """Ids and targets (2, T) within the source's limits, and the number of the first image among them."""
    if int((body[0] == processor.image_token_id).sum()) != images:
        raise Rejected("images and <image> differ in number")
    room, start = source.max_tokens - len(processor.prefix), 0
    if isinstance(source, Interleaved) and source.window == "random" and body.shape[1] > room:
        start = int(rng.integers(body.shape[1] - room + 1))
    first = int((body[0, :start] == processor.image_token_id).sum())
    body = body[:, start : start + room]
    positions = np.flatnonzero(body[0] == processor.image_token_id)
    if len(positions) > source.max_images:
        body = body[:, : positions[source.max_images]]
    before = np.array([processor.prefix, [IGNORED] * len(processor.prefix)], dtype=np.int64)
    return np.concatenate([before, body], axis=1), first


def _check_count(images: int, source: Source, rng: np.random.Generator) -> None:
    if not images:
        raise Rejected("no image left")
    if isinstance(source, Interleaved):
        if images < source.min_images:
            raise Rejected("too few images")
        if images == 1 and rng.random() < source.reject_single:
            raise Rejected("one image only")


def _previous_image(ids: np.ndarray, document: Document, processor: WorkerProcessor) -> tuple[np.ndarray, np.ndarray]:
    """Each token attends to the last image at or before it. Returns images_seen and a mask of the learned tokens."""
    is_image, is_end = ids == processor.image_token_id, ids == processor.eoc_token_id
    seen = is_image.cumsum()
    if document.learned == "all":
        return seen, ~is_image
    ended = is_end.cumsum() - is_end  # ends of chunks before a token
    last = np.maximum.accumulate(np.where(is_image, np.arange(len(ids)), 0))
    return seen, ~is_image & (seen > 0) & (ended == ended[last])


def _next_image(is_image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each token attends to the first image at or after it (Flamingo's p_next); text after the last is not learned."""
    seen = is_image.cumsum() - is_image + 1
    seen[seen > is_image.sum()] = 0
    return seen, ~is_image & (seen > 0)
