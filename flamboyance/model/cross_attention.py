"""The gated cross-attention block (Flamingo, section 3.1.2), placed before a layer of the frozen language model.

Shape letters: R rows of text, T tokens, D the language model's width, Dv the tower's, H heads, L latents, K width of a
head, M images.
"""

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from flamboyance.model.linear import Linear
from flamboyance.model.media import ImageAttentionLayout
from flamboyance.model.resampler import FeedForward, attend, attention_weights


class MaskedCrossAttention(nn.Module):
    """Each token attends to the latents of its image, or images; the result is zero for tokens without an image.

    Queries are normalised. Media are not, because the resampler ends in a norm; except where `norm_keys_values` puts a
    LayerNorm of the block's own before the projection to keys and values, as Flamingo has it.
    """

    def __init__(self, dim: int, vision_dim: int, heads: int, dim_head: int, norm_keys_values: bool = False):
        super().__init__()
        inner = heads * dim_head
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.to_q = Linear(dim, inner, bias=False)
        self.to_kv: nn.Module = Linear(vision_dim, 2 * inner, bias=False)
        if norm_keys_values:  # one module, because both are used apart from the rest of the block
            self.to_kv = nn.Sequential(nn.LayerNorm(vision_dim), self.to_kv)
        self.to_out = Linear(inner, dim, bias=False)

    def keys_values(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """latents (M, L, Dv) -> keys and values, (M, H, L, K) each; computed once per image, however long the text."""
        keys, values = self.to_kv(latents).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).contiguous()
        return keys, values

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, layout: ImageAttentionLayout) -> Tensor:
        """x (R, T, D), keys and values (M, H, L, K) -> (R, T, D).

        It takes 4·L·H·K operations per token beside the projections, however many images the text has; as many for each
        of a prompt's images where tokens attend to all of them.
        """
        q = self.to_q(self.norm(x)).unflatten(-1, (self.heads, -1))
        seen = layout.mask(keys.shape[2])
        keys, values = layout.of_blocks(keys), layout.of_blocks(values)
        out = attend(layout.to_blocks(q).transpose(1, 2), keys, values, seen)
        return self.to_out(layout.from_blocks(out.transpose(1, 2), x.shape[0], x.shape[1]))

    def weights(self, x: Tensor, keys: Tensor, layout: ImageAttentionLayout) -> Tensor:
        """How much each token attends to each latent: x (R, T, D), keys (M, H, L, K) -> (R, H, T, L), as `forward`
        attends; (R, H, T, N·L) where tokens attend to several images. They add up to 1 over the latents; those of a
        token without an image are zero."""
        q = layout.to_blocks(self.to_q(self.norm(x)).unflatten(-1, (self.heads, -1))).transpose(1, 2)
        seen = layout.mask(keys.shape[2])
        shares = attention_weights(q, layout.of_blocks(keys), seen).transpose(1, 2)
        return layout.from_blocks(shares, x.shape[0], x.shape[1]).unflatten(-1, (self.heads, -1)).transpose(1, 2)


class GatedCrossAttentionBlock(GradientCheckpointingLayer):
    """Cross-attention, then a feed-forward; each is multiplied by a tanh gate that starts at zero.

    The gated feed-forward applies to every token, also to those without an image, as in the reference.
    """

    def __init__(
        self,
        dim: int,
        vision_dim: int,
        heads: int = 8,
        dim_head: int = 64,
        ff_mult: int = 4,
        activation: str = "gelu",
        norm_keys_values: bool = False,
    ):
        super().__init__()
        self.attention = MaskedCrossAttention(dim, vision_dim, heads, dim_head, norm_keys_values)
        self.attention_gate = nn.Parameter(torch.zeros(1))
        self.feed_forward = FeedForward(dim, ff_mult, activation)
        self.feed_forward_gate = nn.Parameter(torch.zeros(1))

    def forward(
        self,
        x: Tensor,
        keys: Tensor | None,
        values: Tensor | None,
        layout: ImageAttentionLayout | None,
        weights: list[Tensor] | None = None,
    ) -> Tensor:
        """x (R, T, D) -> (R, T, D). layout None: no token has an image. The attention weights (R, H, T, L) are appended
        to `weights`, if it is given and a token has an image."""
        if layout is not None:
            if weights is not None and keys is not None:
                weights.append(self.attention.weights(x, keys, layout))
            x = x + self.attention(x, keys, values, layout) * self.attention_gate.tanh()
        return x + self.feed_forward(x) * self.feed_forward_gate.tanh()
