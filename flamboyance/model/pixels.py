"""Pixel values of a batch: from the forms that callers give to the one that the network computes, and equal media once.

Shape letters: B prompts, N media of a prompt, M media of the batch, F frames, C H W pixels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def unpadded(pixel_values: Tensor, media_counts: Tensor | Sequence[int] | None) -> tuple[Tensor, list[int], list[int]]:
    """(B, N, F, C, H, W), padded, or (M, F, C, H, W), packed -> media one after another, the places of the real ones
    among them, and the number of each prompt.

    Raises:
        ValueError: another number of dimensions, or counts that do not fit it.
    """
    shape = tuple(pixel_values.shape)
    counts = media_counts.tolist() if isinstance(media_counts, Tensor) else media_counts
    counts = None if counts is None else [int(count) for count in counts]
    if pixel_values.ndim == 5 and counts is not None:
        if sum(counts) != len(pixel_values) or min(counts) < 0:
            raise ValueError(
                f"media_counts {counts} does not fit packed pixel_values of shape {shape}: expected counts that add up "
                f"to {len(pixel_values)}"
            )
        return pixel_values, list(range(len(pixel_values))), counts
    if pixel_values.ndim != 6:
        raise ValueError(
            f"pixel_values has shape {shape}; expected six dimensions: (rows, media per row, frames, channels, height, "
            "width). A single image is pixels[None, None, None]."
        )
    rows, most = shape[:2]
    counts = [most] * rows if counts is None else counts
    if len(counts) != rows or any(not 0 <= count <= most for count in counts):
        raise ValueError(
            f"media_counts {counts} does not fit pixel_values of shape {shape}: expected {rows} counts between 0 and "
            f"{most}"
        )
    return (
        pixel_values.flatten(0, 1),
        [row * most + i for row, count in enumerate(counts) for i in range(count)],
        counts,
    )


def checked_frames(
    pixel_values: Tensor, media_counts: Tensor | Sequence[int] | None, frame_counts: Tensor | Sequence[int]
) -> tuple[list[int], list[int]]:
    """The numbers of frames of each medium and of media of each prompt, for the frames of all media one after another:
    (frames, C, H, W).

    Raises:
        ValueError: another number of dimensions, or counts that do not fit it.
    """
    frames, counts = (
        [int(count) for count in (given.tolist() if isinstance(given, Tensor) else given or [])]
        for given in (frame_counts, media_counts)
    )
    shape = tuple(pixel_values.shape)
    if pixel_values.ndim != 4:
        raise ValueError(
            f"pixel_values has shape {shape}; with frame_counts, expected four dimensions: (frames of all media, "
            "channels, height, width)"
        )
    if sum(frames) != len(pixel_values) or min(frames, default=1) < 1:
        raise ValueError(
            f"frame_counts {frames} does not fit pixel_values of shape {shape}: expected counts of 1 or more that add "
            f"up to {len(pixel_values)}"
        )
    if sum(counts) != len(frames) or min(counts, default=0) < 0:
        raise ValueError(
            f"media_counts {counts} does not fit frame_counts of {len(frames)} media: expected counts that add up to "
            f"{len(frames)}"
        )
    return frames, counts


def first_of_equal(media: Tensor, places: Sequence[int]) -> tuple[list[int], list[int]]:
    """Those of `places` that hold the first of equal media, and for each of `places` its number among them. Reads the
    pixels once, and equal ones once more."""
    firsts: list[int] = []
    numbers: list[int] = []
    by_sum: dict[float, list[int]] = {}
    sums = media.flatten(1).sum(1, dtype=torch.float32).tolist()
    for place in places:
        alike = by_sum.setdefault(sums[place], [])
        number = next((n for n in alike if torch.equal(media[firsts[n]], media[place])), len(firsts))
        if number == len(firsts):
            firsts.append(place)
            alike.append(number)
        numbers.append(number)
    return firsts, numbers


def comparable(pixel_values: Tensor) -> bool:
    """Whether values can be compared, and it does not matter which of two equal media is computed."""
    return type(pixel_values) is Tensor and not (pixel_values.is_meta or pixel_values.requires_grad)
