"""The Perceiver resampler (Flamingo, section 3.1.1): a variable number of patches in, a fixed number of latents out.

Shape letters: M media, F frames, P patches, L latents, D width, H heads, K width of a head.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flamboyance.model.linear import Linear, bfloat16_is_slow


def squared_relu(x: Tensor) -> Tensor:
    """max(x, 0)², of both feed-forwards of Flamingo (So et al. 2021, section 4; Flamingo, appendix A.1.1)."""
    return F.relu(x).square()


ACTIVATIONS = {"gelu": F.gelu, "squared_relu": squared_relu}
"""By the names of `configuration.ACTIVATIONS`."""


# The standard deviation of a new model's latents. With OpenFlamingo's 1 a new resampler gives nearly the same for all
# images, because the final norm scales what comes from the image down with the latents.
LATENTS_STD = 0.02


class FeedForward(nn.Module):
    """LayerNorm, expansion, exact GELU or squared ReLU, contraction; no biases outside the norm. (…, D) -> (…, D)."""

    def __init__(self, dim: int, mult: int = 4, activation: str = "gelu"):
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.norm = nn.LayerNorm(dim)
        self.up = Linear(dim, dim * mult, bias=False)
        self.down = Linear(dim * mult, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(self.norm(x))))


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """q (M, H, Q, K), k and v (M, H, S, K) -> (M, H, Q, K), by fused attention unless it is slow.

    `mask` (M, 1, 1, S) is False for keys that are not seen.

    In bfloat16 on a CPU, PyTorch's fused attention of several media takes twice as long as separate products, and five
    times with the backward pass. For one medium and the few queries of a decode step it takes half as long. Where
    oneDNN has no bfloat16 (AVX2), separate products take fifty times as long.
    """
    written = q.dtype == torch.bfloat16 and q.device.type == "cpu" and (len(q) > 1 or torch.is_grad_enabled())
    if written and not bfloat16_is_slow():
        return torch.softmax(_scores(q, k, mask), dim=-1) @ v
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def _scores(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    return scores if mask is None else scores.masked_fill(~mask, torch.finfo(scores.dtype).min)


def attention_weights(q: Tensor, k: Tensor, mask: Tensor | None = None) -> Tensor:
    """The weights by which `attend` sums: q (M, H, Q, K), k (M, H, S, K) -> (M, H, Q, S)."""
    scores = _scores(q, k, mask)
    return scores.softmax(-1, dtype=torch.float32).to(q.dtype)


class PerceiverAttention(nn.Module):
    """Latents attend to the patches of their medium and to themselves.

    Args:
        norm_keys_values: `norm_media` is the one norm of all that becomes keys and values, latents too, and
            `norm_latents` that of the queries (Flamingo). Otherwise patches and latents have a norm each
            (OpenFlamingo). The parameters are the same.
    """

    def __init__(self, dim: int, heads: int, dim_head: int, norm_keys_values: bool = False):
        super().__init__()
        inner = heads * dim_head
        self.heads = heads
        self.norm_keys_values = norm_keys_values
        self.norm_media = nn.LayerNorm(dim)
        self.norm_latents = nn.LayerNorm(dim)
        self.to_q = Linear(dim, inner, bias=False)
        self.to_kv = Linear(dim, 2 * inner, bias=False)
        self.to_out = Linear(inner, dim, bias=False)

    def forward(self, patches: Tensor, latents: Tensor) -> Tensor:
        """patches (M, F·P, D), latents (M, L, D) -> (M, L, D)."""
        out = attend(*self._queries_keys_values(patches, latents))
        return self.to_out(out.transpose(1, 2).flatten(2))

    def weights(self, patches: Tensor, latents: Tensor) -> Tensor:
        """How much each latent attends to each patch, and then to each latent: (M, H, L, F·P + L)."""
        q, k, _ = self._queries_keys_values(patches, latents)
        return attention_weights(q, k)

    def _queries_keys_values(self, patches: Tensor, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        queries = self.norm_latents(latents)
        context = torch.cat(
            [self.norm_media(patches), self.norm_media(latents) if self.norm_keys_values else queries], dim=1
        )
        q = self.to_q(queries).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.to_kv(context).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return q, k, v


class ResamplerLayer(nn.Module):
    def __init__(self, dim: int, heads: int, dim_head: int, ff_mult: int, activation: str, norm_keys_values: bool):
        super().__init__()
        self.attention = PerceiverAttention(dim, heads, dim_head, norm_keys_values)
        self.feed_forward = FeedForward(dim, ff_mult, activation)

    def forward(self, patches: Tensor, latents: Tensor) -> Tensor:
        latents = latents + self.attention(patches, latents)
        return latents + self.feed_forward(latents)


class PerceiverResampler(nn.Module):
    """Patches of M media -> `latents` vectors each.

    Args:
        dim: width of the patches.
        depth, heads, dim_head, latents, ff_mult: sizes; the defaults are OpenFlamingo's.
        max_frames: number of learned time embeddings; None for a model of still images (OpenFlamingo's). For a video of
            more frames they are interpolated linearly (Flamingo, appendix B.1.3).
        width: of the latents and everything inside; None: that of the patches (OpenFlamingo's). Where they differ, one
            projection precedes the layers.
        activation: of the feed-forwards: "gelu" (OpenFlamingo's) or "squared_relu" (Flamingo's, appendix A.1.1).
        norm_keys_values: as of PerceiverAttention.
    """

    def __init__(
        self,
        dim: int,
        depth: int = 6,
        heads: int = 8,
        dim_head: int = 64,
        latents: int = 64,
        ff_mult: int = 4,
        max_frames: int | None = None,
        width: int | None = None,
        activation: str = "gelu",
        norm_keys_values: bool = False,
    ):
        super().__init__()
        self.projection = None if width in (None, dim) else Linear(dim, width)
        dim = width or dim
        self.latents = nn.Parameter(LATENTS_STD * torch.randn(latents, dim))
        self.time_embeddings = nn.Parameter(torch.randn(max_frames, dim)) if max_frames else None
        self.layers = nn.ModuleList(
            ResamplerLayer(dim, heads, dim_head, ff_mult, activation, norm_keys_values) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, patches: Tensor, frame_counts: Sequence[int] | None = None) -> Tensor:
        """patches (M, F, P, Dv) -> latents (M, L, D).

        Args:
            frame_counts: frames of each of the M media, if they differ; patches are then those of all frames, one after
                another: (frames, P, Dv). Media of equal length are computed together.
        """
        if frame_counts is None:
            return self._resampled(patches)
        media = patches.split(list(frame_counts))
        places: dict[int, list[int]] = {}
        for place, count in enumerate(frame_counts):
            places.setdefault(count, []).append(place)
        found = torch.cat([self._resampled(torch.stack([media[i] for i in some])) for some in places.values()])
        order = [place for some in places.values() for place in some]
        return found[torch.tensor(order, device=found.device).argsort()]

    def _resampled(self, patches: Tensor) -> Tensor:
        patches, latents = self._start(patches)
        for layer in self.layers:
            latents = layer(patches, latents)
        return self.norm(latents)

    def weights(self, patches: Tensor) -> list[Tensor]:
        """The attention weights of each layer, as PerceiverAttention.weights: patches (M, F, P, Dv) ->
        (M, H, L, F·P + L) each."""
        patches, latents = self._start(patches)
        found = []
        for layer in self.layers:
            attention = layer.attention
            assert isinstance(attention, PerceiverAttention)
            found.append(attention.weights(patches, latents))
            latents = layer(patches, latents)
        return found

    def _start(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """(M, F, P, Dv) -> patches (M, F·P, D) with their times, and the latents before the first layer (M, L, D)."""
        if self.projection is not None:
            patches = self.projection(patches)
        if self.time_embeddings is not None:
            patches = patches + stretched(self.time_embeddings, patches.shape[1])[:, None]
        patches = patches.flatten(1, 2)
        return patches, self.latents.expand(len(patches), -1, -1)


def rollout(weights: Sequence[Tensor]) -> Tensor:
    """The share of each patch in each latent after the last layer: attention rollout (Abnar & Zuidema 2020, section 3).

    Attention and the residual connection count half each. With the weights of layer i, the mean of its heads, split
    into those for patches Pᵢ (L, F·P) and those for latents Aᵢ (L, L):

        R₀ = 0,   Rᵢ = ½ Rᵢ₋₁ + ½ (Pᵢ + Aᵢ Rᵢ₋₁)

    A row's sum is less than 1; the rest is the latent that was learned, which holds nothing of the image.

    Args:
        weights: (M, H, L, F·P + L) of each layer, as PerceiverResampler.weights returns them.

    Returns:
        (M, L, F·P), float32.
    """
    media, _, latents, keys = weights[0].shape
    shares = torch.zeros(media, latents, keys - latents, device=weights[0].device)
    for layer in weights:
        to_patches, to_latents = layer.float().mean(1).split([keys - latents, latents], dim=-1)
        shares = (shares + to_patches + to_latents @ shares) / 2
    return shares


def stretched(time_embeddings: Tensor, frames: int) -> Tensor:
    """Time embeddings (max_frames, D) -> (frames, D): the first ones, or all of them interpolated."""
    if frames <= len(time_embeddings):
        return time_embeddings[:frames]
    longer = F.interpolate(time_embeddings.T[None], size=frames, mode="linear", align_corners=True)
    return longer[0].T
