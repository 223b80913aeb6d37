"""The arguments of `FlamingoProcessor.__call__`: which images belong to which text, padding and truncation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any

import numpy as np
import torch

from flamboyance.templates import IMAGE_TOKEN


@dataclass(frozen=True)
class Options:
    """Padding, truncation and the type of the result, checked; see `FlamingoProcessor.__call__`.

    Enumerations, which transformers has for some of the values, become those values.
    """

    padding: Any = True
    truncation: Any = False
    max_length: int | None = None
    padding_side: Any = None
    truncation_side: Any = None
    return_tensors: Any = "pt"
    pad_to_multiple_of: int | None = None
    add_special_tokens: bool = True
    return_attention_mask: bool = True

    def __post_init__(self) -> None:
        for name in ("padding", "truncation", "return_tensors"):
            value = getattr(self, name)
            object.__setattr__(self, name, getattr(value, "value", value))
        for name, default in (("padding_side", "left"), ("truncation_side", self.padding_side or "left")):
            value = getattr(self, name)
            if value not in ("left", "right", None):
                raise ValueError(f"{name}={value!r}: expected 'left' (to generate) or 'right' (to train)")
            object.__setattr__(self, name, value or default)
        if self.padding not in (True, False, None, "longest", "max_length", "do_not_pad"):
            raise ValueError(f"padding={self.padding!r}: expected True, 'longest', 'max_length' or False")
        if self.padding == "max_length" and self.max_length is None:
            raise ValueError("padding='max_length' needs max_length, in tokens")
        if self.truncation not in (True, False, None, "longest_first", "only_first", "do_not_truncate"):
            raise ValueError(f"truncation={self.truncation!r}: expected True or False")
        if self.return_tensors not in ("pt", "np", None):
            raise ValueError(f"return_tensors={self.return_tensors!r}: expected 'pt', 'np', or None for lists")
        for name in ("max_length", "pad_to_multiple_of"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{name}={value!r}: expected a number of tokens, 1 or more")

    @property
    def truncates(self) -> bool:
        return self.truncation not in (False, None, "do_not_truncate")

    @property
    def pads(self) -> bool:
        return self.padding not in (False, "do_not_pad")

    def width(self, longest: int) -> int:
        """The number of tokens that rows are padded to."""
        width = max(longest, self.max_length or 0) if self.padding == "max_length" else longest
        step = (self.pads and self.pad_to_multiple_of) or 1
        return -(-width // step) * step

    def ragged(self, lengths: Sequence[int]) -> bool:
        """Whether rows are returned in lists of different lengths.

        Raises:
            ValueError: their lengths differ, but a tensor is to be returned.
        """
        if self.pads or len(set(lengths)) == 1:
            return False
        if self.return_tensors is not None:
            raise ValueError(
                f"padding=False, but the rows have from {min(lengths)} to {max(lengths)} tokens; a tensor needs rows "
                "of one length: give padding=True, or return_tensors=None for lists"
            )
        return True

    def converted(self, data: dict[str, Any]) -> dict[str, Any]:
        """Tensors as `return_tensors`. Lists have one entry per row, and a row's images are not padded."""
        if self.return_tensors == "pt":
            return data
        if self.return_tensors == "np":
            return {name: tensor.numpy() for name, tensor in data.items()}
        counts = data["media_counts"].tolist()
        if "frame_counts" in data:
            media = iter(data["pixel_values"].split(data["frame_counts"].tolist()))
            data = data | {"pixel_values": [[next(media) for _ in range(count)] for count in counts]}
        elif "pixel_values" in data:
            rows = zip(data["pixel_values"], counts, strict=True)
            data = data | {"pixel_values": [list(pixels[:count]) for pixels, count in rows]}
        return {name: value.tolist() if isinstance(value, torch.Tensor) else value for name, value in data.items()}


CALL = tuple(field.name for field in fields(Options))


def grouped(others: dict[str, Any]) -> dict[str, Any]:
    """The options in text_kwargs and common_kwargs, transformers' groups of arguments.

    Raises:
        TypeError, ValueError: an argument that a Flamingo's processor does not have.
    """
    options: dict[str, Any] = {}
    for group in ("common_kwargs", "text_kwargs"):
        options |= others.pop(group, None) or {}
    for group in ("videos_kwargs", "audio_kwargs"):
        others.pop(group, None)
    for media in ("videos", "audio", "audios"):
        if others.pop(media, None) is not None:
            raise ValueError(
                f"{media}: give videos in images, each as a file or a list of frames, with one {IMAGE_TOKEN} per video "
                "in the text; audio is not supported"
            )
    if others.pop("images_kwargs", None):
        raise TypeError("images_kwargs: preprocessing follows the vision tower; give another image_processor instead")
    if unknown := sorted((others.keys() | options.keys()) - set(CALL)):
        close = get_close_matches(unknown[0], ["text", "images", *CALL], 1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise TypeError(f"FlamingoProcessor takes no argument {unknown[0]!r}{hint}")
    return options


def texts(text: Any) -> list[str]:
    """`text` as a list; ValueError where it is neither a text nor a list of texts."""
    rows = [text] if isinstance(text, str) else text
    if not isinstance(rows, (list, tuple)) or not rows or not all(isinstance(row, str) for row in rows):
        raise ValueError(f"text is {text!r:.200}; expected a str, or a list of one or more str")
    return list(rows)


def _is_medium(value: Any) -> bool:
    """Whether this is an image or an array of frames, not a list."""
    return not isinstance(value, (list, tuple))


def rows(images: Any, counts: list[int], single: bool) -> list[list[Any]]:
    """`images` as one list of media per text.

    Args:
        counts: number of `<image>` per text.
        single: the text was one str, whose media may be a list of videos.
    """
    if images is None:
        return [[] for _ in counts]
    if _is_medium(images):
        images = list(images) if getattr(images, "ndim", 0) == 4 and len(images) == sum(counts) > 1 else [images]
    images = list(images)
    if single:
        row = images[0] if len(images) == 1 and not _is_medium(images[0]) and len(images[0]) == counts[0] != 1 else None
        return [list(images if row is None else row)]
    flat = [each for each in images if each is not None]
    if flat and all(map(_is_medium, flat)) and (len(images) != len(counts) or len(flat) == len(images)):
        if len(images) != sum(counts):
            raise ValueError(
                f"images is a flat list of {len(images)}, and the {len(counts)} text(s) have {_listed(counts)} "
                f"{IMAGE_TOKEN}; give one image per {IMAGE_TOKEN}, or a list of images per text"
            )
        ends = np.cumsum([0, *counts])
        return [images[start : start + count] for start, count in zip(ends, counts, strict=False)]
    if len(images) != len(counts):
        raise ValueError(
            f"there are {len(counts)} texts, but images holds {len(images)} rows; give a list of images per text"
        )
    return [[] if row is None else [row] if _is_medium(row) else list(row) for row in images]


def _listed(counts: list[int]) -> str:
    shown = ", ".join(map(str, counts[:8]))
    return shown + (", …" if len(counts) > 8 else "")
