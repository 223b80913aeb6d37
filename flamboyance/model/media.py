"""Media as a value, and which token attends to which image.

A token attends to the image whose `<image>` token is the last at or before it, or to none (Flamingo, section 3.1.3).
That image is an index per token. So each query has L keys, however many images the prompt has, and a decode step needs
the last image only. (With only_attend_immediate_media=False it attends to all images up to there: `every` here. Each
query then has as many times L keys as its prompt has images.)

Outside of compiled functions, the layout of attention is computed on the CPU with as few blocks as possible. Inside
(`torch.compile`, `torch.export`), nothing may depend on the values of tensors: the shapes of the layout follow from the
numbers of tokens and images, and some of its blocks are unused.

Shape letters: B prompts, N images of a prompt, M images of the batch, R rows of text (B, or B·beams), T tokens,
L latents, D the tower's width, H heads, K width of a head.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Most tokens of one attention block. A longer run of tokens takes several blocks, each with a copy of its image's keys,
# so that one long text does not pad the blocks of short texts to its length.
MAX_BLOCK = 64


@dataclass(frozen=True)
class Spans:
    """`Media.rows` in a compiled function, where the numbers of images are a tensor: prompt b has the images `first[b]`
    to `first[b] + count[b] - 1`, and prompts share none.

    Attributes:
        first, count: (B,) long.
    """

    first: Tensor
    count: Tensor

    def __len__(self) -> int:
        return len(self.count)

    def listed(self) -> tuple[tuple[int, ...], ...]:
        pairs = zip(self.first.tolist(), self.count.tolist(), strict=True)
        return tuple(tuple(range(first, first + count)) for first, count in pairs)


@dataclass(frozen=True)
class Media:
    """The images of a batch of prompts, encoded once; reusable across calls, threads and prompts.

    Attributes:
        latents: (M, L, D), the resampler's output, one entry per distinct image and none for padding.
        keys_values: for each cross-attention block, a pair (M, H, L, K) of keys and values.
        rows: for each of the B prompts, the indices of its images, in order. Prompts may share images, and a prompt may
            show one twice. (Spans in a compiled function that was given the numbers of images as a tensor.)
    """

    latents: Tensor
    keys_values: tuple[tuple[Tensor, Tensor], ...]
    rows: Any

    def __post_init__(self):
        if isinstance(self.rows, Spans):
            if torch.compiler.is_compiling():
                return
            object.__setattr__(self, "rows", self.rows.listed())
        if not self.rows:
            raise ValueError("rows is empty; expected one row per prompt, () for a prompt without images: ((),)")
        top = max([-1, *[i for row in self.rows for i in row]])
        if top >= len(self.latents):
            raise ValueError(f"rows hold image {top}; expected indices of the {len(self.latents)} images")

    def __repr__(self) -> str:
        counts = self.counts if isinstance(self.rows, tuple) else "known at run time"
        shape, kind = tuple(self.latents.shape), str(self.latents.dtype).removeprefix("torch.")
        return (
            f"Media({len(self.rows)} prompts, images per prompt: {counts}, latents {shape} {kind} on "
            f"{self.latents.device}, keys and values of {len(self.keys_values)} blocks)"
        )

    @property
    def counts(self) -> list[int]:
        """Number of images of each prompt."""
        return [len(row) for row in self.rows]

    def select(self, images: Sequence[int] | Tensor, rows: Any) -> "Media":
        """Media of these images only, in this order, with new rows (indices into `images`)."""
        index = torch.as_tensor(images, dtype=torch.long)
        pairs = tuple((k[index.to(k.device)], v[index.to(v.device)]) for k, v in self.keys_values)
        return Media(self.latents[index.to(self.latents.device)], pairs, rows)

    @property
    def last(self) -> "Media":
        """Each prompt's last image, which is the only one that decoding needs. Computed once."""
        known = self.__dict__.get("_last")
        if known is None:
            known = self._last_images()
            if not torch.compiler.is_compiling():
                object.__setattr__(self, "_last", known)
        return known

    def _last_images(self) -> "Media":
        if isinstance(self.rows, Spans):
            seeing = self.rows.count > 0
            index = (self.rows.first + self.rows.count - 1).clamp(min=0)
            rows = Spans(torch.arange(len(index), device=index.device), seeing.long())
            return self.select(index, rows)
        have = [row for row in self.rows if row]
        if [row[-1] for row in have] == list(range(len(self.latents))) and all(len(row) < 2 for row in self.rows):
            return self
        position = iter(range(len(have)))
        rows = tuple((next(position),) if row else () for row in self.rows)
        return self.select([row[-1] for row in have], rows)

    @staticmethod
    def join(values: Sequence["Media"], rows: tuple[tuple[int, ...], ...] | None = None) -> "Media":
        """Several Media as one; `rows` are indices into all images (default: the prompts of one after another)."""
        if rows is None:
            starts = np.cumsum([0] + [len(v.latents) for v in values])
            rows = tuple(tuple(i + int(s) for i in row) for v, s in zip(values, starts, strict=False) for row in v.rows)
        pairs = tuple(
            (torch.cat([k for k, _ in block]), torch.cat([v for _, v in block]))
            for block in zip(*(value.keys_values for value in values), strict=True)
        )
        return Media(torch.cat([v.latents for v in values]), pairs, rows)

    def append(self, new: "Media") -> "Media":
        """The same prompts, each with further images, to continue a conversation."""
        if len(new.rows) != len(self.rows):
            raise ValueError(
                f"cannot append media of {len(new.rows)} prompts to media of {len(self.rows)}: expected one entry of "
                "media_counts per prompt, 0 for a prompt without a new image"
            )
        shift = len(self.latents)
        rows = tuple(a + tuple(i + shift for i in b) for a, b in zip(self.rows, new.rows, strict=True))
        return Media.join([self, new], rows)

    def repeat(self, times: int) -> "Media":
        """Every prompt `times` times, one after another. Images are shared, not copied."""
        return Media(self.latents, self.keys_values, tuple(row for row in self.rows for _ in range(times)))


