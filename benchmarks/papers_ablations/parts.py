"""Parts of other designs, which take the place of a Flamingo's own for one training.

Only the class of a part is exchanged: its parameters stay.

Shape letters: M images, P patches, Dv their width, D the resampler's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flamboyance.flamingo import FlamingoForConditionalGeneration
from flamboyance.model.resampler import PerceiverResampler

OPEN = 20.0  # a gate whose tanh is 1


class PatchMLP(PerceiverResampler):
    """Each patch by itself, through the layers' feed-forwards alone: (M, 1, P, Dv) -> (M, P, D)."""

    def _resampled(self, patches: Tensor) -> Tensor:
        projected, positions = self._start(patches)
        x = projected + positions
        for layer in self.layers:
            x = x + layer.feed_forward(x)
        return self.norm(x)


class PatchTransformer(PerceiverResampler):
    """The patches attend to one another: (M, 1, P, Dv) -> (M, P, D). A resampler's latents are the patches' positions
    here, so there have to be as many."""

    def _resampled(self, patches: Tensor) -> Tensor:
        projected, positions = self._start(patches)
        x = projected + positions
        for layer in self.layers:
            x = layer(x[:, :0], x)
        return self.norm(x)


def with_mlp(model: FlamingoForConditionalGeneration) -> None:
    model.resampler.__class__ = PatchMLP
    for layer in model.resampler.layers:  # not used, and so neither trained nor counted
        layer.attention.requires_grad_(False)


def with_transformer(model: FlamingoForConditionalGeneration) -> None:
    model.resampler.__class__ = PatchTransformer


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
