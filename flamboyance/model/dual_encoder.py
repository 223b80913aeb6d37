"""A vision tower and a text encoder with a common space: what contrastive pretraining trains.

As Flamingo's vision encoder was pretrained (Alayrac et al. 2022, appendix B.1.3): both sides are pooled by their mean,
over patches and over tokens, projected, and normalised to length 1. The patches are those that a Flamingo sees.

Shapes: n pairs, C H W pixels, T tokens, P patches, D width of a side, E width of the common space.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flamboyance.model.trainable import checkpoint_layers, without_influence
from flamboyance.model.vision import VisionTower

START = math.log(1 / 0.07)  # of the logarithm of the inverse temperature: CLIP's
LARGEST = math.log(100.0)  # CLIP's: larger ones make training unstable


class Embeddings(NamedTuple):
    """Of n pairs.

    Attributes:
        images, texts: (n, E) float32, of length 1.
        scale: the inverse temperature, by which similarities are multiplied. A scalar.
    """

    images: Tensor
    texts: Tensor
    scale: Tensor


class DualEncoder(nn.Module):
    """A tower and a text encoder, all of whose parameters that the embeddings depend on are trained.

    Batch normalisation keeps the statistics that the tower came with: those of a batch would be of one process's part.

    Args:
        text: an encoder of transformers: `text(input_ids, attention_mask).last_hidden_state` is (n, T, D).
        width: E.
    """

    def __init__(self, vision: VisionTower, text: Any, width: int) -> None:
        super().__init__()
        self.vision, self.text = vision, text
        self.image_projection = nn.Linear(vision.width, width, bias=False)
        self.text_projection = nn.Linear(text.config.hidden_size, width, bias=False)
        for projection in (self.image_projection, self.text_projection):
            nn.init.normal_(projection.weight, std=projection.in_features**-0.5)
        self.log_scale = nn.Parameter(torch.tensor(START))
        self.float().requires_grad_(True)
        for parameter in self._unused():
            parameter.requires_grad_(False)

    def forward(self, pixels: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Embeddings:
        """pixels (n, C, H, W), normalised; input_ids and attention_mask (n, T)."""
        return Embeddings(
            self.embed_images(pixels), self.embed_texts(input_ids, attention_mask), self.log_scale.float().exp()
        )

    def embed_images(self, pixels: Tensor) -> Tensor:
        """pixels (n, C, H, W), normalised -> (n, E), float32, of length 1."""
        return F.normalize(self.image_projection(self.vision(pixels).mean(1)).float(), dim=-1)

    def embed_texts(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """input_ids and attention_mask (n, T) -> (n, E), float32, of length 1."""
        tokens = self.text(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask[..., None].to(tokens.dtype)
        mean = (tokens * weights).sum(1) / weights.sum(1)
        return F.normalize(self.text_projection(mean).float(), dim=-1)

    @torch.no_grad()
    def limit_scale(self) -> None:
        """Keeps the inverse temperature at 100 or below; called after each step."""
        self.log_scale.clamp_(max=LARGEST)

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """The trainable parameters by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def checkpoint_activations(self) -> None:
        """Layers keep only their inputs and compute the rest again in the backward pass."""
        for model in (self.vision.model, self.text):
            checkpoint_layers(model)

    def _unused(self) -> list[nn.Parameter]:
        """Parameters that the embeddings do not depend on, such as a tower's last norm and its pooling head."""
        side, device = self.vision.image_size, self.log_scale.device
        self.eval()
        ids = torch.zeros(1, 1, dtype=torch.long, device=device)
        with torch.enable_grad():
            outputs = self(torch.zeros(1, 3, side, side, device=device), ids, torch.ones_like(ids))
            total = outputs.images.sum() + outputs.texts.sum() + outputs.scale
        return without_influence(list(self.parameters()), total)
