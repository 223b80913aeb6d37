"""Stage 1, the vision tower: a small CLIP ViT trained contrastively against phrases and captions, then kept frozen.

There are two contrasts. Each patch is compared with every phrase for one object ("large red ring left", "digit 3",
"nothing"); all phrases that differ in a single attribute are among the negatives, so that it learns shape and not only
color. Each image's class token is compared with the captions of its batch. The text tower is then discarded. A Flamingo
reads the last block's patch tokens before the final LayerNorm, so the patches are trained, not only the class token.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from flamboyance.mini.world import scenes as world
from flamboyance.mini.world.sayings import caption
from flamboyance.mini.world.scenes import SIDE, Scene
from flamboyance.mini.world.words import COLORS, COLUMNS, DIGITS, SHAPES, SIZES, build_tokenizer
from scripts.pretrain_mini.fitting import fan_in, fit

WIDTH, LAYERS, PATCH = 128, 4, 8
STEPS, BATCH, RATE = 4000, 64, 1.5e-3
MEAN, STD = 0.25, 0.25  # of pixels in 0..1; the ground is dark, so this centres them

PHRASES = (
    "nothing",
    *(f"digit {digit}" for digit in DIGITS),
    *(" ".join(words) for words in itertools.product(SIZES, COLORS, SHAPES, COLUMNS)),
)
_NUMBER = {phrase: number for number, phrase in enumerate(PHRASES)}


def build() -> CLIPVisionModel:
    """The tower as transformers knows it, freshly initialised."""
    config = CLIPVisionConfig(
        hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=LAYERS, num_attention_heads=4,
        image_size=SIDE, patch_size=PATCH, projection_dim=WIDTH, hidden_act="gelu", attn_implementation="eager",
    )  # fmt: skip
    tower = CLIPVisionModel(config)
    fan_in(tower, 2 * LAYERS)
    embeddings = next(module for module in tower.modules() if hasattr(module, "patch_embedding"))
    nn.init.normal_(embeddings.patch_embedding.weight, std=(3 * PATCH**2) ** -0.5)
    nn.init.normal_(embeddings.position_embedding.weight, std=0.5)  # 0.02 would drown under the patches
    nn.init.normal_(embeddings.class_embedding, std=0.5)
    return tower


def pixels(scenes: list[Scene]) -> torch.Tensor:
    """Scenes as the tower's input, (n, 3, 64, 64)."""
    image = torch.from_numpy(world.render(scenes)).permute(0, 3, 1, 2).float()
    return (image / 255 - MEAN) / STD


def patches(tower: CLIPVisionModel, images: torch.Tensor) -> torch.Tensor:
    """The features a Flamingo reads: last block's patch tokens before the final LayerNorm, (n, 64, 128)."""
    return tower(images).last_hidden_state[:, 1:]


def patch_phrases(scenes: list[Scene]) -> torch.Tensor:
    """The phrase each patch shows, (n, 64); -1 for a patch on an edge, which is left out of the loss."""
    axis = np.arange(PATCH / 2, SIDE, PATCH)
    across, down = np.meshgrid(axis, axis)
    labels = np.zeros((len(scenes), *across.shape), np.int64)
    for row, item in enumerate(scenes):
        if item.digit is not None:
            reach = np.maximum(abs(across - item.digit.x), abs(down - item.digit.y)) / item.digit.side
            labels[row][reach < 0.55] = -1
            labels[row][reach < 0.4] = _NUMBER[f"digit {item.digit.value}"]
        for thing in item.things:
            reach = np.hypot(across - thing.x, down - thing.y)
            labels[row][reach < 1.2 * thing.radius + 4] = -1
        for thing in item.things:
            reach = np.hypot(across - thing.x, down - thing.y)
            phrase = _NUMBER[f"{thing.size} {thing.color} {thing.shape} {thing.column}"]
            labels[row][reach < max(0.8 * thing.radius, 5.7)] = phrase
    return torch.from_numpy(labels.reshape(len(scenes), -1))


