"""The arguments of a processor's call: which text owns which image, and what padding and truncation mean."""

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
    """Padding, truncation and the kind of result, checked. As in `FlamingoProcessor.__call__`."""

    padding: Any = True
    truncation: Any = False
    max_length: int | None = None
    padding_side: str | None = None
    truncation_side: str | None = None
    return_tensors: Any = "pt"
    pad_to_multiple_of: int | None = None
    add_special_tokens: bool = True
    return_attention_mask: bool = True

    def __post_init__(self) -> None:
        for name in ("padding_side", "truncation_side"):
            if (given := getattr(self, name)) not in ("left", "right", None):
                raise ValueError(f"{name}={given!r}: expected 'left' (to generate) or 'right' (to train)")
        if _plain(self.padding) not in (True, False, None, "longest", "max_length", "do_not_pad"):
            raise ValueError(f"padding={self.padding!r}: expected True, 'longest', 'max_length' or False")
        if self.fill == "max_length" and self.max_length is None:
            raise ValueError("padding='max_length' needs max_length, in tokens")
        truncations = (True, False, None, "longest_first", "only_first", "do_not_truncate")
        if _plain(self.truncation) not in truncations:
            raise ValueError(f"truncation={self.truncation!r}: expected True or False")
        if _plain(self.return_tensors) not in ("pt", "np", None):
            raise ValueError(f"return_tensors={self.return_tensors!r}: expected 'pt', 'np', or None for lists")
        for name in ("max_length", "pad_to_multiple_of"):
            given = getattr(self, name)
            if given is not None and (isinstance(given, bool) or not isinstance(given, int) or given < 1):
                raise ValueError(f"{name}={given!r}: expected a number of tokens, 1 or more")

    @property
    def side(self) -> str:
        return self.padding_side or "left"

    @property
    def cut_side(self) -> str:
        return self.truncation_side or self.side

    @property
    def cuts(self) -> bool:
        return _plain(self.truncation) not in (False, None, "do_not_truncate")

    @property
    def fill(self) -> str | None:
        """ "longest", "max_length", or None: not padded."""
        given = _plain(self.padding)
        return {True: "longest", None: "longest", False: None, "do_not_pad": None}.get(given, given)

    def width(self, longest: int) -> int:
        """What rows are padded to, in tokens."""
        width = longest if self.fill != "max_length" else max(longest, self.max_length or 0)
        step = self.pad_to_multiple_of if self.fill and self.pad_to_multiple_of else 1
        return -(-width // step) * step

    def ragged(self, lengths: Sequence[int]) -> bool:
        """Whether rows stay as long as they are.

        Raises:
            ValueError: they are to become one tensor.
        """
        if self.fill or len(set(lengths)) == 1:
            return False
        if self.return_tensors is not None:
            raise ValueError(
                f"padding=False, but the rows have from {min(lengths)} to {max(lengths)} tokens; a tensor needs rows "
                "of one length: give padding=True, or return_tensors=None for lists"
            )
        return True

    def converted(self, data: dict[str, Any]) -> dict[str, Any]:
        """Tensors as what is asked for; lists hold one entry for each row, and a row's images without padding."""
        kind = _plain(self.return_tensors)
        if kind == "pt":
            return data
        if kind == "np":
            return {name: tensor.numpy() for name, tensor in data.items()}
        counts = data["media_counts"].tolist()
        if "pixel_values" in data:
            rows = zip(data["pixel_values"], counts, strict=True)
            data = data | {"pixel_values": [list(pixels[:count]) for pixels, count in rows]}
        return {name: value.tolist() if isinstance(value, torch.Tensor) else value for name, value in data.items()}


CALL = tuple(field.name for field in fields(Options))


def _plain(value: Any) -> Any:
    """An enumeration's value, as transformers has them for padding, truncation and kinds of tensors."""
    return getattr(value, "value", value)


def grouped(others: dict[str, Any]) -> dict[str, Any]:
    """The options among a call's other arguments: those that transformers groups as text_kwargs and common_kwargs.

    Raises:
        TypeError, ValueError: an argument that a Flamingo's processor does not have.
    """
    found: dict[str, Any] = {}
    for group in ("common_kwargs", "text_kwargs"):
        found |= others.pop(group, None) or {}
    for group in ("videos_kwargs", "audio_kwargs"):
        others.pop(group, None)
    for media in ("videos", "audio", "audios"):
        if others.pop(media, None) is not None:
            raise ValueError(
                f"{media}: a Flamingo takes images, and videos as lists of frames; give those in images, with "
                f"{IMAGE_TOKEN} for each in the text"
            )
    if others.pop("images_kwargs", None):
        raise TypeError("images_kwargs: images are prepared as the tower needs them; give another image_processor")
    if unknown := sorted((others.keys() | found.keys()) - set(CALL)):
        close = get_close_matches(unknown[0], ["text", "images", *CALL], 1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise TypeError(f"FlamingoProcessor takes no argument {unknown[0]!r}{hint}")
    return found


def texts(text: Any) -> list[str]:
    texts = [text] if isinstance(text, str) else text
    if not isinstance(texts, (list, tuple)) or not texts or not all(isinstance(row, str) for row in texts):
        raise ValueError(f"text must be a str or a list of str, one at least; given {text!r:.200}")
    return list(texts)


def _is_medium(value: Any) -> bool:
    """Whether this is one picture, or one array of frames, not a list."""
    return not isinstance(value, (list, tuple))


def rows(images: Any, counts: list[int], single: bool) -> list[list[Any]]:
    """`images` as a list of media for each of the texts, which have `counts` `<image>` tokens.

    Args:
        single: whether the text was one str, whose media may be a list of videos.
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
                f"{IMAGE_TOKEN}; give one image for each {IMAGE_TOKEN}, or a list of images for each text"
            )
        ends = np.cumsum([0, *counts])
        return [images[start : start + count] for start, count in zip(ends, counts, strict=False)]
    if len(images) != len(counts):
        raise ValueError(
            f"there are {len(counts)} texts, but images holds {len(images)} rows; give a list of images for each text"
        )
    return [[] if row is None else [row] if _is_medium(row) else list(row) for row in images]


def _listed(counts: list[int]) -> str:
    shown = ", ".join(map(str, counts[:8]))
    return shown + (", …" if len(counts) > 8 else "")