@dataclass(frozen=True)
class ImageAttentionLayout:
    """Which tokens attend to which image: blocks of at most MAX_BLOCK tokens that attend to the same one.

    Attributes:
        image_of_block: (blocks,) index into the M images; None if block i attends to image i. Or (blocks, N), where
            tokens attend to several images: all of them, -1 for padding.
        token_of_query: (blocks, width) flat token index (row·T + position) of each query; padding repeats a token.
            None when decoding, where tokens are in blocks already.
        query_of_token: (R·T,) the index of each token's query among blocks·width; blocks·width for a token without an
            image.
        visible: (blocks,) when decoding, False for prompts without an image.
    """

    image_of_block: Tensor | None
    token_of_query: Tensor | None = None
    query_of_token: Tensor | None = None
    visible: Tensor | None = None

    def to(self, device: torch.device) -> "ImageAttentionLayout":
        tensors = (self.image_of_block, self.token_of_query, self.query_of_token, self.visible)
        return ImageAttentionLayout(*(None if t is None else t.to(device, non_blocking=True) for t in tensors))

    def of_blocks(self, each: Tensor) -> Tensor:
        """Keys or values of the images (M, H, L, K) -> those of the blocks (blocks, H, L or N·L, K)."""
        if self.image_of_block is None:
            return each
        if self.image_of_block.ndim == 1:
            return each[self.image_of_block]
        return each[self.image_of_block.clamp(min=0)].transpose(1, 2).flatten(2, 3)

    def mask(self, latents: int) -> Tensor | None:
        """(blocks, 1, 1, N·L), False for the keys of padding; None where there is none. A block without an image has
        its first key, because no softmax is over nothing; the result is not used."""
        if self.image_of_block is None or self.image_of_block.ndim == 1:
            return None
        real = self.image_of_block >= 0
        real[:, 0] = True
        return real.repeat_interleave(latents, dim=1)[:, None, None]

    def to_blocks(self, q: Tensor) -> Tensor:
        """(R, T, H, K) -> (blocks, width, H, K)."""
        if self.token_of_query is not None:
            return q.flatten(0, 1)[self.token_of_query]
        assert self.visible is not None  # decoding: a block for each prompt
        return q.reshape(len(self.visible), -1, *q.shape[2:])

    def from_blocks(self, out: Tensor, rows: int, tokens: int) -> Tensor:
        """(blocks, width, H, K) -> (R, T, H·K), zero for tokens without an image."""
        if self.query_of_token is None:
            assert self.visible is not None
            out = out * self.visible[:, None, None, None]
            return out.reshape(rows, tokens, -1)
        out = out.flatten(2).flatten(0, 1)
        out = torch.cat([out, out.new_zeros(1, out.shape[-1])])
        return out[self.query_of_token].view(rows, tokens, -1)


