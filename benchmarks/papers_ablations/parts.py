"""Parts of other designs, which take the place of a Flamingo's own for one training.

Only the class of a part is exchanged: its parameters stay.

Shape letters: M images, P cells of the tower, Dv its width, D the resampler's, R rows of text, T tokens, H heads,
K width of a head, L vectors per image.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from flamboyance.flamingo import FlamingoForConditionalGeneration
from flamboyance.model.cross_attention import MaskedCrossAttention
from flamboyance.model.media import ImageAttentionLayout
from flamboyance.model.resampler import PerceiverResampler

OPEN = 20.0  # a gate whose tanh is 1


class CellMLP(PerceiverResampler):
    """Each cell of the tower by itself, through the layers' feed-forwards alone: (M, 1, P, Dv) -> (M, P, D)."""

    def _resampled(self, patches: Tensor) -> Tensor:
        cells, positions = self._start(patches)
        x = cells + positions
        for layer in self.layers:
            x = x + layer.feed_forward(x)
        return self.norm(x)


class CellTransformer(PerceiverResampler):
    """The cells attend to one another: (M, 1, P, Dv) -> (M, P, D). What are latents in a resampler are the positions of
    the cells here, so there have to be as many."""

    def _resampled(self, patches: Tensor) -> Tensor:
        cells, positions = self._start(patches)
        x = cells + positions
        for layer in self.layers:
            x = layer(x[:, :0], x)
        return self.norm(x)


class AllImagesAttention(MaskedCrossAttention):
    """Each token attends to the latents of all images before it, not of the last one alone.

    Right for whole texts. A decode step is given one image alone, so a prompt of several images cannot be continued
    from a cache.
    """

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, layout: ImageAttentionLayout) -> Tensor:
        if layout.query_of_token is None or layout.token_of_query is None:
            return super().forward(x, keys, values, layout)
        last = last_images(layout).view(x.shape[:2])  # (R, T)
        seeing = last >= 0
        first = last.where(seeing, len(keys)).amin(1, keepdim=True)  # a row's images have neighbouring numbers
        image = torch.arange(len(keys), device=x.device)
        visible = (image >= first[..., None]) & (image <= last[..., None])  # (R, T, M)
        visible[..., 0] |= ~seeing  # no softmax over nothing; the result is not used
        q = self.to_q(self.norm(x)).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (R, H, T, K)
        k, v = (t.transpose(0, 1).flatten(1, 2).expand(len(x), -1, -1, -1) for t in (keys, values))
        mask = visible.repeat_interleave(keys.shape[2], dim=-1)[:, None]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask) * seeing[:, None, :, None]
        return self.to_out(out.transpose(1, 2).flatten(2))


def last_images(layout: ImageAttentionLayout) -> Tensor:
    """(R·T,) the number of the image that each token attends to; -1 for none."""
    assert layout.query_of_token is not None and layout.token_of_query is not None
    blocks, width = layout.token_of_query.shape
    block = layout.query_of_token // width  # `blocks` for a token without an image
    images = torch.arange(blocks, device=block.device) if layout.image_of_block is None else layout.image_of_block
    return torch.cat([images, images.new_full((1,), -1)])[block]


def with_mlp(model: FlamingoForConditionalGeneration) -> None:
    model.resampler.__class__ = CellMLP
    for layer in model.resampler.layers:  # not used, and so neither trained nor counted
        layer.attention.requires_grad_(False)


def with_transformer(model: FlamingoForConditionalGeneration) -> None:
    model.resampler.__class__ = CellTransformer


def with_all_images(model: FlamingoForConditionalGeneration) -> None:
    for block in model.blocks:
        block.attention.__class__ = AllImagesAttention


@torch.no_grad()
def without_gates(model: FlamingoForConditionalGeneration) -> None:
    """Every gate is open and stays so."""
    for block in model.blocks:
        for gate in (block.attention_gate, block.feed_forward_gate):
            gate.fill_(OPEN)
            gate.requires_grad_(False)


def with_trained_language_model(model: FlamingoForConditionalGeneration) -> None:
    model.language_model.requires_grad_(True)


@torch.no_grad()
def with_new_language_model(model: FlamingoForConditionalGeneration) -> None:
    """The language model begins at random, and is trained."""
    language = model.language_model
    for module in language.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Embedding):
            module.weight.normal_(std=language.config.initializer_range)
    with_trained_language_model(model)