class TextTower(nn.Module):
    """Two transformer layers over word embeddings, averaged: token ids (n, T) with 0 as padding -> (n, 128)."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, WIDTH)
        self.places = nn.Parameter(torch.randn(32, WIDTH) * 0.3)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        absent = ids == 0
        hidden = self.layers(self.words(ids) + self.places[: ids.shape[1]], src_key_padding_mask=absent)
        return self.head(hidden.masked_fill(absent[..., None], 0).sum(1) / (~absent).sum(1, keepdim=True))


class Contrast(nn.Module):
    """The tower under training, with the text tower and the two projections that are discarded afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = build_tokenizer()
        self.tower, self.text = build(), TextTower(len(self.tokenizer))
        self.patch_head = nn.Linear(WIDTH, WIDTH, bias=False)
        self.image_head = nn.Linear(WIDTH, WIDTH, bias=False)
        self.scales = nn.Parameter(torch.tensor([2.7, 2.7]))  # exp is 15
        self.phrase_ids = self._ids(list(PHRASES))

    def _ids(self, texts: list[str]) -> torch.Tensor:
        options = {"padding": True, "padding_side": "right", "add_special_tokens": False}
        return self.tokenizer(texts, return_tensors="pt", **options).input_ids

    def forward(self, scenes: list[Scene]) -> tuple[torch.Tensor, dict[str, float]]:
        device = self.scales.device
        output = self.tower(pixels(scenes).to(device))
        labels = patch_phrases(scenes).to(device)
        seen = labels >= 0
        seen &= (labels > 0) | (torch.rand(labels.shape, device=device) < 0.15)  # most patches show nothing
        post = (
            self.tower.post_layernorm
            if hasattr(self.tower, "post_layernorm")
            else self.tower.vision_model.post_layernorm
        )
        looks = F.normalize(self.patch_head(post(output.last_hidden_state[:, 1:]))[seen].float(), dim=-1)
        phrases = F.normalize(self.text(self.phrase_ids.to(device)).float(), dim=-1)
        scores = looks @ phrases.T * self.scales[0].exp().clamp(max=60)
        phrase_loss = F.cross_entropy(scores, labels[seen])
        image = F.normalize(self.image_head(output.pooler_output).float(), dim=-1)
        said = [caption(item) for item in scenes]
        text = F.normalize(self.text(self._ids(said).to(device)).float(), dim=-1)
        pairs = image @ text.T * self.scales[1].exp().clamp(max=60)
        same = torch.tensor([[a == b for b in said] for a in said], device=device)
        twin = same & ~torch.eye(len(said), dtype=torch.bool, device=device)
        pairs = pairs.masked_fill(twin, -1e4)
        target = torch.arange(len(said), device=device)
        caption_loss = (F.cross_entropy(pairs, target) + F.cross_entropy(pairs.T, target)) / 2
        hit = (scores.argmax(-1) == labels[seen])[labels[seen] > 0].float().mean().item()
        return phrase_loss + 0.2 * caption_loss, {"phrase": hit, "caption": caption_loss.item()}


def draw(rng: np.random.Generator, count: int, split: world.Split = "train") -> list[Scene]:
    """Scenes, about a third of them digits."""
    return [world.digit_scene(rng, split) if rng.random() < 0.33 else world.scene(rng) for _ in range(count)]


def train(folder: Path, steps: int = STEPS) -> Path:
    """Trains the tower unless `folder/vision` is there already; returns that directory."""
    target = folder / "vision"
    if (target / "model.safetensors").exists():
        print(f"[tower] kept: {target}")
        return target
    torch.manual_seed(0)
    model = Contrast()

    def loss_at(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        return model(draw(np.random.default_rng((1, step)), BATCH))

    fit("tower", model, loss_at, steps=steps, rate=RATE, folder=folder / "tower", decay=0.05)
    model.tower.eval().save_pretrained(target)
    return target