def rows_of(counts: Sequence[int], numbers: Sequence[int] | None = None) -> tuple[tuple[int, ...], ...]:
    """`Media.rows` of prompts with `counts` images each; `numbers` of the images of one prompt after another."""
    ends = [0, *accumulate(map(int, counts))]
    numbers = range(ends[-1]) if numbers is None else numbers
    return tuple(tuple(numbers[start:end]) for start, end in pairwise(ends))


def count_seen(input_ids: Tensor, image_token_id: int, media: Media | None, past: int = 0) -> Tensor:
    """The number of `<image>` tokens up to each token: (R, T) long, on the CPU; in a compiled function, on the device
    of the ids.

    The last `<image>` tokens belong to the last images, so that a conversation is continued with all its media and only
    its new text.

    Args:
        past: number of earlier tokens, which may include images.

    Raises:
        ValueError: a row has another number of `<image>` tokens than of images.
        RuntimeError: the same, in a compiled function.
    """
    seen = (input_ids == image_token_id).cumsum(1)
    if torch.compiler.is_compiling():
        given = torch.zeros_like(seen[:, -1]) if media is None else _counts(media, input_ids)
        found = seen[:, -1]
        fits = found <= given if past else found == given
        torch._assert_async(fits.all(), "the number of <image> tokens of a row is not its number of images")
        return seen + (given - found)[:, None]
    seen = seen.cpu()
    per_prompt = len(seen) // len(media.rows) if media is not None else 1
    missing = []
    for row, found in enumerate(seen[:, -1].tolist()):
        given = len(media.rows[row // per_prompt]) if media is not None else 0
        if found > given or (found < given and not past):
            raise ValueError(
                f"row {row} has {found} <image> token(s) in its text and {given} image(s); expected one image or video "
                "for each <image>"
            )
        missing.append(given - found)
    return seen + torch.tensor(missing)[:, None]


def _counts(media: Media, like: Tensor) -> Tensor:
    """(R,) the number of images of each row of text `like` (R, T)."""
    rows = media.rows
    counts = rows.count if isinstance(rows, Spans) else torch.tensor([len(row) for row in rows], device=like.device)
    return counts.to(like.device).repeat_interleave(len(like) // len(rows))


def decoding_layout(media: Media, device: torch.device, every: bool = False) -> ImageAttentionLayout:
    """The layout of one new token per row: the rows of a prompt (beams) are queries of its last image, in `media.last`,
    or of every image, in `media`. Nothing is copied from the device, so that a decode step does not wait for it."""
    if isinstance(media.rows, Spans):
        shown = _spanned(media, media.rows.first, media.rows.count) if every else media.last.rows.first
        return ImageAttentionLayout(shown, visible=media.rows.count > 0)
    # not `bool(row)`, which Dynamo of torch 2.9 cannot trace
    seeing = torch.tensor([len(row) > 0 for row in media.rows], device=device)
    if every:
        return ImageAttentionLayout(torch.tensor(_padded(media.rows), device=device), visible=seeing)
    if all(media.rows):
        return ImageAttentionLayout(None, visible=seeing)
    return ImageAttentionLayout(
        torch.tensor([row[0] if row else 0 for row in media.last.rows], device=device), visible=seeing
    )


def _padded(rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """(B, N) the images of each prompt, -1 for padding; N is 1 or more."""
    most = max(1, *map(len, rows))
    return [[*row, *[-1] * (most - len(row))] for row in rows]


def _spanned(media: Media, first: Tensor, count: Tensor) -> Tensor:
    """(blocks, M) `count` images from `first` on, of each block, in a compiled function; -1 for padding."""
    number = torch.arange(len(media.latents), device=first.device)
    return (first[:, None] + number).where(number < count[:, None], -1)


def prefill_layout(seen: Tensor, media: Media, every: bool = False) -> ImageAttentionLayout | None:
    """The layout of several tokens per row, with as few blocks as possible.

    Args:
        seen: (R, T) the number of `<image>` tokens of the row up to each token, on the CPU.
        media: of B prompts; row r belongs to prompt r // (R / B).
        every: whether a token attends to all images up to it, not to the last one alone.

    Returns:
        None if no token has an image.
    """
    met = seen.cpu().numpy()
    per_prompt, most = len(met) // len(media.rows), max(media.counts)
    table = np.concatenate([np.full((len(media.rows), 1), -1), np.array(_padded(media.rows), int)], axis=1)
    prompt = np.arange(len(met))[:, None] // per_prompt
    if every:  # numbers of what is seen: the first `met` images of a prompt
        image = np.where(met > 0, prompt * (most + 1) + met, -1)
    else:
        image = table[prompt, met]

    # Runs of neighbouring tokens that attend to the same image; a run may continue in the next row.
    image = image.ravel()
    starts = np.flatnonzero(np.diff(image, prepend=-2))
    lengths = np.diff(np.append(starts, image.size))
    images = image[starts]
    starts, lengths, images = (a[images >= 0] for a in (starts, lengths, images))
    if not len(starts):
        return None

    width = min(int(lengths.max()), MAX_BLOCK)
    pieces = -(-lengths // width)
    piece = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    begin = np.repeat(starts, pieces) + piece * width
    end = np.repeat(starts + lengths, pieces)
    block_image = np.repeat(images, pieces)
    token_of_query = np.minimum(begin[:, None] + np.arange(width), end[:, None] - 1)
    query_of_token = np.full(image.size, token_of_query.size)
    # Padding queries repeat the last token of their block. Written backwards, the first one, which is real, remains.
    query_of_token[token_of_query.ravel()[::-1]] = np.arange(token_of_query.size)[::-1]

    if every:
        shown, count = table[block_image // (most + 1), 1:], block_image % (most + 1)
        block_image = np.where(np.arange(shown.shape[1]) < count[:, None], shown, -1)
    in_order = not every and np.array_equal(block_image, np.arange(len(media.latents)))
    return ImageAttentionLayout(
        None if in_order else torch.from_numpy(block_image),
        torch.from_numpy(token_of_query),
        torch.from_numpy(query_of_token),
    )


def traced_layout(seen: Tensor, media: Media, every: bool = False) -> ImageAttentionLayout | None:
    """`prefill_layout` in a compiled function: tensors whose shapes follow from shapes.

    The tokens of a row that attend to the same image are a group, and each group has its own blocks. So the number of
    blocks is at most that for all tokens plus one per group. Blocks are as wide as groups are long on average.
    """
    rows, tokens = seen.shape
    images, per_prompt = len(media.latents), rows // len(media.rows)
    if not images:
        return None
    row = torch.arange(rows, device=seen.device)[:, None]
    if isinstance(media.rows, Spans):
        image = media.rows.first.to(seen.device).repeat_interleave(per_prompt)[:, None] + seen - 1
        group, kinds = (row % per_prompt) * images + image, per_prompt * images
        groups = kinds
    else:
        most, groups = max(media.counts), per_prompt * sum(media.counts)
        table = torch.tensor([[-1, *row] for row in _padded(media.rows)], device=seen.device)
        image = table[row // per_prompt, seen]
        group, kinds = row * most + seen - 1, rows * most
    visible = (seen > 0).flatten()
    group = group.flatten().where(visible, kinds)  # the last group: tokens without an image
    sizes = torch.zeros(kinds + 1, dtype=torch.long, device=seen.device).index_add(0, group, torch.ones_like(group))
    # The position of each token in its group, in the order of the text.
    order = group.argsort(stable=True)
    place = torch.empty_like(order).scatter(0, order, torch.arange(len(order), device=seen.device))
    place = place - (sizes.cumsum(0) - sizes)[group]

    width = max(1, min(MAX_BLOCK, -(-rows * tokens // groups)))
    blocks = rows * tokens // width + groups
    pieces = (sizes[:kinds] + width - 1) // width
    first = torch.cat([pieces.cumsum(0) - pieces, pieces.new_zeros(1)])
    query_of_token = ((first[group] + place // width) * width + place % width).where(visible, blocks * width)
    # Unused queries repeat the first token, and nothing reads their results.
    token_of_query = torch.zeros(blocks * width + 1, dtype=torch.long, device=seen.device)
    token_of_query = token_of_query.scatter(0, query_of_token, torch.arange(len(order), device=seen.device))
    token_of_query = token_of_query[:-1].view(blocks, width)
    if every:
        token = token_of_query[:, 0]
        prompt, met = token // tokens // per_prompt, seen.flatten()[token]
        if isinstance(media.rows, Spans):
            image_of_block = _spanned(media, media.rows.first.to(seen.device)[prompt], met)
        else:
            number = torch.arange(table.shape[1] - 1, device=seen.device)
            image_of_block = table[prompt, 1:].where(number < met[:, None], -1)
    else:
        image_of_block = image.flatten()[token_of_query[:, 0]].clamp(min=0)
    return ImageAttentionLayout(image_of_block, token_of_query, query_of_token)
